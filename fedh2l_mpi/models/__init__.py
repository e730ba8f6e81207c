"""Architectures: the zoo, torchvision's, a user's own by `package.module:Class`; pretrained weights; flat storage.

`exchange`, `participant` and every room above them may import it.
"""

from fedh2l_mpi.models.registry import build, check_weights, weights_digest

__all__ = ["build", "check_weights", "weights_digest"]
