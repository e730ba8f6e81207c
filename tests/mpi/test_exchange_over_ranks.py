"""Messages between real ranks: every size, order, graph, and every way in which they can go wrong."""

import numpy as np
import pytest
import torch

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.errors import LateRankError, UserError
from fedh2l_mpi.exchange import ArraySpec, Exchange
from fedh2l_mpi.exchange.message import Message
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph


def posteriors(samples: int, classes: int) -> ArraySpec:
    return ArraySpec("posteriors", samples, classes, sums_to_one=True)


def posterior_of(participant: int, round_index: int, samples: int, classes: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1000 * round_index + participant)
    return torch.randn(samples, classes, generator=draw).softmax(dim=1)


def assert_rounds_arrive(comm, graphs: list[Graph], samples: int, classes: int) -> Exchange:
    """Run one round for each graph, checking on every rank what each of its participants receives."""
    world, participants = World(comm), len(graphs[0].neighbours)
    hosting = Hosting(participants, world.size)
    exchange = Exchange(world, hosting, posteriors(samples, classes), deadline_s=30.0)
    for round_index, graph in enumerate(graphs):
        published = {i: posterior_of(i, round_index, samples, classes) for i in hosting.participants_of(world.rank)}
        exchange.start(round_index, graph, published)
        exchange.progress()
        theirs = exchange.finish()
        assert set(theirs) == set(hosting.participants_of(world.rank))
        for participant, received in theirs.items():
            near = graph.neighbours[participant]
            assert tuple(received.shape) == (len(near), samples, classes)
            for slot, neighbour in enumerate(near):
                assert torch.equal(received[slot], posterior_of(neighbour, round_index, samples, classes))
    return exchange


@pytest.mark.mpi(ranks=4)
# 40 bytes to 4 MB: below and far above what MPI sends without asking the receiver first.
@pytest.mark.parametrize(("samples", "classes"), [(1, 10), (100, 10), (10_000, 10), (1_000, 1_000)])
def test_every_size_of_message_arrives_on_a_ring(comm, samples, classes):
    ring = Graph(4, [(0, 1), (1, 2), (2, 3), (3, 0)])
    exchange = assert_rounds_arrive(comm, [ring] * 3, samples, classes)
    # One participant a rank: what the ledger says is what went through MPI.
    assert exchange.ledger.sent[comm.rank] * 3 == exchange.mpi_sent
    assert exchange.ledger.sent[comm.rank] == 2 * posteriors(samples, classes).message_bytes()


@pytest.mark.mpi(ranks=3)
def test_graphs_may_change_every_round_and_leave_participants_alone(comm):
    draw = np.random.default_rng(0)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    graphs = [Graph(7, [pair for pair in pairs if draw.random() < share]) for share in (0.3, 1.0, 0.0, 0.5, 0.1)]
    assert_rounds_arrive(comm, graphs, samples=50, classes=10)


@pytest.mark.mpi(ranks=3)
def test_hosting_packs_one_message_for_each_pair_of_ranks(comm):
    complete = Graph(6, [(i, j) for i in range(6) for j in range(i)])
    exchange = assert_rounds_arrive(comm, [complete], samples=20, classes=10)
    assert exchange.mpi_sent == 2 * posteriors(20, 10).message_bytes(2)
    assert set(exchange.ledger.sent.values()) == {5 * posteriors(20, 10).message_bytes()}


CODECS = [{"codec": name} for name in ("float32", "float16", "bfloat16", "uint8")]
CODECS += [{"codec": "top_k", "top_k": k} for k in (1, 3)]


