"""Learning methods, each a small class in its own file, all driven by the same round loop.

`evaluation` and every room above it may import it.
"""

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.method import CombineOptions
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.d_psgd import DPsgd
from fedh2l_mpi.methods.distributed_distillation import DistributedDistillation
from fedh2l_mpi.methods.dml import DeepMutualLearning
from fedh2l_mpi.methods.ds_fl import DsFl
from fedh2l_mpi.methods.fd import FederatedDistillation
from fedh2l_mpi.methods.fedavg import FedAvg, FedProx
from fedh2l_mpi.methods.fedavg_finetuned import FedAvgFinetuned
from fedh2l_mpi.methods.feddf import FedDF
from fedh2l_mpi.methods.fedh2l import FedH2L
from fedh2l_mpi.methods.fedmd import FedMD
from fedh2l_mpi.methods.fedproto import FedProto
from fedh2l_mpi.methods.fml import Fml
from fedh2l_mpi.methods.gradients import COMBINERS
from fedh2l_mpi.methods.independent import Independent
from fedh2l_mpi.methods.kt_pfl import KtPfl
from fedh2l_mpi.methods.pooled import Pooled
from fedh2l_mpi.methods.posterior_method import PosteriorMethod
from fedh2l_mpi.methods.proxyfl import ProxyFL
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.methods.seed_supervised import SeedSupervised
from fedh2l_mpi.runtime.plugins import Plugin, load_class, reporting

__all__ = ["METHODS", "Method", "PosteriorMethod", "Round", "build", "is_own"]

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
    "fedavg_finetuned": FedAvgFinetuned,
    "fd": FederatedDistillation,
    "fedproto": FedProto,
    "proxyfl": ProxyFL,
    "fml": Fml,
    "ds_fl": DsFl,
    "feddf": FedDF,
    "kt_pfl": KtPfl,
}


def build(config: Config) -> Method:
    """Return the method that a resolved config names.

    Raises
    ------
    UserError
        If the method is unknown, or does not fit the seed set, the models or the graph of the config.
    """
    name = config.method.name
    kind = METHODS.get(name) or _users_own(name)
    with reporting("cannot be built", Plugin("method.name", name)):
        method = kind(config.method, config.seed_set.labelled)
    per_neighbour = isinstance(config.method, CombineOptions) and config.method.combine == "gem_neighbours"
    if per_neighbour and not method.constrains_each_neighbour:
        raise UserError(
            f"method.combine: got 'gem_neighbours', but {name!r} makes no gradient for each neighbour. Fix: use "
            f"{', '.join(COMBINERS)}. A class that makes such gradients sets constrains_each_neighbour = True."
        )
    architectures = sorted({config.architecture(index) for index in range(config.size)})
    if method.shares_parameters and len(architectures) > 1:
        raise UserError(
            f"method.name: {name!r} averages parameters, so all participants need one architecture, but models gives "
            f"{', '.join(architectures)}. Fix: set models to one of them, or choose a method that exchanges posteriors."
        )
    if method.needs_complete_graph and config.topology.kind != "complete":
        raise UserError(
            f"topology.kind: got {config.topology.kind!r}, but method {name!r} averages over all participants. "
            "Fix: set topology.kind=complete, or use d_psgd, which averages over the neighbours of any graph."
        )
    exchanges = type(method).array is not Method.array
    if config.exchange.keep_posteriors is not None and not exchanges:
        raise UserError(
            f"exchange.keep_posteriors: got {config.exchange.keep_posteriors}, but method {name!r} exchanges nothing. "
            "Fix: set it to null."
        )
    rows_are_samples = exchanges and not (method.shares_parameters or method.publishes_classes)
    if config.exchange.skip_below is not None and rows_are_samples:
        _check_rows_stay(config)
    return method


def is_own(name: str) -> bool:
    """Return True if the name is that of a user's own class."""
    return name not in METHODS


def _check_rows_stay(config: Config) -> None:
    """Raise `UserError` unless the rows of every round belong to the same inputs, so that they can be compared."""
    skipping = f"exchange.skip_below={config.exchange.skip_below}"
    if config.seed_set.views != "none":
        raise UserError(
            f"seed_set.views: got {config.seed_set.views!r}, must be 'none' for {skipping}, because views give every "
            "round different images. Fix: set seed_set.views=none, or exchange.skip_below=null."
        )
    if config.seed_set.samples_per_round is not None:
        raise UserError(
            f"seed_set.samples_per_round: got {config.seed_set.samples_per_round}, must be null (the whole seed set) "
            f"for {skipping}, because every round draws a different subset. Fix: set seed_set.samples_per_round=null "
            "(seed_set.max_samples limits the seed set), or exchange.skip_below=null."
        )


def _users_own(name: str) -> type[Method]:
    kind: type[Method] = load_class("method.name", name)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"method.name: {name!r} must be a subclass of fedh2l_mpi.methods.Method, got {kind!r}")
    return kind
