"""Configs as a run has them."""

from fedh2l_mpi.config import Config, loading


def settled(*overrides: str, ranks: int = 1) -> Config:
    return loading.load(None, overrides).resolved(ranks, launched=False)
