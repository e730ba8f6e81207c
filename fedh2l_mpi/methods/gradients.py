"""Combining the private gradient g_L and the seed gradient g_S, taken at the same weights, into one direction.

Every rule is a pair of weights (a, b) for `a g_L + b g_S`, found from the three inner products of the two gradients, so
no rule needs more than these three numbers, and none of them leaves the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Of the longest gradient's length: what rounding of float32 (1.2e-7 each) adds up to in a shorter one.
VANISHING = 1e-6


@dataclass(frozen=True)
class InnerProducts:
    """<g_L, g_L>, <g_S, g_S> and <g_L, g_S>, each a tensor without dimensions."""

    private: Tensor
    seed: Tensor
    cross: Tensor

    @staticmethod
    def of(g_private: Tensor, g_seed: Tensor) -> "InnerProducts":
        """From two flat gradients; from those of several participants (G, W), products (G,)."""
        return InnerProducts(_dot(g_private, g_private), _dot(g_seed, g_seed), _dot(g_private, g_seed))

    @property
    def cosine(self) -> Tensor:
        """Cosine of the angle between the two; 0 if either vanishes."""
        # Roots before the product, which would leave float32's range; rounding may leave [-1, 1].
        return _ratio(self.cross, self.private.sqrt() * self.seed.sqrt()).clamp(-1, 1)

    @property
    def conflict(self) -> Tensor:
        """1 where the two gradients oppose each other (negative inner product), else 0."""
        return (self.cross < 0).to(self.cross.dtype)


Weights = tuple[Tensor, Tensor]


def gem(products: InnerProducts) -> Weights:
    """The vector nearest to g_L + g_S that has a non-negative inner product with both.

    To first order neither loss rises. Of two gradients at most one constraint is violated, so the nearest vector is
    the projection onto that one's half-space, and it fulfils the other.

    Source: Lopez-Paz and Ranzato, "Gradient episodic memory", 2017 (a quadratic programme there; closed form for two).
    """
    over_private = _ratio((products.private + products.cross).clamp(max=0), products.private)
    over_seed = _ratio((products.seed + products.cross).clamp(max=0), products.seed)
    return 1 - over_private, 1 - over_seed


def project(products: InnerProducts) -> Weights:
    """g_L + g_S, with what opposes g_L dropped from g_S.

    Source: Chaudhry et al., "Efficient lifelong learning with A-GEM", 2019, equation 11.
    """
    opposing = products.cross.clamp(max=0)
    return 1 - _ratio(opposing, products.private), torch.ones_like(opposing)


def pcgrad(products: InnerProducts) -> Weights:
    """g_L + g_S, each with what opposes the other dropped.

    Source: Yu et al., "Gradient surgery for multi-task learning", 2020, algorithm 1 for two tasks.
    """
    opposing = products.cross.clamp(max=0)
    return 1 - _ratio(opposing, products.private), 1 - _ratio(opposing, products.seed)


def plain_sum(products: InnerProducts) -> Weights:
    """g_L + g_S."""
    one = torch.ones_like(products.cross)
    return one, one


COMBINERS: dict[str, Callable[[InnerProducts], Weights]] = {
    "gem": gem,
    "project": project,
    "pcgrad": pcgrad,
    "sum": plain_sum,
}


def nearest_in_cone(gram_KK: Tensor) -> Tensor:
    """Weights (K,) of K gradients in the vector nearest to their sum that has a non-negative inner product with each.

    With Gram matrix G, the vector is sum_k (1 + v_k) g_k, and v >= 0 minimises |A (v + 1)|^2 where A^T A = G: a small
    non-negative least-squares problem, solved by SciPy on the host. `gem` is the closed form for two. A gradient that
    is shorter than what float32 rounds off the longest one constrains nothing: its direction is that of rounding.

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
    # Row by row: one product for all of them would add up in another order.
    return a.dot(b) if a.dim() == 1 else torch.stack([one.dot(other) for one, other in zip(a, b, strict=True)])


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where `below` is 0: a gradient that vanishes constrains nothing."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
