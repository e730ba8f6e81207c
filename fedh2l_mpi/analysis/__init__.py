"""Offline: from a run's metrics file to what a person looks at. Imports neither torch nor MPI."""

from fedh2l_mpi.analysis.dataset import open_run, open_runs

__all__ = ["open_run", "open_runs"]