@pytest.mark.mpi(ranks=3)
def test_with_each_codec_two_and_three_ranks_bring_what_one_hands_over(comm):
    graph, participants = Graph(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2)]), 5
    published = {index: posterior_of(index, 0, 31, 300) for index in range(participants)}
    pair = comm.Split(0 if comm.rank < 2 else 1)
    for settings in CODECS:
        array = posteriors(31, 300).coded(ExchangeConfig(**settings))
        alone = Exchange(World(None), Hosting(participants, 1), array, deadline_s=20.0)
        alone.start(0, graph, published)
        expected = alone.finish()
        for world in [World(comm), *([World(pair)] if comm.rank < 2 else [])]:
            hosting = Hosting(participants, world.size)
            hosted = hosting.participants_of(world.rank)
            exchange = Exchange(world, hosting, array, deadline_s=20.0)
            exchange.start(0, graph, {index: published[index] for index in hosted})
            for index, received in exchange.finish().items():
                assert torch.equal(received, expected[index])
                assert exchange.ledger.sent[index] == alone.ledger.sent[index]
            others = {index for own in hosted for index in graph.neighbours[own]} - set(hosted)
            assert others, "no participant's array crosses ranks"


def creeping(participant: int, round_index: int) -> torch.Tensor:
    """Posteriors that move by less from round to round, at another pace for every participant and row."""
    scores = posterior_of(participant, 0, 31, 10).log() + posterior_of(participant, 1, 31, 10).log() / (1 + round_index)
    return scores.softmax(dim=1)


def rounds_of(exchange: Exchange, hosted: range, graphs: list[Graph], first: int = 0) -> list[tuple]:
    """By round and participant: what arrives, the bytes sent and received, and what neighbours hold then."""
    found = []
    for round_index in range(first, len(graphs)):
        exchange.start(round_index, graphs[round_index], {i: creeping(i, round_index) for i in hosted})
        arrived = {i: theirs.numpy().tobytes() for i, theirs in exchange.finish().items()}
        ledger = exchange.close_round()
        found.append((arrived, ledger.sent, ledger.received, {i: exchange.cached(i).clone() for i in hosted}))
    return found


@pytest.mark.mpi(ranks=3)
def test_where_rows_are_skipped_every_number_of_ranks_brings_the_same_and_so_does_going_on(comm):
    ring, other = Graph(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]), Graph(5, [(0, 2), (2, 4), (1, 3), (1, 4)])
    graphs = [ring, ring, ring, Graph(5, ring.edges), other, other]
    pair = comm.Split(0 if comm.rank < 2 else 1)
    for codec in ("float32", "float16", "uint8"):
        array = posteriors(31, 10).coded(ExchangeConfig(codec=codec, skip_below=0.02))
        expected = rounds_of(Exchange(World(None), Hosting(5, 1), array, deadline_s=20.0), range(5), graphs)
        whole = array.message_bytes()
        assert expected[2][1] != expected[2][2], "all have sent as much as they received"
        assert all(sent < 2 * whole for sent in expected[3][1].values())
        # In the fifth round the graph is another.
        assert expected[4][1] == {0: whole, 1: 2 * whole, 2: 2 * whole, 3: whole, 4: 2 * whole}
        for world in [World(comm), *([World(pair)] if comm.rank < 2 else [])]:
            hosting = Hosting(5, world.size)
            hosted = hosting.participants_of(world.rank)
            unbroken, resumed = (Exchange(world, hosting, array, deadline_s=20.0) for _ in range(2))
            got = rounds_of(unbroken, hosted, graphs)
            resumed.resend(1, graphs[1], got[1][3])
            for rounds in (got, got[:2] + rounds_of(resumed, hosted, graphs, first=2)):
                for here, everywhere in zip(rounds, expected, strict=True):
                    for ours, all_of_it in zip(here[:3], everywhere[:3], strict=True):
                        assert ours == {i: all_of_it[i] for i in hosted}
                    assert all(torch.equal(here[3][i], everywhere[3][i]) for i in hosted)
            if hosted == range(4, 5):
                # Alone on its rank: what the ledger says is what went through MPI.
                assert unbroken.mpi_sent == sum(sent[4] for _, sent, _, _ in got)


@pytest.mark.mpi(ranks=2)
def test_two_participants_exchange_over_their_one_edge(comm):
    assert_rounds_arrive(comm, [Graph(2, [(0, 1)])], samples=5, classes=3)


