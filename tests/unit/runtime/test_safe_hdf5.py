"""HDF5 files from anybody: plain arrays and attributes are read; links, outside storage and huge sizes are refused."""

import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import fedh2l_mpi
from fedh2l_mpi.runtime import safe_hdf5
from fedh2l_mpi.runtime.safe_hdf5 import RefusedError

PACKAGE = Path(fedh2l_mpi.__file__).parent
TEXT = h5py.h5t.C_S1.copy()
TEXT.set_size(4)


def _raw(file):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_external(b"/etc/passwd", 0, 8)
    h5py.h5d.create(file.id, b"x", TEXT, h5py.h5s.create_simple((2,)), made)


def _virtual(file):
    layout = h5py.VirtualLayout((4,), "i8", maxshape=(None,))
    source = h5py.VirtualSource("secret.h5", "x", (4,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("x", layout)


def _foreign_filter(file):
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((4,))
    made.set_filter(32013, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT64, h5py.h5s.create_simple((4,)), made)


REFUSED = {
    "link to another place": (
        lambda file: file.__setitem__("x", h5py.ExternalLink("secret.h5", "/x")),
        lambda file: file.__setitem__("x", h5py.SoftLink("/y")),
    ),
    "stored outside": (_raw,),
    "virtual": (_virtual,),
    "unknown filter 32013": (_foreign_filter,),
    "no array": (lambda file: file.create_group("x"), lambda file: file.__setitem__("x", np.dtype("i8"))),
    "no shape": (lambda file: file.__setitem__("x", h5py.Empty("i8")),),
    "neither a number nor a text": (
        lambda file: file.__setitem__("x", ["texts", "of any length"]),
        lambda file: file.__setitem__("x", np.array([file.ref], dtype=h5py.ref_dtype)),
        lambda file: file.__setitem__("x", np.zeros(3, dtype=[("a", "i4")])),
    ),
    "declares 80,000,000,000 bytes": (
        lambda file: file.create_dataset("x", shape=(10**10,), maxshape=(None,), chunks=(64,), dtype="i8"),
        lambda file: file.create_dataset("x", shape=(10**10,), dtype="i8"),
    ),
    # HDF5 reads a compressed chunk whole, also if the array has only a part of it.
    "declares 2,147,483,648 bytes": (
        lambda file: file.create_dataset("x", (4,), "i8", maxshape=(None,), chunks=(2**28,), compression="gzip"),
    ),
    "its texts have 65,537 bytes": (lambda file: file.create_dataset("x", shape=(2,), dtype="S65537"),),
}


@pytest.mark.parametrize(("says", "make"), [(says, make) for says, makers in REFUSED.items() for make in makers])
def test_an_array_that_is_not_plain_data_in_the_file_is_refused(tmp_path, says, make):
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = np.arange(4)
    with h5py.File(tmp_path / "strange.h5", "w") as file:
        file["y"] = np.arange(4)
        make(file)
    with safe_hdf5.open_file(tmp_path / "strange.h5") as file:
        assert "x" in file
        with pytest.raises(RefusedError, match=says):
            _ = file["x"]
        assert file["y"][:].tolist() == [0, 1, 2, 3]


def test_plain_arrays_and_attributes_are_read_as_h5py_reads_them(tmp_path):
    arrays = {"number": np.float32([1.5, 2]), "text": np.array([b"a", b"bc"]), "one": np.int64(3)}
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
        file.create_dataset("packed", data=np.zeros(2**16), compression="gzip", shuffle=True, fletcher32=True)
        file.attrs.update({"text": np.bytes_(b"x"), "count": np.int64(2)})
        file.attrs.update({"long": "a text of any length", "reference": file.ref})
    with safe_hdf5.open_file(tmp_path / "plain.h5") as file:
        assert list(file) == ["number", "one", "packed", "text"]
        assert all(np.array_equal(file[name][()], values) for name, values in arrays.items())
        assert not file["packed"][:].any()
        assert (file.attrs["text"], file.attrs["count"], file.attrs.get("none")) == (b"x", 2, None)
        for name in ("long", "reference"):
            with pytest.raises(RefusedError, match="neither a number nor a text"):
                _ = file.attrs[name]
        with pytest.raises(KeyError):
            _ = file["none"]
    assert not file


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        safe_hdf5.open_file(tmp_path / "pipe")


def test_only_writers_open_hdf5_files_by_another_way():
    opens = {path for path in PACKAGE.rglob("*.py") if re.search(r"\bFile\(", path.read_text(encoding="utf-8"))}
    # An export reads back what it has just written itself; so does the writer of posteriors, for the place of an array.
    own = {"runtime/hdf5_files.py", "metrics/robust_open.py", "data/pack_writer.py", "analysis/export/netcdf.py"}
    own |= {"metrics/posteriors.py"}
    names = {path.relative_to(PACKAGE).as_posix() for path in opens}
    assert names <= {*own, "runtime/safe_hdf5.py"}
