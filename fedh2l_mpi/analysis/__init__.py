"""Read, summarise, compare and draw runs from their metrics files. Imports neither torch nor MPI.

`build` and every room above it may import it.
"""

from fedh2l_mpi.analysis.dataset import open_run, open_runs

__all__ = ["open_run", "open_runs"]