@pytest.mark.mpi(ranks=3)
def test_a_silent_rank_is_named_when_the_deadline_has_passed(comm):
    world = World(comm)
    exchange = Exchange(world, Hosting(3, 3), posteriors(5, 3), deadline_s=1.0)
    ring = Graph(3, [(0, 1), (1, 2), (2, 0)])
    if world.rank != 1:
        exchange.start(0, ring, {world.rank: posterior_of(world.rank, 0, 5, 3)})
        with pytest.raises(LateRankError, match=r"no posteriors of round 0 from rank 1 within 1 s"):
            exchange.finish()
    comm.Barrier()
    if world.rank == 1:
        # Late, but there: what was sent must be received before MPI may end.
        exchange.start(0, ring, {1: posterior_of(1, 0, 5, 3)})
        exchange.finish()
    comm.Barrier()


@pytest.mark.mpi(ranks=2)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("round", "message of round 4 from rank 0: round: got 5, expected 4"),
        ("nan", "message of round 4 from rank 0: posteriors of participant 0, row 1: .* is not finite"),
        ("bit", "message of round 4 from rank 0: checksum: got"),
        ("short", "message of round 4 from rank 0: size: got 40 bytes"),
    ],
)
def test_a_wrong_message_is_refused_by_its_receiver(comm, fault, says):
    world, edge = World(comm), Graph(2, [(0, 1)])
    if world.rank == 1:
        exchange = Exchange(world, Hosting(2, 2), posteriors(5, 3), deadline_s=20.0)
        exchange.start(4, edge, {1: posterior_of(1, 4, 5, 3)})
        with pytest.raises(RuntimeError, match=says):
            exchange.finish()
        return
    own = comm.Dup()
    message = Message([0], posteriors(5, 3))
    values = posterior_of(0, 4, 5, 3).numpy()
    if fault == "nan":
        values[1, 0] = np.nan
    message.fill({0: posteriors(5, 3).encode(values, 0)})
    message.seal(5 if fault == "round" else 4)
    if fault == "bit":
        message.buffer[-1] ^= 1
    incoming = np.empty_like(message.buffer)
    receive = own.Irecv(incoming, 1, 4)
    own.Isend(message.buffer[: 40 if fault == "short" else None], 1, 4).Wait()
    receive.Wait()


@pytest.mark.mpi(ranks=3)
def test_ranks_that_hold_unlike_things_stop_and_say_what_differs(comm):
    world = World(comm)
    same = {"seed set": b"1", "graph": b"2"}
    world.handshake(same)
    with pytest.raises(RuntimeError, match="have a different graph. Check that both see the same files"):
        world.handshake(same if world.rank < 2 else {**same, "graph": b"3"})


@pytest.mark.mpi(ranks=3)
def test_a_users_mistake_on_one_rank_is_everyones(comm):
    def read() -> None:
        if comm.rank == 1:
            raise UserError("/data/x: cannot be read")

    with pytest.raises(UserError, match="/data/x: cannot be read") as error:
        World(comm).together(read)
    assert error.value.agreed
    assert World(comm).from_first(lambda: comm.rank) == 0


@pytest.mark.mpi(ranks=3)
def test_one_rank_of_a_node_reads_the_rows_of_all_and_its_mistake_is_everybodys(comm):
    world, asked = World(comm), []
    rows_N = [np.array([1, 4, 7]), np.array([], dtype=np.int64), np.array([0, 4])][comm.rank]

    def read(rows):
        asked.append(rows.tolist())
        return np.stack([rows, rows**2], axis=1)

    found = world.read_once_per_node(read, rows_N)
    assert np.array_equal(found, np.stack([rows_N, rows_N**2], axis=1))
    assert asked == ([[0, 1, 4, 7]] if comm.rank == 0 else [])

    def fail(rows):
        raise UserError("images: ends 3 bytes too early")

    with pytest.raises(UserError, match="ends 3 bytes too early"):
        world.together(lambda: world.read_once_per_node(fail, rows_N))
