"""Architectures: the zoo, a user's own by `package.module:Class`, and flat storage for parameters and gradients."""

from fedh2l_mpi.models.registry import build

__all__ = ["build"]
