"""The losses: one function for each formula, all in nats.

Shape letters: B minibatch, C classes, N neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(own_logits_BC: Tensor, targets: Tensor) -> Tensor:
    """Mean over the minibatch of -log softmax(own_logits)[class], in nats; of several participants' (G, B, C), (G,).

    Parameters
    ----------
    own_logits_BC : float tensor (B, C)
        Scores before softmax.
    targets : int64 tensor (B,) or float tensor (B, C)
        Classes, or a distribution over them.
    """
    if own_logits_BC.dim() == 2:
        return functional.cross_entropy(own_logits_BC, targets)
    each = functional.cross_entropy(own_logits_BC.flatten(0, 1), targets.flatten(0, 1), reduction="none")
    mean_G = each.view(own_logits_BC.shape[:2]).mean(dim=-1)
    # The gradient is that of each participant alone, but this mean is rounded in another way than theirs.
    pairs = zip(own_logits_BC.detach(), targets, strict=True)
    exact_G = torch.stack([functional.cross_entropy(own, target) for own, target in pairs])
    return exact_G + (mean_G - mean_G.detach())


def posteriors(logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(logits / T): each row sums to 1."""
    return (logits_BC / temperature).softmax(dim=-1)


def forward_kl(own_log_BC: Tensor, theirs_NBC: Tensor) -> Tensor:
    """KL(neighbour || own) of each neighbour and sample, (N, B), in nats: what a neighbour finds likely, I should."""
    # xlogy, not p * log p: a one-hot posterior has zeros, and 0 * log 0 is NaN.
    return (torch.xlogy(theirs_NBC, theirs_NBC) - theirs_NBC * own_log_BC).sum(dim=-1)


def reverse_kl(own_log_BC: Tensor, theirs_NBC: Tensor) -> Tensor:
    """KL(own || neighbour) of each neighbour and sample, (N, B), in nats: own may choose one of a neighbour's modes.

    A neighbour's zeros count as `FLOOR`, or a one-hot neighbour would be infinitely far.
    """
    return (own_log_BC.exp() * (own_log_BC - theirs_NBC.clamp(min=FLOOR).log())).sum(dim=-1)


def jensen_shannon(own_log_BC: Tensor, theirs_NBC: Tensor) -> Tensor:
    """Mean of the divergences of neighbour and own from their mean, (N, B), in nats; log 2 at most.

    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.
    """
    own_BC = own_log_BC.exp()
    middle_log_NBC = ((own_BC + theirs_NBC) / 2).clamp(min=FLOOR).log()
    theirs = torch.xlogy(theirs_NBC, theirs_NBC) - theirs_NBC * middle_log_NBC
    own = own_BC * (own_log_BC - middle_log_NBC)
    return (theirs + own).sum(dim=-1) / 2


FLOOR = 1e-7
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
}


def mutual_distillation(
    own_logits_BC: Tensor,
    theirs_NBC: Tensor,
    temperature: float = 1.0,
    divergence: str = "forward_kl",
    weights_NB: Tensor | None = None,
) -> Tensor:
    """Mean over neighbours and samples of a divergence, KL(neighbour || own) by default, in nats; 0 without neighbours.

    A mean over neighbours, not a sum: the weight of distillation must not grow with the degree. The caller scales by
    the squared temperature, which keeps the gradient's size independent of T.

    Parameters
    ----------
    own_logits_BC : float tensor (B, C)
        Scores before softmax; gradients flow through these only.
    theirs_NBC : float tensor (N, B, C)
        Neighbours' posteriors at the same temperature, rows summing to 1. For several participants, (N, G, B, C) with
        own logits (G, B, C) gives (G,).
    temperature : float
        T, applied to `own_logits_BC`.
    divergence : str
        A name of DIVERGENCES.
    weights_NB : float tensor (N, B)
        Of each neighbour on each sample, summing to 1 over neighbours; None: all alike.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, for T squared; Zhang et al.,
    "Deep mutual learning", 2018, for peers as each other's teachers.
    """
    if len(theirs_NBC) == 0:
        # Not a constant: an unlabelled seed set without neighbours still needs a (vanishing) gradient.
        return own_logits_BC[..., :0, :].sum(dim=(-2, -1))
    own_log_BC = (own_logits_BC / temperature).log_softmax(dim=-1)
    apart_NB = DIVERGENCES[divergence](own_log_BC, theirs_NBC.detach())
    if weights_NB is not None:
        return (weights_NB * apart_NB).sum(dim=0).mean()
    return apart_NB.movedim(0, -2).flatten(-2).mean(dim=-1)


def logit_distance(own_logits_BC: Tensor, consensus_BC: Tensor) -> Tensor:
    """Mean absolute difference of logits.

    Source: Li and Wang, "FedMD: heterogenous federated learning via model distillation", 2019.
    """
    return functional.l1_loss(own_logits_BC, consensus_BC.detach())
