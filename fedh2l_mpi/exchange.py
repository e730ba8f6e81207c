"""Arrays between neighbours: one message per pair of ranks and round, started at publish, completed when needed.

A message is a header, the list of senders, and the arrays of these as the codec makes them, in one contiguous buffer
that is never pickled. Participants that one rank hosts hand their arrays over directly, as what the codec would have
made of them at another rank: the numbers do not depend on who is hosted where. What the array is (posteriors, logits,
parameters, a user's own) is the method's business: the exchange knows its name and its shape.

Where unchanged rows are skipped (`exchange.skip_below`), each sender's part of a message is a bit for every row, and
the rows whose bit is set. Sender and receivers hold the rows that were last sent, as decoded from the same bytes.

Shape letters: N neighbours, R rows.
"""

import math
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi import codecs, staging
from fedh2l_mpi.codecs import Codec
from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.topology import Graph
from fedh2l_mpi.world import Hosting, World

if TYPE_CHECKING:
    from mpi4py import MPI

MAGIC = b"FH2L"
VERSION = 2
# magic, version, codec, name of the array, number of senders, round, rows, columns, CRC-32 of senders and payload
HEADER = struct.Struct("<4sHH16sIqIII")
# Rows of posteriors must sum to 1 within what float32 softmax and 1,000 classes leave of it.
ROW_SUM_TOLERANCE = 1e-3
TAGS = 2**14
# Added to the codec's number in the header of a message without unchanged rows: these are laid out in another way.
SKIPPING = 2**8


