"""File of kept posteriors: what every participant published on the seed samples, in every N-th round.

It has its whole size from the start, and a kept round is written in its place. A killed process therefore leaves a file
that can be read and written on.

Shape letters: K kept rounds, P participants, S seed rows of a round, C classes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.exchange.array_spec import OF_SEED_SAMPLES
from fedh2l_mpi.metrics.file_arrays import DAMAGE, reason
from fedh2l_mpi.metrics.robust_open import open_for_reading
from fedh2l_mpi.metrics.schema import Field
from fedh2l_mpi.runtime import atomic_files, hdf5_files

FILE = "posteriors.h5"
FORMAT = "fedh2l_mpi posteriors"
VALUES = Field("published", "f4", "1", "what a participant published on a seed row, as its neighbours decode it")
ROUND = Field("round", "i8", "1", "round, from 0")
# Headers and attributes of such a file; measured.
HDF5_BYTES = 6_700


def kept_rounds(every: int, rounds: int) -> NDArray[np.int64]:
    """Return the rounds that are kept of a run, int64 (K,): every N-th one, counted as `evaluation.every` counts."""
    return np.arange(every - 1, rounds, every, dtype=np.int64)


def file_bytes(every: int, rounds: int, participants: int, rows: int, classes: int) -> int:
    """Return the size of the file [bytes]."""
    return 4 * len(kept_rounds(every, rounds)) * participants * rows * classes + 8 * (participants + rows) + HDF5_BYTES


@dataclass(frozen=True)
class Keeping:
    """The rounds that a run keeps, and the arrays of each. It is equal on every rank.

    Attributes
    ----------
    every, rounds : int
        N, and the number of the run's rounds.
    kind : str
        Name of the published array, one of `OF_SEED_SAMPLES`.
    shape : tuple of int
        P, S and C.
    """

    every: int
    rounds: int
    kind: str
    shape: tuple[int, int, int]

    def is_kept(self, round_index: int) -> bool:
        """Return True if what is published in this round is kept."""
        return (round_index + 1) % self.every == 0

    def prepare(self, path: Path, finished: int) -> "Places":
        """Make the file unless it is there, and return the places of its arrays.

        Rounds without an exchange stay NaN. A file with other rounds, of a run that was extended, is replaced by one
        that has those of its rounds that are finished.

        Parameters
        ----------
        finished : int
            Number of the run's finished rounds.

        Raises
        ------
        OSError, RuntimeError
            If it cannot be written. HDF5 raises either of them if the disk is full.
        """
        old, _ = find(path, self.shape, finished)
        wanted_K = kept_rounds(self.every, self.rounds)
        if old is None or not np.array_equal(old.round, wanted_K):
            self._make(path, wanted_K, old)
        return Places.of(path)

    def _make(self, path: Path, wanted_K: NDArray[np.int64], old: "KeptPosteriors | None") -> None:
        growing = path.with_name(path.name + ".new")
        growing.unlink(missing_ok=True)
        try:
            with hdf5_files.writing(growing) as file:
                file.attrs["format"] = np.bytes_(FORMAT.encode())
                file.attrs["kind"] = np.bytes_(self.kind.encode())
                # Without chunks, an array has one place, which this module writes to without HDF5.
                values = file.create_dataset(VALUES.name, (len(wanted_K), *self.shape), VALUES.dtype)
                rounds = file.create_dataset(ROUND.name, data=wanted_K, dtype=ROUND.dtype)
                for place, round_index in enumerate(wanted_K):
                    kept = None if old is None else old.of_round(int(round_index))
                    values[place] = np.full(self.shape, np.nan, np.float32) if kept is None else kept
                scales = [rounds]
                for name, size in zip(("participant", "row", "class"), self.shape, strict=True):
                    scales.append(file.create_dataset(name, data=np.arange(size)))
                for axis, scale in enumerate(scales):
                    scale.make_scale(scale.name.rpartition("/")[2])
                    values.dims[axis].attach_scale(scale)
                for field, array in ((VALUES, values), (ROUND, rounds)):
                    array.attrs["units"], array.attrs["long_name"] = (
                        np.bytes_(text.encode()) for text in (field.units, field.long_name)
                    )
            atomic_files.move(growing, path)
        except BaseException:
            growing.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Places:
    """Places of the kept arrays in their file.

    Attributes
    ----------
    start : int
        Place of the first number [bytes].
    of_round : mapping
        From a round to its number among the kept ones.
    array_bytes, participants : int
        Size of one participant's array [bytes], and P.
    """

    path: Path
    start: int
    of_round: Mapping[int, int]
    array_bytes: int
    participants: int

    @staticmethod
    def of(path: Path) -> "Places":
        """Return the places in a file that `Keeping.prepare` has made."""
        import h5py

        with h5py.File(path, "r", locking=False) as file:
            values = file[VALUES.name]
            _, participants, rows, classes = values.shape
            of_round = {int(round_index): place for place, round_index in enumerate(file[ROUND.name][()])}
            return Places(path, int(values.id.get_offset()), of_round, 4 * rows * classes, participants)

    @contextlib.contextmanager
    def writing(self, round_index: int) -> Iterator[Callable[[int, NDArray[Any]], None]]:
        """Yield a function that writes a participant's array (S, C) of a round. All are on the disk at the end.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        first = self.of_round[round_index] * self.participants
        with self.path.open("r+b") as file:

            def put(participant: int, array_SC: NDArray[Any]) -> None:
                file.seek(self.start + (first + participant) * self.array_bytes)
                file.write(np.ascontiguousarray(array_SC, dtype="<f4").tobytes())

            yield put
            atomic_files.sync_file(file)


