"""Everybody's data in one place: the upper bound."""

from fedh2l_mpi.methods.seed_supervised import SeedSupervised


class Pooled(SeedSupervised):
    """Each architecture trained on everybody's private data and the seed set, with as many steps as the others.

    It exchanges no message, because it breaks what federated learning is for: the private data lie in one place.
    """

    pools_private_data = True
    caution = "pooled puts everybody's private data in one place: an upper bound, which breaks privacy"
