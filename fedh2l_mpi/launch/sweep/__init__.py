"""Sweeps: many runs, each a program of its own, and the table that compares them.

file (what a sweep file expands to), place (one element's paths, lock and state), runner (starts and ends the runs),
follower (what a person sees meanwhile), command (all of it put together).
"""

from fedh2l_mpi.launch.sweep.sweep import listing, prepare, run, tabulate
from fedh2l_mpi.launch.sweep.sweep_file import load

__all__ = ["listing", "load", "prepare", "run", "tabulate"]
