"""Models: the zoo, torchvision's, a user's own class; pretrained weights; storage and optimisers of their parameters.

`exchange`, `participant` and every room above them may import it.
"""

from fedh2l_mpi.models.registry import build, check_logits, check_weights, is_own, weights_digest

__all__ = ["build", "check_logits", "check_weights", "is_own", "weights_digest"]
