"""MPI simulator of FedH2L: participants with unlike models and unlike data learn from each other's posteriors.

FedH2L is due to Li, Zhou, Wang, Mi and Hospedales, "FedH2L: Federated Learning with Model and Statistical
Heterogeneity", arXiv 2101.11296.

    import fedh2l_mpi as fh

    run = fh.run({"rounds": 20}, out="runs/a")
    run["accuracy_all"]

Importing this package does no work: it loads no torch, no MPI and no HDF5 before a name is used that needs them.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "ArraySpec",
    "DataSet",
    "Method",
    "UserError",
    "__version__",
    "load_config",
    "losses",
    "open_run",
    "open_runs",
    "run",
]

if TYPE_CHECKING:
    from fedh2l_mpi import losses
    from fedh2l_mpi.analysis import open_run, open_runs
    from fedh2l_mpi.api import load_config, run
    from fedh2l_mpi.data.data_set import DataSet
    from fedh2l_mpi.errors import UserError
    from fedh2l_mpi.exchange import ArraySpec
    from fedh2l_mpi.methods import Method


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    import importlib

    homes = {
        "ArraySpec": "exchange",
        "DataSet": "data.data_set",
        "Method": "methods",
        "UserError": "errors",
        "load_config": "api",
        "open_run": "analysis",
        "open_runs": "analysis",
        "run": "api",
    }
    if name == "losses":
        return importlib.import_module("fedh2l_mpi.losses")
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedh2l_mpi.{homes[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names, for completion in a shell or a notebook."""
    return __all__
