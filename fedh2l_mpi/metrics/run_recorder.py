"""Record a run: one row for each participant and round, collected on rank 0 and written into the metrics file."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.metrics import posteriors, predictions
from fedh2l_mpi.metrics.collector import Collector
from fedh2l_mpi.metrics.columns import NO_COLUMNS, Columns
from fedh2l_mpi.metrics.reader import look
from fedh2l_mpi.metrics.rows import pack_row, row_width, unpack_table
from fedh2l_mpi.metrics.schema import SIMULATED_SECONDS
from fedh2l_mpi.metrics.trace import Trace, during
from fedh2l_mpi.metrics.writer import MetricsWriter, RunHeader
from fedh2l_mpi.network import SimulatedClock
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph, Topology

Table = NDArray[np.float64]
OnWritten = Callable[[int, Table, str], None]


class Noting(Protocol):
    """A participant, of which the recorder needs its number and what it noted."""

    index: int

    def noted_means(self) -> dict[str, float]:
        """Return the mean of each scalar noted in this round."""


class Traffic(Protocol):
    """Bytes that each hosted participant sent and received in a round."""

    sent: dict[int, int]
    received: dict[int, int]


class RunRecorder:
    """One rank's part in the recording; rank 0 has the file. Building it is **collective**.

    Parameters
    ----------
    path : Path
        The metrics file.
    header : RunHeader or None
        What the file says of the run; None on ranks other than 0.
    domains : int
        D, the number of test sets.
    kept_rounds : int
        Finished rounds that the file holds already and keeps; 0: the file is new.
    deadline_s : float
        Longest wait for another rank [s].
    columns : Columns
        The run's own arrays by round, equal on every rank.
    clock : SimulatedClock or None
        The clock of the simulated network, which rank 0 advances with every round that it writes; None: there is none.
    keeping : posteriors.Keeping or None
        The rounds of which published posteriors are kept, equal on every rank; None: of none.

    Attributes
    ----------
    on_written : callable
        Rank 0 calls it after a round is in the file, with the round, its table (P, row width), and the digest of all
        rows so far.
    """

    def __init__(
        self,
        world: World,
        hosting: Hosting,
        topology: Topology,
        path: Path,
        header: RunHeader | None,
        domains: int,
        kept_rounds: int,
        deadline_s: float,
        trace: Trace | None = None,
        columns: Columns = NO_COLUMNS,
        clock: SimulatedClock | None = None,
        keeping: posteriors.Keeping | None = None,
    ) -> None:
        self._clock, self._keeping = clock, keeping
        self._topology, self._domains, self._trace, self._columns = topology, domains, trace, columns
        self.on_written: OnWritten = lambda index, table, digest: None
        self._path, self._participants = path, hosting.participants
        self._writer: MetricsWriter | None = None
        if header is not None:
            self._writer = MetricsWriter(path, header, kept_rounds or None)
            for index in filter(topology.is_redrawn, range(kept_rounds)):
                self._writer.add_graph(index, topology.graph(index).edges)
            if clock is not None and kept_rounds:
                clock.now_P = look(path).read_row(SIMULATED_SECONDS.name, kept_rounds - 1).astype(np.float64)
        self._collector = Collector(world, hosting, row_width(domains, columns), self._write, deadline_s)

    def record(
        self,
        index: int,
        graph: Graph,
        participants: Sequence[Noting],
        seconds: Mapping[int, Mapping[str, float]],
        traffic: Traffic,
        scores: Mapping[int, Mapping[str, Any]],
        faults: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
    ) -> None:
        """Hand over the rows of this rank's participants. **Collective.** Rank 0 writes them when all have arrived.

        Parameters
        ----------
        seconds : mapping
            From a participant to its time in each phase [s].
        traffic : Traffic
            Bytes over the edges of the graph in this round.
        scores : mapping
            From a participant to what `evaluation.evaluate` returned; empty in a round without evaluation.
        faults : mapping
            From a participant to the arrays of simulated faults, of a run that has such.

        Raises
        ------
        UserError
            If a participant noted a name that its method does not declare.
        DivergedError
            If something that a participant noted is not finite.
        LateRankError
            If the rows of the round before have not arrived in time.
        """
        unknown = [float("nan")] * self._domains
        rows = []
        for participant in participants:
            number, noted = participant.index, participant.noted_means()
            if strange := self._columns.undeclared(noted):
                raise UserError(
                    f"participant {number} noted {strange[0]!r} in round {index}, which its method does not declare. "
                    f"Fix: add it to the class: notes = {{{strange[0]!r}: 'what it is'}}."
                )
            values: dict[str, Any] = {
                **dict.fromkeys(("seconds_publish", "seconds_local", "seconds_wait", "seconds_mutual"), 0.0),
                **noted,
                **{f"seconds_{phase}": spent for phase, spent in seconds[number].items()},
                "bytes_sent": traffic.sent.get(number, 0),
                "bytes_received": traffic.received.get(number, 0),
                "degree": len(graph.neighbours[number]),
                **scores.get(number, {}),
                **faults.get(number, {}),
            }
            by_domain = (values.get("accuracy_D", unknown), values.get("loss_D", unknown))
            rows.append(pack_row(values, *by_domain, values.get("calibration_3K"), self._columns))
        self._collector.record(index, np.stack(rows))

    def keep_posteriors(self, index: int, published: Mapping[int, Tensor]) -> None:
        """Write what all participants published in this round into its file, if it is a round to keep. **Collective.**

        Parameters
        ----------
        published : mapping
            From each participant hosted here to its array as neighbours decode it, float32 (S, C) in host memory. Those
            who were absent are not there, and get NaN.
        """
        keeping = self._keeping
        if keeping is None or not keeping.is_kept(index):
            return

        def array_of(participant: int) -> NDArray[np.float32]:
            if participant not in published:
                return np.full(keeping.shape[1:], np.nan, dtype=np.float32)
            return np.ascontiguousarray(published[participant].numpy())

        with contextlib.ExitStack() as opened:
            put: Callable[[int, NDArray[Any]], None] = lambda participant, array_SC: None  # noqa: E731
            if self._writer is not None:
                places = keeping.prepare(self._path.with_name(posteriors.FILE), index)
                put = opened.enter_context(places.writing(index))
            self._collector.gather(array_of, keeping.shape[1:], "f4", put, f"posteriors of round {index}")

    def poll(self) -> None:
        """Write the rounds whose rows have all arrived. It is cheap and never waits."""
        self._collector.poll()

    def finish(self) -> None:
        """Wait until every round is in the file. **Collective.**"""
        self._collector.finish()

    def record_confusion(self, confusion_of: Callable[[int], NDArray[np.int32]], classes: int) -> None:
        """Write the confusion matrix of every participant, and its accuracy by class. **Collective**, after all rounds.

        Parameters
        ----------
        confusion_of : callable
            Returns the matrix of a participant hosted here, int32 (C, C): test samples of a class by the prediction.
        """

        def put(participant: int, matrix_CC: NDArray[Any]) -> None:
            samples_C = matrix_CC.sum(axis=1)
            accuracy_C = np.where(samples_C > 0, matrix_CC.diagonal() / np.maximum(samples_C, 1), np.nan)
            if self._writer is not None:
                self._writer.write_end(participant, {"confusion": matrix_CC, "accuracy_class": accuracy_C})

        self._collector.gather(confusion_of, (classes, classes), "i4", put)

    def record_predictions(
        self,
        logits_of: Callable[[int], NDArray[np.float32]],
        labels_N: NDArray[np.int64],
        domain_N: NDArray[np.int64],
        classes: int,
        finished: int,
    ) -> None:
        """Write every participant's logits on the test samples into a file. **Collective**, after all rounds.

        Parameters
        ----------
        logits_of : callable
            Returns the logits of a participant hosted here, float32 (N, C).
        labels_N, domain_N : int64 (N,)
            Class and domain of each test sample.
        finished : int
            Number of the run's finished rounds.
        """
        shape = (len(labels_N), classes)
        if self._writer is None:
            self._collector.gather(logits_of, shape, "f4", lambda participant, logits_NC: None)
            return
        path = self._path.with_name(predictions.FILE)
        with predictions.writing(path, self._participants, labels_N, domain_N, classes, finished) as put:
            self._collector.gather(logits_of, shape, "f4", put)

    def close(self, state: str, early_stop: str = "") -> None:
        """Close the file, which says from then on that the run is complete, stopped or failed, or stopped early."""
        if self._writer is not None:
            self._writer.close(state, early_stop)

    def _write(self, index: int, table: Table) -> None:
        if self._writer is None:
            return
        with during(self._trace, "write", index):
            if self._topology.is_redrawn(index):
                self._writer.add_graph(index, self._topology.graph(index).edges)
            if self._clock is not None:
                arrays = unpack_table(table, self._domains, self._columns)
                now_P = self._clock.advance(self._topology.graph(index).edges, arrays["bytes_sent"])
                arrays[SIMULATED_SECONDS.name][:] = now_P
            digest = self._writer.append(index, table)
        self.on_written(index, table, digest)
