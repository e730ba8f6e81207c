"""Training on the pooled data of all participants: the upper bound."""

from fedh2l_mpi.methods.seed_supervised import SeedSupervised


class Pooled(SeedSupervised):
    """Every architecture trains on the private data of all participants and on the seed set, with E + M steps.

    No messages are exchanged, because all private data are in one place, which federated learning exists to avoid.
    """

    pools_private_data = True
    records_steps = True
    caution = "pooled puts the private data of all participants in one place: it is an upper bound without privacy"
