"""HDF5 files whose writes fail: an error each time, never a crash, and nothing written after it."""

import gc
import os

import h5py
import numpy as np
import pytest
from helpers.damage import failing_writes

from fedh2l_mpi.runtime import hdf5_files

LONG = np.arange(100_000.0)


def test_a_file_is_whole_and_closed_when_it_is_finished(tmp_path):
    path = tmp_path / "file.h5"
    with hdf5_files.writing(path) as file:
        kept = file.create_dataset("long", data=LONG, chunks=(1000,), maxshape=(None,))
        file.attrs["short"] = 1
    assert not kept.id.valid
    # HDF5 itself opens no file with flags, and none that is shorter than its superblock says.
    with h5py.File(path, "r+") as file:
        assert np.array_equal(file["long"], LONG)
        file["more"] = 2
    with hdf5_files.writing(path, "r+") as file:
        assert file["more"][()] == 2
    with h5py.File(path, "r") as file:
        assert (file.attrs["short"], len(file["long"])) == (1, 100_000)


@pytest.mark.parametrize("when", ["values", "the flags"])
def test_a_write_that_fails_at_the_end_is_an_error_and_the_process_lives(tmp_path, monkeypatch, when):
    path = tmp_path / "file.h5"
    with pytest.raises((OSError, RuntimeError)), hdf5_files.writing(path) as file:  # noqa: PT012
        kept = file.create_dataset("long", data=LONG[:10], chunks=(10,), maxshape=(None,))
        file.flush()
        if when == "values":
            kept.resize(20, axis=0)
            kept[10:] = 1.0
            with failing_writes(file, path):
                hdf5_files.finish(file)
        else:
            monkeypatch.setattr(os, "fsync", _no_space)
    before = path.read_bytes()
    # Every handle of the file is dropped here, which HDF5 does not survive after it has failed to close a file.
    del file, kept
    gc.collect()
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="already open for write|truncated"):
        h5py.File(path, "r")


def _no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_an_abandoned_file_is_not_written_to_any_more(tmp_path):
    path = tmp_path / "file.h5"
    with pytest.raises(KeyError), hdf5_files.writing(path) as file:  # noqa: PT012
        kept = file.create_dataset("long", data=LONG[:10], chunks=(10,), maxshape=(None,))
        file.flush()
        before = path.read_bytes()
        kept[:] = 7.0
        raise KeyError
    hdf5_files.abandon(file)
    assert path.read_bytes() == before
