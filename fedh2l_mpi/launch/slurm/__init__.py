"""Batch jobs for Slurm: job (their text, a pure function), command (from a user's options, checked as a run would)."""

from fedh2l_mpi.launch.slurm.request import SlurmCommand, execute, parse

__all__ = ["SlurmCommand", "execute", "parse"]
