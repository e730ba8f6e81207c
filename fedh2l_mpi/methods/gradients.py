"""Rules that combine the private gradient g_L and the seed gradient g_S, at the same weights, into one direction.

Every rule is a pair of weights (a, b) for `a g_L + b g_S`. It uses only the three inner products of the two gradients,
and these numbers stay on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedh2l_mpi import losses

# Rounding to float32 (1.2e-7 per number) adds up to about this share of the longest gradient's length.
VANISHING = 1e-6


@dataclass(frozen=True)
class InnerProducts:
    """Inner products <g_L, g_L>, <g_S, g_S> and <g_L, g_S>, each a tensor without dimensions."""

    private: Tensor
    seed: Tensor
    cross: Tensor

    @staticmethod
    def of(g_private: Tensor, g_seed: Tensor) -> "InnerProducts":
        """From two flat gradients; from those of several participants (G, W), products (G,)."""
        return InnerProducts(_dot(g_private, g_private), _dot(g_seed, g_seed), _dot(g_private, g_seed))

    @property
    def cosine(self) -> Tensor:
        """Cosine of the angle between the two gradients; 0 if either vanishes."""
        # Roots come first, because the product could leave float32's range; rounding may leave [-1, 1].
        return _ratio(self.cross, self.private.sqrt() * self.seed.sqrt()).clamp(-1, 1)

    @property
    def conflict(self) -> Tensor:
        """1 if the two gradients oppose each other (negative inner product), else 0."""
        return (self.cross < 0).to(self.cross.dtype)


Weights = tuple[Tensor, Tensor]


def gem(products: InnerProducts) -> Weights:
    """Return the weights of the vector nearest to g_L + g_S that has a non-negative inner product with both.

    To first order, neither loss rises. At most one of the two constraints is violated, so the nearest vector is the
    projection onto the half-space of that constraint, and it also satisfies the other one.

    Source: Lopez-Paz and Ranzato, "Gradient episodic memory", 2017 (a quadratic programme there; closed form for two).
    """
    over_private = _ratio((products.private + products.cross).clamp(max=0), products.private)
    over_seed = _ratio((products.seed + products.cross).clamp(max=0), products.seed)
    return 1 - over_private, 1 - over_seed


def project(products: InnerProducts) -> Weights:
    """Return the weights of g_L + g_S without the part of g_S that opposes g_L.

    Source: Chaudhry et al., "Efficient lifelong learning with A-GEM", 2019, equation 11.
    """
    opposing = products.cross.clamp(max=0)
    return 1 - _ratio(opposing, products.private), torch.ones_like(opposing)


def pcgrad(products: InnerProducts) -> Weights:
    """Return the weights of g_L + g_S, each without the part that opposes the other.

    Source: Yu et al., "Gradient surgery for multi-task learning", 2020, algorithm 1 for two tasks.
    """
    opposing = products.cross.clamp(max=0)
    return 1 - _ratio(opposing, products.private), 1 - _ratio(opposing, products.seed)


def plain_sum(products: InnerProducts) -> Weights:
    """Return the weights of g_L + g_S."""
    one = torch.ones_like(products.cross)
    return one, one


COMBINERS: dict[str, Callable[[InnerProducts], Weights]] = {
    "gem": gem,
    "project": project,
    "pcgrad": pcgrad,
    "sum": plain_sum,
}


def nearest_in_cone(gram_KK: Tensor) -> Tensor:
    """Return weights (K,): the sum of K weighted gradients is the vector nearest to their plain sum in the cone.

    Every vector of the cone has a non-negative inner product with each gradient. The vector is sum_k (1 + v_k) g_k, and
    v >= 0 minimises |A (v + 1)|^2 with A^T A = G, the Gram matrix. SciPy solves this small non-negative least-squares
    problem on the host; `gem` is the closed form for two gradients. A gradient shorter than the rounding error of the
    longest one is no constraint, because its direction is random.

    Parameters
    ----------
    gram_KK : float tensor (K, K)
        Inner products of the gradients.

    Source: Lopez-Paz and Ranzato, "Gradient episodic memory", 2017, equations 8 to 12.
    """
    from scipy.optimize import nnls

    gram = gram_KK.double().cpu().numpy()
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    lengths_K = np.sqrt(gram.diagonal())
    constrains_K = lengths_K >= VANISHING * lengths_K.max()
    multipliers_K = np.zeros(len(gram))
    multipliers_K[constrains_K], _ = nnls(root[:, constrains_K], -root.sum(axis=1))
    return torch.from_numpy(1 + multipliers_K).to(gram_KK)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() == 1:
        return a.dot(b)
    if losses.needs_single_rows(a):
        return torch.stack([one.dot(other) for one, other in zip(a, b, strict=True)])
    # A batched matrix product could round to TF32.
    return (a * b).sum(dim=-1)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, or 0 if `below` is 0, because a gradient that vanishes is no constraint."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
