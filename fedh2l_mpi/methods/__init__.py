"""Learning methods, each a small class in its own file, all driven by the same round loop."""

from fedh2l_mpi.config import Config
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods.d_psgd import DPsgd
from fedh2l_mpi.methods.distributed_distillation import DistributedDistillation
from fedh2l_mpi.methods.dml import DeepMutualLearning
from fedh2l_mpi.methods.fedavg import FedAvg, FedProx
from fedh2l_mpi.methods.fedh2l import FedH2L
from fedh2l_mpi.methods.fedmd import FedMD
from fedh2l_mpi.methods.independent import Independent
from fedh2l_mpi.methods.method import Method, Round
from fedh2l_mpi.methods.pooled import Pooled
from fedh2l_mpi.methods.seed_supervised import SeedSupervised
from fedh2l_mpi.users_own import imported

__all__ = ["METHODS", "Method", "Round", "build"]

METHODS: dict[str, type[Method]] = {
    "independent": Independent,
    "seed_supervised": SeedSupervised,
    "pooled": Pooled,
    "fedh2l": FedH2L,
    "dml": DeepMutualLearning,
    "fedmd": FedMD,
    "distributed_distillation": DistributedDistillation,
    "d_psgd": DPsgd,
    "fedavg": FedAvg,
    "fedprox": FedProx,
}


def build(config: Config) -> Method:
    """The method that a resolved config names.

    Raises
    ------
    UserError
        If it is unknown, or does not fit the seed set, the models or the graph of the config.
    """
    name = config.method.name
    method = (METHODS.get(name) or _users_own(name))(config.method, config.seed_set.labelled)
    architectures = sorted({config.architecture(index) for index in range(config.size)})
    if method.shares_parameters and len(architectures) > 1:
        raise UserError(
            f"method.name: {name!r} averages parameters, so all participants need one architecture, but models gives "
            f"{', '.join(architectures)}; set models to one of them, or choose a method that exchanges posteriors"
        )
    if method.needs_complete_graph and config.topology.kind != "complete":
        raise UserError(
            f"topology.kind: got {config.topology.kind!r}, but method {name!r} averages over all participants; "
            "set topology.kind=complete (d_psgd averages over the neighbours of any graph)"
        )
    return method


def _users_own(name: str) -> type[Method]:
    kind: type[Method] = imported("method.name", name)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"method.name: {name!r} must be a subclass of fedh2l_mpi.methods.Method, got {kind!r}")
    return kind
