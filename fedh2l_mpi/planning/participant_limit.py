"""Refuse a number of participants that no process of this machine can list, before anything is allocated for them."""

import resource

from fedh2l_mpi.config import Config
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.planning.memory import EDGE_BYTES, PARTICIPANT_BYTES
from fedh2l_mpi.planning.memory_check import available_bytes
from fedh2l_mpi.runtime.units import size as readable
from fedh2l_mpi.topology import least_edges


def refuse_too_many(config: Config, available: int | None = None, draws_graph: bool = True) -> None:
    """Raise if the list of all participants and edges, which every process keeps, exceeds the available memory.

    Parameters
    ----------
    available : int or None
        Memory for this process [bytes]; None: what the machine and the process's limit leave.
    draws_graph : bool
        False: only participants are counted, because a plan does not draw a large graph.

    Raises
    ------
    UserError
        States both sizes, and the largest number of participants that would fit.
    """
    available = _available_here() if available is None else available

    def needed(participants: int) -> int:
        edges = least_edges(config.topology, participants) if draws_graph else 0
        return PARTICIPANT_BYTES * participants + int(EDGE_BYTES * edges)

    if available is None or needed(config.size) <= available:
        return
    fits, too_many = 0, config.size
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if needed(middle) <= available else (fits, middle)
    raise UserError(
        f"participants: got {config.size}. Every process keeps a list of them and of the edges of the graph "
        f"({config.topology.kind}), which needs an estimated {readable(needed(config.size))}, but "
        f"{readable(available)} are available here. Fix: use {fits} or fewer."
    )


def _available_here() -> int | None:
    """Return the memory that this process may still allocate [bytes]; None if it is unknown."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [available_bytes(), None if limit == resource.RLIM_INFINITY else limit]
    return min((bound for bound in bounds if bound is not None), default=None)
