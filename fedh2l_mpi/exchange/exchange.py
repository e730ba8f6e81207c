"""The exchange of a rank: which messages go where, when they start, and when they must be there.

Messages between ranks are sent and received by MPI; what one rank hosts is handed over in memory.

Shape letters: N neighbours.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.exchange import codecs, host_memory
from fedh2l_mpi.exchange.array_spec import ArraySpec
from fedh2l_mpi.exchange.message import Message
from fedh2l_mpi.exchange.row_skipping import HeldRows, rows_of
from fedh2l_mpi.exchange.wire_format import message_bytes
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import TAGS, World
from fedh2l_mpi.topology import Graph

if TYPE_CHECKING:
    from mpi4py import MPI


# A participant keeps what its neighbours hold of its array under this name.
HELD = "held_by_neighbours"


@dataclass(frozen=True)
class _Route:
    """The messages between this rank and another for one graph."""

    rank: int
    outgoing: Message
    incoming: Message


class Received(Mapping[int, Tensor]):
    """From each hosted participant to its neighbours' arrays, float32 (N, rows, columns), in participant order.

    An item is put together when it is asked for, and must be asked for before the next round starts, which reuses the
    buffers: the arrays of all neighbours of all participants at once would be P times as many where all are neighbours.

    Attributes
    ----------
    arrays : mapping
        From everyone whose array is here to that array, float32 tensor (rows, columns).
    """

    def __init__(
        self, array: ArraySpec, graph: Graph, hosted: range, arrays: Mapping[int, Tensor], pinned: bool = False
    ) -> None:
        self._array, self._graph, self._hosted, self.arrays = array, graph, hosted, arrays
        self._pinned = pinned

    def __getitem__(self, participant: int) -> Tensor:
        if participant not in self._hosted:
            raise KeyError(participant)
        near = [self.arrays[neighbour] for neighbour in self._graph.neighbours[participant]]
        return (
            host_memory.stacked(near, self._pinned) if near else torch.empty(0, self._array.rows, self._array.columns)
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._hosted)

    def __len__(self) -> int:
        return len(self._hosted)


@dataclass
class Ledger:
    """Bytes that crossed edges of the graph in a round, by hosted participant.

    An edge is charged the message that would carry one participant's array alone, whether or not it crosses a rank: the
    traffic of the method does not depend on hosting. Rows that are skipped do not cross.
    """

    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)


class Exchange:
    """The exchange of one rank's participants with their neighbours. Building it is **collective**.

    Parameters
    ----------
    array : ArraySpec
        What participants publish, the same on every rank (the handshake has seen to that).
    deadline_s : float
        Longest wait for another rank [s].
    pinned : bool
        Whether what arrives is handed out in page-locked memory, on its way to a GPU. The messages themselves are not:
        only MPI and the CPU touch them.
    arrived : callable, optional
        Called once in a round with messages: with the round, with the `time.perf_counter` when its sends were posted,
        and with that when this rank first saw all of them complete, its own and those to it [s].

    Attributes
    ----------
    ledger : Ledger
        Of the round that was finished last.
    mpi_sent : int
        What has been given to MPI, in all rounds [bytes].
    """

    def __init__(
        self,
        world: World,
        hosting: Hosting,
        array: ArraySpec,
        deadline_s: float,
        pinned: bool = False,
        arrived: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self._world, self._hosting, self._array = world, hosting, array
        self._deadline_s, self._pinned = deadline_s, pinned
        self._arrived, self._posted_s = arrived, math.nan
        self._hosted = hosting.participants_of(world.rank)
        self._comm = world.duplicate()
        self._graph: Graph | None = None
        self._routes: list[_Route] = []
        self._receives: list[MPI.Request] = []
        self._sends: list[MPI.Request] = []
        self._rows = rows_of(array, self._hosted)
        # Hosted participants' parts of the round's messages, which their neighbours here take, too.
        self._parts: Mapping[int, NDArray[np.uint8]] = {}
        self._round = -1
        self.ledger = Ledger()
        self.mpi_sent = 0

    def start(self, round_index: int, graph: Graph, published: Mapping[int, Tensor]) -> None:
        """Post the receives, then the sends, of a round; returns at once.

        Parameters
        ----------
        published : mapping
            From each hosted participant to its array, float32 tensor (rows, columns) in host memory.

        Raises
        ------
        RuntimeError
            If they are not what the specification says: checked here too, because what one rank hosts never crosses
            MPI.
        UserError
            If a number is too large for the codec.
        """
        for participant, array in published.items():
            self._check(participant, array)
        if graph is not self._graph:
            # A new neighbour holds nothing. By its edges, since another object may be the same graph.
            if self._graph is None or graph.edges != self._graph.edges:
                self._rows.forget()
            self._graph, self._routes = graph, self._plan_routes(graph)
        self._round = round_index
        self._parts = {index: self._rows.part(index, array.numpy()) for index, array in published.items()}
        tag = round_index % TAGS
        if self._comm is not None:
            self._receives = [self._comm.Irecv(route.incoming.buffer, route.rank, tag) for route in self._routes]
        for route in self._routes:
            route.outgoing.fill(self._parts)
            route.outgoing.seal(round_index)
            self.mpi_sent += route.outgoing.nbytes
        if self._comm is not None:
            self._sends = [self._comm.Isend(route.outgoing.wire, route.rank, tag) for route in self._routes]
        self._posted_s = time.perf_counter()

    def progress(self) -> None:
        """Give MPI a chance to move large messages while this rank computes."""
        if self._receives:
            self._receives[0].Get_status()
            waits = self._arrived is not None and not math.isnan(self._posted_s)
            if waits and all(request.Get_status() for request in (*self._receives, *self._sends)):
                self._tell_arrival()

    def finish(self, idle: Callable[[], None] | None = None) -> "Received":
        """Wait for the round's messages: each hosted participant's neighbours' arrays, in participant order.

        Parameters
        ----------
        idle : callable
            Called while there is nothing to do but wait.

        Returns
        -------
        Received
            From participant to float32 tensor (N, rows, columns) in host memory; N = 0 for an isolated participant.

        Raises
        ------
        LateRankError
            If a rank's message does not come within the deadline.
        RuntimeError
            If a message is not what this round expects.
        """
        if self._graph is None:
            raise RuntimeError("finish() was called before start()")
        arrays = {index: torch.from_numpy(self._rows.take(index, part)) for index, part in self._parts.items()}
        arrays |= {index: torch.from_numpy(array) for index, array in self._from_other_ranks(idle)}
        self._charge(self._graph)
        self._parts = {}
        return Received(self._array, self._graph, self._hosted, arrays, self._pinned)

    def held(self, participant: int) -> Tensor:
        """What the neighbours of a hosted participant hold of its array, where unchanged rows are skipped.

        Returns
        -------
        float32 tensor (rows, columns)
            In host memory, NaN before anything was sent; it follows what is sent, and belongs to the participant's
            state.

        Raises
        ------
        RuntimeError
            Where all rows are always sent, and none is held.
        """
        return torch.from_numpy(self._held_rows().of(participant))

    def hand_over(self, round_index: int, graph: Graph, held: Mapping[int, Tensor]) -> None:
        """Go on from what neighbours held after a round, where unchanged rows are skipped. **Collective.**

        They get it once more, as it is: of float32 no bit is lost. The ledger does not count that: a run that was
        interrupted has sent what an unbroken one has.

        Parameters
        ----------
        round_index, graph : int, Graph
            The last round that had an exchange, and its graph.
        held : mapping
            From each hosted participant to what `held` was then.

        Raises
        ------
        LateRankError
            If a rank's message does not come within the deadline.
        """
        whole = replace(self._array, codec=codecs.FLOAT32, skip_below=None)
        once = Exchange(self._world, self._hosting, whole, self._deadline_s)
        once.start(round_index, graph, held)
        self._held_rows().go_on_from({index: array.numpy() for index, array in once.finish().arrays.items()})
        self._graph, self._routes = graph, self._plan_routes(graph)

    def keep_held(self, kept: Mapping[int, dict[str, Tensor]], before: tuple[int, Graph] | None) -> None:
        """Make what the neighbours hold a part of each participant's state, where unchanged rows are skipped.

        **Collective.** After a checkpoint, the neighbours get back what they held then. Where all rows are always sent,
        this does nothing.

        Parameters
        ----------
        kept : mapping
            From each hosted participant to the dict in which it keeps what its state contains.
        before : tuple of int and Graph, or None
            The last finished round that had an exchange, and its graph; None if there is none.
        """
        if not isinstance(self._rows, HeldRows):
            return
        if before is not None:
            self.hand_over(*before, {index: state[HELD].cpu() for index, state in kept.items()})
        for index, state in kept.items():
            state[HELD] = self.held(index)

    def nothing(self) -> Mapping[int, Tensor]:
        """Return the arrays of a round without an exchange, float32 (0, rows, columns) for each participant."""
        empty = torch.empty(0, self._array.rows, self._array.columns)
        return dict.fromkeys(self._hosted, empty)

    def close_round(self) -> Ledger:
        """The round's ledger; a round that exchanges nothing has an empty one."""
        ledger, self.ledger = self.ledger, Ledger()
        return ledger

    def _from_other_ranks(self, idle: Callable[[], None] | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What has arrived from other ranks, by participant."""
        if not self._receives:
            return
        ranks = [route.rank for route in self._routes]
        requests = [*self._receives, *self._sends]
        self._receives, self._sends = [], []
        what = f"{self._array.name} of round {self._round}"
        sizes = self._world.wait(requests, ranks + ranks, self._deadline_s, what, idle)
        self._tell_arrival()
        # A message longer than its buffer has raised MPI_ERR_TRUNCATE; a shorter one is MPI's silent case.
        for route, received_bytes in zip(self._routes, sizes, strict=False):
            try:
                arrays = route.incoming.opened(self._round, received_bytes, self._rows)
            except RuntimeError as error:
                raise RuntimeError(f"message of round {self._round} from rank {route.rank}: {error}") from None
            yield from zip(route.incoming.senders, arrays, strict=True)

    def _tell_arrival(self) -> None:
        """The round's messages are seen to be complete; told the first time only."""
        if self._arrived is not None and not math.isnan(self._posted_s):
            self._arrived(self._round, self._posted_s, time.perf_counter())
        self._posted_s = math.nan

    def _check(self, participant: int, array: Tensor) -> None:
        """Refuse what is not what the specification says, by its type, its place, its shape and its numbers."""
        got = f"{array.dtype} {tuple(array.shape)} on {array.device}{', with gradients' if array.requires_grad else ''}"
        expected = f"torch.float32 {(self._array.rows, self._array.columns)} on cpu"
        if got != expected:
            raise RuntimeError(f"{self._array.name} of participant {participant}: got {got}, expected {expected}")
        self._array.check(array.numpy()[None], [participant])

    def _held_rows(self) -> HeldRows:
        if not isinstance(self._rows, HeldRows):
            raise RuntimeError(f"all rows of {self._array.name} are sent in every round: nothing is held of them")
        return self._rows

    def _charge(self, graph: Graph) -> None:
        """Enter into the ledger what has crossed each hosted participant's edges."""
        alone_bytes = {index: message_bytes([len(part)]) for index, part in self._parts.items()}
        for route in self._routes:
            parts = zip(route.incoming.senders, route.incoming.part_bytes, strict=True)
            alone_bytes |= {index: message_bytes([size]) for index, size in parts}
        # All are of one size, but where rows are skipped: a complete graph has too many edges to look at each.
        same = set(alone_bytes.values())
        for participant in self._hosted:
            near = graph.neighbours[participant]
            self.ledger.sent[participant] = len(near) * alone_bytes[participant]
            self.ledger.received[participant] = (
                len(near) * min(same) if len(same) == 1 else sum(alone_bytes[neighbour] for neighbour in near)
            )

    def _plan_routes(self, graph: Graph) -> list[_Route]:
        """One route for every other rank that hosts a neighbour of a participant hosted here."""
        outgoing: dict[int, set[int]] = {}
        incoming: dict[int, set[int]] = {}
        for participant in self._hosted:
            for neighbour in graph.neighbours[participant]:
                rank = self._hosting.rank_of(neighbour)
                if rank != self._world.rank:
                    outgoing.setdefault(rank, set()).add(participant)
                    incoming.setdefault(rank, set()).add(neighbour)
        return [
            _Route(
                rank,
                Message(sorted(outgoing[rank]), self._array),
                Message(sorted(incoming[rank]), self._array),
            )
            for rank in sorted(outgoing)
        ]


class NoExchange:
    """The exchange of a method that never publishes anything.

    Parameters
    ----------
    hosted : range
        The participants hosted here.
    """

    mpi_sent = 0

    def __init__(self, hosted: range) -> None:
        self._hosted = hosted

    def start(self, round_index: int, graph: Graph, published: Mapping[int, Tensor]) -> None:
        """Refuse: there is no array to send.

        Raises
        ------
        RuntimeError
            Always.
        """
        raise RuntimeError("the method has no array to exchange, but something was published")

    def progress(self) -> None:
        """Do nothing, because no message is on its way."""

    def finish(self, idle: Callable[[], None] | None = None) -> Mapping[int, Tensor]:
        """Return no arrays, as `nothing` does."""
        return self.nothing()

    def nothing(self) -> Mapping[int, Tensor]:
        """Return the arrays of a round without an exchange, float32 (0, 0, 0) for each participant."""
        return dict.fromkeys(self._hosted, torch.empty(0, 0, 0))

    def close_round(self) -> Ledger:
        """Return an empty ledger."""
        return Ledger()
