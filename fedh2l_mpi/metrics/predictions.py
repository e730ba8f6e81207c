"""File of predictions: every participant's logits on all test samples at the end of a run.

It lies next to the metrics file, and has a life of its own: it is large, and it is written once, row by row.

Shape letters: P participants, N test samples of all domains, C classes.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.metrics.file_arrays import DAMAGE, reason
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.metrics.schema import Field
from fedh2l_mpi.runtime import atomic_files, hdf5_files

FILE = "predictions.h5"
FORMAT = "fedh2l_mpi predictions"
LOGITS = Field("logits", "f4", "1", "logits of a participant on a test sample at the end of the run")
LABEL = Field("label", "i8", "1", "class of the test sample")
SAMPLE_DOMAIN = Field("sample_domain", "i8", "1", "domain of the test sample")
SAMPLE = Field("sample", "i8", "1", "test sample of all domains, from 0")


@contextlib.contextmanager
def writing(
    path: Path,
    participants: int,
    labels_N: NDArray[np.int64],
    domain_N: NDArray[np.int64],
    classes: int,
    finished: int,
) -> Iterator[Callable[[int, NDArray[Any]], None]]:
    """Yield a function that writes a participant's logits, float32 (N, C). The file replaces an older one at the end.

    Raises
    ------
    OSError, RuntimeError
        If it cannot be written. HDF5 raises either of them if the disk is full.
    """
    growing = path.with_name(path.name + ".new")
    growing.unlink(missing_ok=True)
    shape = (participants, len(labels_N), classes)
    try:
        with hdf5_files.writing(growing) as file:
            file.attrs["format"] = np.bytes_(FORMAT.encode())
            file.attrs["rounds"] = np.int64(finished)
            # Without chunks, the place of a participant's logits does not depend on the order in which they arrive.
            logits = file.create_dataset(LOGITS.name, shape, LOGITS.dtype)
            arrays = {LOGITS: logits}
            for field, values in ((LABEL, labels_N), (SAMPLE_DOMAIN, domain_N)):
                arrays[field] = file.create_dataset(field.name, data=values, dtype=field.dtype)
            scales = {}
            for name, size in (("participant", participants), (SAMPLE.name, len(labels_N)), ("class", classes)):
                scales[name] = file.create_dataset(name, data=np.arange(size))
                scales[name].make_scale(name)
            for field, array in arrays.items():
                array.attrs["units"], array.attrs["long_name"] = (
                    np.bytes_(text.encode()) for text in (field.units, field.long_name)
                )
                dims = ("participant", SAMPLE.name, "class") if field is LOGITS else (SAMPLE.name,)
                for axis, name in enumerate(dims):
                    array.dims[axis].attach_scale(scales[name])

            def put(participant: int, logits_NC: NDArray[Any]) -> None:
                logits[participant] = logits_NC

            yield put
        atomic_files.move(growing, path)
    except BaseException:
        growing.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Predictions:
    """A file of predictions, which is open only while logits are read.

    Attributes
    ----------
    shape : tuple of int
        P, N and C.
    label, sample_domain : int64 (N,)
    """

    path: Path
    shape: tuple[int, ...]
    label: NDArray[np.int64]
    sample_domain: NDArray[np.int64]

    def part(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        """Return a part of the logits, by an index for each axis."""
        file, _ = open_for_reading(self.path)
        with file:
            return np.asarray(file[LOGITS.name][key])


def find(path: Path, participants: int, finished: int) -> tuple[Predictions | None, str]:
    """Return the predictions of a run with P participants after its finished rounds, and a problem of the file.

    Predictions of fewer rounds are those of a run that was extended later, and do not count.
    """
    if not path.is_file():
        return None, ""
    try:
        file, closed = open_for_reading(path)
        with file:
            if not closed or file.attrs.get("format") != FORMAT.encode():
                return None, f"{path.name}: not a complete file of predictions"
            if int(file.attrs["rounds"]) != finished:
                return None, ""
            shape = tuple(file[LOGITS.name].shape)
            label, domain = (np.asarray(file[field.name][()], dtype=np.int64) for field in (LABEL, SAMPLE_DOMAIN))
    except DAMAGE as error:
        return None, f"{path.name}: damaged: {reason(error)}"
    if len(shape) != 3 or shape[0] != participants or label.shape != (shape[1],) or domain.shape != label.shape:
        return None, f"{path.name}: does not belong to this run, or is damaged"
    return Predictions(path, shape, label, domain), ""
