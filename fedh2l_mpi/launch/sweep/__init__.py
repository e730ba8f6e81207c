"""Run many configs, each as its own program, and compare the runs in a table.

Only `cli` and other parts of `launch` may import this package.
"""

from fedh2l_mpi.launch.sweep.sweep import listing, prepare, run, tabulate
from fedh2l_mpi.launch.sweep.sweep_file import load

__all__ = ["listing", "load", "prepare", "run", "tabulate"]