@dataclass(frozen=True)
class KeptPosteriors:
    """A file of kept posteriors, which is open only while arrays are read.

    Attributes
    ----------
    kind : str
        One of `OF_SEED_SAMPLES`.
    shape : tuple of int
        K, P, S and C.
    round : int64 (K,)
        Rounds that have a place in the file.
    finished : int
        Number of the run's finished rounds; the places of later rounds do not count.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    round: NDArray[np.int64]
    finished: int

    def of_round(self, round_index: int, participant: int | slice = slice(None)) -> NDArray[np.float32] | None:
        """Return what was published in a round, float32 (P, S, C) or (S, C); None if nothing was kept of it.

        Who was absent has NaN in a round that others published in.
        """
        place = np.flatnonzero(self.round == round_index)
        if round_index >= self.finished or not len(place):
            return None
        file, _ = open_for_reading(self.path)
        with file:
            values = np.asarray(file[VALUES.name][int(place[0]), participant], dtype=np.float32)
        return None if np.isnan(values).all() else values

    def of_participant(self, participant: int) -> dict[int, NDArray[np.float32]]:
        """Return what a participant published in the kept rounds, by round, float32 (S, C) each."""
        kept = {int(index): self.of_round(int(index), participant) for index in self.round}
        return {index: values for index, values in kept.items() if values is not None}


def find(path: Path, shape: tuple[int, ...], finished: int) -> tuple[KeptPosteriors | None, str]:
    """Return the kept posteriors of a run after its finished rounds, and a problem of the file.

    Parameters
    ----------
    shape : tuple of int
        P, S and C of the run.
    """
    if not path.is_file():
        return None, ""
    try:
        file, closed = open_for_reading(path)
        with file:
            if not closed or file.attrs.get("format") != FORMAT.encode():
                return None, f"{path.name}: not a complete file of posteriors"
            kind = bytes(file.attrs["kind"]).decode()
            found: tuple[Any, ...] = tuple(file[VALUES.name].shape)
            rounds = np.asarray(file[ROUND.name][()], dtype=np.int64)
    except DAMAGE as error:
        return None, f"{path.name}: damaged: {reason(error)}"
    if found != (len(rounds), *shape) or kind not in OF_SEED_SAMPLES:
        return None, f"{path.name}: does not belong to this run, or is damaged"
    return KeptPosteriors(path, kind, found, rounds, finished), ""
