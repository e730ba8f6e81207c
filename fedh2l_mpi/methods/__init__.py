"""Learning methods, each a small class in its own file, all driven by the same round loop."""

from fedh2l_mpi.config import Config
from fedh2l_mpi.methods.fedh2l import FedH2L


def build(config: Config) -> FedH2L:
    """The method that the config names."""
    return FedH2L(config.method, labelled=config.seed_set.labelled)
