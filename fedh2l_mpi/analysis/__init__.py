"""Read, summarise, compare, plot and export the metrics files of runs, without torch and MPI.

Rooms from `build` upwards may import it.
"""

from fedh2l_mpi.analysis.dataset import open_run, open_runs

__all__ = ["open_run", "open_runs"]
