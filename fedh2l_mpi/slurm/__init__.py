"""Batch jobs for Slurm: job (their text, a pure function), command (from a user's options, checked as a run would)."""

from fedh2l_mpi.slurm.command import SlurmCommand, execute, parse
from fedh2l_mpi.slurm.job import script

__all__ = ["SlurmCommand", "execute", "parse", "script"]