@dataclass(frozen=True)
class ArraySpec:
    """What every participant publishes in a round: a float32 array of one name and one shape.

    Attributes
    ----------
    name : str
        Such as `posteriors`, 16 bytes at most; sender and receiver must agree on it.
    rows, columns : int
        Its shape, the same for every participant and round.
    sums_to_one : bool
        Whether every row is a probability distribution: checked where it is sent and where it arrives.
    codec : Codec
        What it is on the wire; a method leaves this to the config (`coded`).
    skip_below : float or None
        A row is not sent again if no number of it, as it would arrive, is further than this from the one that the
        neighbours hold; None: every row is always sent.
    """

    name: str
    rows: int
    columns: int
    sums_to_one: bool = False
    codec: Codec = codecs.FLOAT32
    skip_below: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 16:
            raise ValueError(f"name: got {self.name!r}, must be 1 to 16 bytes long")
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"shape of {self.name}: got {self.rows} x {self.columns}, must be at least 1 x 1")

    def coded(self, config: ExchangeConfig) -> "ArraySpec":
        """The same array, on the wire as the config says.

        Raises
        ------
        UserError
            If the config's codec is not for such an array.
        """
        codec = codecs.build(config.codec, config.top_k)
        if codec.distributions_only and not self.sums_to_one:
            fitting = ", ".join(name for name, kind in codecs.KINDS.items() if not kind.distributions_only)
            raise UserError(
                f"exchange.codec: got {codec.name!r}, which is for posteriors, but the method exchanges {self.name}, "
                f"whose rows do not sum to 1; use one of {fitting}"
            )
        if config.top_k is not None and config.top_k > self.columns:
            raise UserError(f"exchange.top_k: got {config.top_k}, must be <= {self.columns}, the number of classes")
        return replace(self, codec=codec, skip_below=config.skip_below)

    @property
    def held_bytes(self) -> int:
        """Size of one participant's array in memory, float32 [bytes]."""
        return 4 * self.rows * self.columns

    @property
    def mask_bytes(self) -> int:
        """Size of the bits that say which of an array's rows are sent [bytes]."""
        return 0 if self.skip_below is None else math.ceil(self.rows / 8)

    def message_bytes(self, senders: int = 1) -> int:
        """Size of a message with the arrays of `senders` participants, the largest if rows may be skipped [bytes]."""
        return HEADER.size + senders * (4 + self.mask_bytes + self.codec.encoded_bytes(self.rows, self.columns))

    def part_bytes(self, part: NDArray[np.uint8]) -> int:
        """Size of one participant's part of a message, as the bits that it begins with say [bytes]."""
        rows = self.rows if self.skip_below is None else int(self._is_sent(part).sum())
        return self.mask_bytes + self.codec.encoded_bytes(rows, self.columns)

    def encode(self, values: NDArray[np.float32], participant: int) -> NDArray[np.uint8]:
        """A participant's array (rows, columns), which has passed `check`, as bytes.

        Raises
        ------
        UserError
            If a number is too large for the codec.
        """
        if not self.codec.exact and not self.sums_to_one:
            row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
            if abs(values[row, column]) > self.codec.largest:
                wider = [kind.name for kind in codecs.KINDS.values() if kind.largest > self.codec.largest]
                raise UserError(
                    f"exchange.codec: got {self.codec.name!r}, which holds numbers up to {self.codec.largest:.6g}, but "
                    f"{self.name} of participant {participant}, row {row}, have {values[row, column]:.6g}; "
                    f"use {' or '.join(name for name in wider if not codecs.KINDS[name].distributions_only)}"
                )
        return self.codec.encode(values)

    def decode(self, encoded: NDArray[np.uint8], rows: int | None = None) -> NDArray[np.float32]:
        """The array (rows, columns), or so many rows of it, that the bytes stand for; a view if the codec is exact.

        Raises
        ------
        ValueError
            If they stand for none.
        """
        values = self.codec.decode(encoded, self.rows if rows is None else rows, self.columns)
        return values if self.codec.exact or not self.sums_to_one else codecs.as_distributions(values)

    def encode_changes(
        self, values: NDArray[np.float32], participant: int, held: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """A participant's part of a message that leaves out the rows of (rows, columns) which hardly changed.

        Parameters
        ----------
        held : float32 (rows, columns)
            What its neighbours hold of it; NaN where they hold nothing.

        Raises
        ------
        UserError
            If a number is too large for the codec.
        """
        arriving = self.decode(self.encode(values, participant))
        # In float32, a difference just above the bound could be rounded to it.
        gap = np.subtract(arriving, held, dtype=np.float64)
        # Not (>): nothing is far from NaN, and what nobody holds must be sent.
        is_sent_R = ~(np.abs(gap, out=gap).max(axis=1) <= self.skip_below)
        return np.concatenate([np.packbits(is_sent_R), self.codec.encode(values[is_sent_R])])

    def take_changes(self, part: NDArray[np.uint8], held: NDArray[np.float32]) -> None:
        """Bring `held` (rows, columns) up to date by what `encode_changes` made.

        Raises
        ------
        ValueError
            If the bytes stand for no rows.
        """
        is_sent_R = self._is_sent(part)
        if is_sent_R.any():
            held[is_sent_R] = self.decode(part[self.mask_bytes :], int(is_sent_R.sum()))

    def _is_sent(self, part: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.unpackbits(part[: self.mask_bytes], count=self.rows).view(np.bool_)

    def check(self, payload: NDArray[np.float32], senders: Sequence[int]) -> None:
        """Refuse arrays (senders, rows, columns) that are not finite, or not distributions where they must be."""
        if self.sums_to_one:
            # A NaN or an infinity anywhere in a row makes its sum NaN or infinite.
            wrong = ~(np.abs(payload.sum(axis=-1) - 1.0) <= ROW_SUM_TOLERANCE) | (payload.min(axis=-1) < 0)
            fault = "is not finite, is negative somewhere, or does not sum to 1"
        else:
            # Finite terms of float32 cannot overflow a sum of float64, so it is finite exactly where every term is.
            wrong = ~np.isfinite(payload.sum(axis=-1, dtype=np.float64))
            fault = "is not finite"
        if wrong.any():
            which, row = np.argwhere(wrong)[0]
            shown = np.array2string(payload[which, row], threshold=20, separator=", ")
            raise RuntimeError(f"{self.name} of participant {senders[which]}, row {row}: {shown} {fault}")


class Message:
    """One message's buffer, and what is in it.

    Attributes
    ----------
    buffer : uint8 (message_bytes,)
        As long as the message can be.
    nbytes : int
        How much of the buffer the message takes, as it was filled [bytes].
    part_bytes : list of int
        Size of each sender's part, as it was filled or opened [bytes].
    """

    def __init__(self, senders: Sequence[int], array: ArraySpec) -> None:
        self.senders, self.array = list(senders), array
        self.shape = (len(self.senders), array.rows, array.columns)
        self.buffer = np.zeros(array.message_bytes(len(self.senders)), dtype=np.uint8)
        self._begin = HEADER.size + 4 * len(self.senders)
        self._listed: NDArray[np.int32] = self.buffer[HEADER.size : self._begin].view(np.int32)
        self.nbytes = self.buffer.nbytes
        self.part_bytes: list[int] = []
        self._number = array.codec.number + (0 if array.skip_below is None else SKIPPING)

    @property
    def wire(self) -> NDArray[np.uint8]:
        """The part of the buffer that is sent."""
        return self.buffer[: self.nbytes]

    def fill(self, encoded: Mapping[int, NDArray[np.uint8]]) -> None:
        """Write each sender's part, one after the other."""
        self.part_bytes = [len(encoded[participant]) for participant in self.senders]
        self.nbytes = self._begin
        for participant in self.senders:
            part = encoded[participant]
            self.buffer[self.nbytes : self.nbytes + len(part)] = part
            self.nbytes += len(part)

    def seal(self, round_index: int) -> None:
        """Write header and senders for the payload as it stands."""
        self._listed[:] = self.senders
        name, checksum = self.array.name.encode(), self._checksum(self.nbytes)
        header = HEADER.pack(MAGIC, VERSION, self._number, name, self.shape[0], round_index, *self.shape[1:], checksum)
        self.buffer[: HEADER.size] = np.frombuffer(header, dtype=np.uint8)

    def opened(
        self, round_index: int, received_bytes: int, held: Mapping[int, NDArray[np.float32]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Each sender's array, decoded; anything but sound arrays of the expected name and participants is refused.

        Parameters
        ----------
        held : mapping
            Where unchanged rows are skipped: from each sender to the array that is held of it, which takes up the rows
            that were sent, and is returned.

        Raises
        ------
        RuntimeError
            With what differs: codec, size, magic, version, name, round, shape, senders, checksum, finiteness, row sums.
        """
        magic, version, number, name, count, got_round, rows, columns, checksum = HEADER.unpack_from(self.buffer.data)
        # First of all: another codec makes messages of another size.
        if received_bytes >= HEADER.size and (magic, version) == (MAGIC, VERSION) and number != self._number:
            raise RuntimeError(f"codec: got {_codec_name(number)!r}, expected {_codec_name(self._number)!r}")
        parts = self._parts()
        expected_bytes = self._begin + sum(map(len, parts))
        if received_bytes != expected_bytes:
            raise RuntimeError(f"size: got {received_bytes} bytes, expected {expected_bytes}")
        got = {
            "magic": (magic, MAGIC),
            "version": (version, VERSION),
            "array": (name.rstrip(b"\0"), self.array.name.encode()),
            "round": (got_round, round_index),
            "shape": ((count, rows, columns), self.shape),
            "senders": (self._listed.tolist(), self.senders),
            "checksum": (checksum, self._checksum(received_bytes)),
        }
        for what, (value, expected) in got.items():
            if value != expected:
                raise RuntimeError(f"{what}: got {value!r}, expected {expected!r}")
        self.part_bytes = [len(part) for part in parts]
        arrays = []
        for participant, part in zip(self.senders, parts, strict=True):
            try:
                if held is None:
                    arrays.append(self.array.decode(part))
                else:
                    self.array.take_changes(part, held[participant])
                    arrays.append(held[participant])
            except ValueError as error:
                raise RuntimeError(f"{self.array.name} of participant {participant}: {error}") from None
            self.array.check(arrays[-1][None], [participant])
        return arrays

    def _parts(self) -> list[NDArray[np.uint8]]:
        """Each sender's part, as long as it says that it is: never beyond the buffer, whatever it says."""
        parts, begin = [], self._begin
        for _ in self.senders:
            end = begin + self.array.part_bytes(self.buffer[begin:])
            parts.append(self.buffer[begin:end])
            begin = end
        return parts

    def _checksum(self, nbytes: int) -> int:
        return zlib.crc32(self.buffer[HEADER.size : nbytes].data)


def _codec_name(number: int) -> object:
    """What a header's number of the codec means, for a message."""
    name = codecs.NAMES.get(number % SKIPPING)
    return number if name is None else f"{name}, skipping rows" if number >= SKIPPING else name


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
        return staging.stacked(near, self._pinned) if near else torch.empty(0, self._array.rows, self._array.columns)

    def __iter__(self) -> Iterator[int]:
        return iter(self._hosted)

    def __len__(self) -> int:
        return len(self._hosted)


@dataclass
class Ledger:
    """Bytes that crossed edges of the graph in the last round, by hosted participant, and bytes given to MPI in all.

    An edge is charged the message that would carry one participant's array alone, whether or not it crosses a rank: the
    traffic of the method does not depend on hosting. Rows that are skipped do not cross.
    """

    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)
    mpi_sent: int = 0


class Exchange:
    """The exchange of one rank's participants with their neighbours.

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
        self._hosted = hosting.of(world.rank)
        self._comm = world.comm.Dup() if world.comm is not None else None
        self._graph: Graph | None = None
        self._routes: list[_Route] = []
        self._receives: list[MPI.Request] = []
        self._sends: list[MPI.Request] = []
        # Hosted participants' arrays as the codec makes them, which is what their neighbours here get, too.
        self._published: Mapping[int, NDArray[np.uint8]] = {}
        # Where unchanged rows are skipped: what is held of the participants hosted here, and of neighbours elsewhere.
        self._held: dict[int, NDArray[np.float32]] = {}
        if array.skip_below is not None:
            self._held = {index: _nothing(array) for index in self._hosted}
        self._round = -1
        self.ledger = Ledger()

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
        expected = (self._array.rows, self._array.columns)
        for participant, array in published.items():
            if tuple(array.shape) != expected or array.dtype != torch.float32:
                raise RuntimeError(
                    f"{self._array.name} of participant {participant}: got {array.dtype} {tuple(array.shape)}, "
                    f"expected torch.float32 {expected}"
                )
            self._array.check(array.numpy()[None], [participant])
        if graph is not self._graph:
            # A new neighbour holds nothing. By its edges, since another object may be the same graph.
            if self._array.skip_below is not None and (self._graph is None or graph.edges != self._graph.edges):
                self._forget()
            self._set_graph(graph)
        encoded = {index: self._encoded(index, array.numpy()) for index, array in published.items()}
        self._round, self._published = round_index, encoded
        tag = round_index % TAGS
        if self._comm is not None:
            self._receives = [self._comm.Irecv(route.incoming.buffer, route.rank, tag) for route in self._routes]
        for route in self._routes:
            route.outgoing.fill(encoded)
            route.outgoing.seal(round_index)
            self.ledger.mpi_sent += route.outgoing.nbytes
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
        if self._array.skip_below is None:
            here = {index: self._array.decode(encoded) for index, encoded in self._published.items()}
        else:
            here = {index: self._held[index] for index in self._hosted}
        arrays = {index: torch.from_numpy(array) for index, array in here.items()}
        arrays |= {index: torch.from_numpy(array) for index, array in self._from_other_ranks(idle)}
        self._charge(self._graph)
        self._published = {}
        return Received(self._array, self._graph, self._hosted, arrays, self._pinned)

    def held(self, participant: int) -> Tensor:
        """What the neighbours of a hosted participant hold of its array, where unchanged rows are skipped.

        Returns
        -------
        float32 tensor (rows, columns)
            In host memory, NaN before anything was sent; it follows what is sent, and belongs to the participant's
            state.
        """
        return torch.from_numpy(self._held[participant])

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
        # Copies: views of the messages' buffers, or of what was given.
        self._held = {index: array.numpy().copy() for index, array in once.finish().arrays.items()}
        self._set_graph(graph)
        if once._comm is not None:
            once._comm.Free()

    def close_round(self) -> Ledger:
        """The round's ledger; a round that exchanges nothing has an empty one."""
        ledger, self.ledger = self.ledger, Ledger(mpi_sent=self.ledger.mpi_sent)
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
                held = None if self._array.skip_below is None else self._held
                arrays = route.incoming.opened(self._round, received_bytes, held)
            except RuntimeError as error:
                raise RuntimeError(f"message of round {self._round} from rank {route.rank}: {error}") from None
            yield from zip(route.incoming.senders, arrays, strict=True)

    def _tell_arrival(self) -> None:
        """The round's messages are seen to be complete; told the first time only."""
        if self._arrived is not None and not math.isnan(self._posted_s):
            self._arrived(self._round, self._posted_s, time.perf_counter())
        self._posted_s = math.nan

    def _encoded(self, participant: int, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """A hosted participant's part of every message with it; what its neighbours hold is brought up to date."""
        if self._array.skip_below is None:
            return self._array.encode(values, participant)
        part = self._array.encode_changes(values, participant, self._held[participant])
        # By the bytes that others get: what is held here and there comes about in one way.
        self._array.take_changes(part, self._held[participant])
        return part

    def _charge(self, graph: Graph) -> None:
        """Enter into the ledger what has crossed each hosted participant's edges."""
        if self._array.skip_below is None:
            edge_bytes = self._array.message_bytes()
            for participant in self._hosted:
                # Edges are undirected: as much comes in as goes out.
                crossed = len(graph.neighbours[participant]) * edge_bytes
                self.ledger.sent[participant] = self.ledger.received[participant] = crossed
            return
        alone_bytes = {index: HEADER.size + 4 + len(part) for index, part in self._published.items()}
        for route in self._routes:
            parts = zip(route.incoming.senders, route.incoming.part_bytes, strict=True)
            alone_bytes |= {index: HEADER.size + 4 + size for index, size in parts}
        for participant in self._hosted:
            near = graph.neighbours[participant]
            self.ledger.sent[participant] = len(near) * alone_bytes[participant]
            self.ledger.received[participant] = sum(alone_bytes[neighbour] for neighbour in near)

    def _forget(self) -> None:
        """Nobody holds anything any more."""
        self._held = {index: self._held[index] for index in self._hosted}
        for held in self._held.values():
            held.fill(np.nan)

    def _set_graph(self, graph: Graph) -> None:
        self._graph, self._routes = graph, self._plan_routes(graph)
        if self._array.skip_below is not None:
            for route in self._routes:
                for participant in route.incoming.senders:
                    self._held.setdefault(participant, _nothing(self._array))

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


def _nothing(array: ArraySpec) -> NDArray[np.float32]:
    """What is held of a participant that has sent nothing: NaN (rows, columns)."""
    return np.full((array.rows, array.columns), np.nan, dtype=np.float32)
