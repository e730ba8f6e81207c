"""A round of the loop with seed samples of one's own, without a federation."""

from fedh2l_mpi.config import SeedSetConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.seed_set import SeedRound, SeedSet
from fedh2l_mpi.methods import Round
from fedh2l_mpi.topology import Graph


def a_round_of(some: Labelled, graph: Graph, private_samples: tuple[int, ...] = (), index: int = 0) -> Round:
    """Round whose seed samples are the whole seed set, as they are; ten classes."""
    seed_set = SeedSet(some, len(some), 10, SeedSetConfig(views="none"), 0)
    return Round(index, graph, SeedRound(index, some.stored, some.labels, some.labels), private_samples, seed_set, 40)
