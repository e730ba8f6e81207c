"""Time messages of a run's size around a ring of ranks, and compare the clocks of the hosts."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedh2l_mpi.launch.doctor.findings import Finding, fact, failure, good, warning
from fedh2l_mpi.runtime.clocks import clock_offsets
from fedh2l_mpi.runtime.world import World

if TYPE_CHECKING:
    from fedh2l_mpi.config import Config

ROUNDS, WARM_UP = 20, 3
# Largest number of hosts whose clocks are compared with rank 0's.
LISTED = 64
SKEW_S = 1.0


@dataclass(frozen=True)
class Load:
    """Message that an edge of the graph carries in each round.

    Attributes
    ----------
    name : str
        Name and shape of the array.
    message_bytes : int
        Size of one participant's message.
    """

    name: str
    message_bytes: int


def load_of(config: "Config") -> Load | None:
    """Return the message that a resolved config sends over an edge, or None if its method exchanges nothing.

    Raises
    ------
    UserError
        If data, models or method do not fit the config. A run would raise the same error.
    """
    from fedh2l_mpi import methods, models
    from fedh2l_mpi.data import federated
    from fedh2l_mpi.data.registry import open_source
    from fedh2l_mpi.planning import requirements
    from fedh2l_mpi.planning.participant_limit import refuse_too_many
    from fedh2l_mpi.topology import Topology

    refuse_too_many(config)
    architectures = dict.fromkeys(map(config.architecture, range(config.size)))
    models.check_weights(config.weights, list(architectures))
    Topology(config.topology, config.size, config.seed, config.rounds)
    source = open_source(config.data)
    plan = federated.plan(config, source)
    built = [models.build(name, source.form, source.classes, 0, config.weights.get(name)) for name in architectures]
    participant = requirements.stand_in_participant(config, source, built[0])
    sent = methods.build(config).array(participant, plan.seed_rows_per_round, plan.classes)
    if sent is None:
        return None
    return Load(f"{sent.name} of {sent.rows} x {sent.columns}", sent.coded(config.exchange).message_bytes())


def examine(world: World, load: Load | None, deadline_s: float) -> list[Finding]:
    """Time the ring and compare the clocks. **Collective.**

    Returns
    -------
    list of Finding
        Valid on rank 0 only.

    Raises
    ------
    LateRankError
        If a message does not arrive within the deadline.
    """
    if world.size == 1:
        return [fact("messages", "none: in one process, participants pass their arrays directly")]
    lines = []
    if load is not None:
        seconds, broken = ring(world, load.message_bytes, deadline_s)
        lines.append(ring_finding(load, world.collect(seconds), world.collect(broken)))
    else:
        lines.append(fact("messages", "not timed: the config sends none, or their size is unknown"))
    hosts = world.collect(world.host)
    partners = [rank for rank, host in enumerate(hosts) if hosts.index(host) == rank and host != hosts[0]][:LISTED]
    offsets = clock_offsets(world, partners, deadline_s)
    return [*lines, clocks([hosts[rank] for rank in partners], offsets)]


def ring(world: World, message_bytes: int, deadline_s: float) -> tuple[float, int]:
    """Send to the next rank and receive from the previous one, ROUNDS times. **Collective.**

    Returns
    -------
    float
        Median time of a round [s], without the warm-up rounds.
    int
        Number of messages that arrived changed.
    """
    comm = world.comm
    if comm is None:
        raise RuntimeError("a ring needs several ranks")
    following, previous = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    incoming, times, broken = bytearray(message_bytes), [], 0
    for number in range(-WARM_UP, ROUNDS):
        outgoing = _pattern(world.rank, number, message_bytes)
        expected = _pattern(previous, number, message_bytes)
        begin = time.perf_counter()
        requests = [comm.Irecv(incoming, previous, 0), comm.Isend(outgoing, following, 0)]
        world.wait(requests, [previous, following], deadline_s, f"message of the ring, round {number},")
        if number >= 0:
            times.append(time.perf_counter() - begin)
        broken += incoming != expected
    return statistics.median(times), broken


def _pattern(rank: int, number: int, size: int) -> bytearray:
    """Return bytes that no other rank and no other round sends."""
    word = (rank * 1_000_003 + number + WARM_UP).to_bytes(8, "little")
    return bytearray((word * (size // 8 + 1))[:size])


def ring_finding(load: Load, seconds: Sequence[float], broken: Sequence[int]) -> Finding:
    """Report the ring, given every rank's median time [s] and its number of changed messages."""
    if any(broken):
        rank = next(rank for rank, count in enumerate(broken) if count)
        text = f"{sum(broken)} of {len(broken) * (ROUNDS + WARM_UP)} arrived changed, the first at rank {rank}"
        return failure("messages", text, "try another MPI or another network, because this one changes data")
    median, slowest = statistics.median(seconds), max(seconds)
    return good(
        "messages",
        f"{load.name} ({load.message_bytes:,} bytes) from every rank to the next: median of {ROUNDS} rounds "
        f"{1e3 * median:.2f} ms ({load.message_bytes / median / 1e6:,.0f} MB/s), at the slowest rank "
        f"({seconds.index(slowest)}) {1e3 * slowest:.2f} ms",
    )


def clocks(hosts: Sequence[str], offsets: Sequence[tuple[float, float]]) -> Finding:
    """Report how far the hosts' clocks differ, given the result of `clock_offsets`."""
    if not hosts:
        return fact("clocks", "one host, one clock")
    if not offsets:
        return fact("clocks", "rank 0 compares them")
    host, (offset, unsure) = max(zip(hosts, offsets, strict=True), key=lambda pair: abs(pair[1][0]))
    text = f"of {len(hosts) + 1} hosts, that of {host} differs most from rank 0's: {1e3 * offset:+.1f} ms"
    text += f" (give or take {1e3 * unsure:.1f})"
    if abs(offset) > SKEW_S:
        return warning("clocks", f"{text}, so times in logs cannot be compared", "set up NTP or chrony")
    return good("clocks", text)
