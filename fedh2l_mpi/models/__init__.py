"""Architectures: the zoo, torchvision's, a user's own by `package.module:Class`; pretrained weights; flat storage."""

from fedh2l_mpi.models.registry import build, check_weights, weights_digest

__all__ = ["build", "check_weights", "weights_digest"]
