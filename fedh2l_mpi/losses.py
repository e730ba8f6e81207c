"""Losses: one function for each formula, all in nats.

Shape letters: B minibatch, C classes, N neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def needs_single_rows(values: Tensor) -> bool:
    """Return True if sums over the rows of several participants must be taken one row after the other.

    On a CPU, participants that step together get the bits of those that step alone, and one call for all rows would
    sum in another order. Elsewhere, nobody promises these bits, and every row would be a kernel of its own.
    """
    return values.device.type == "cpu"


def cross_entropy(
    own_logits_BC: Tensor, targets: Tensor, weights_B: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the mean over the minibatch of -log softmax(own_logits)[class], in nats.

    The target is (1 - s) y + s / C, where s is the smoothing and y the class's one-hot vector or the distribution.

    Logits (G, B, C) of several participants give one loss each, (G,).

    Parameters
    ----------
    own_logits_BC : float tensor (B, C)
        Scores before softmax.
    targets : int64 tensor (B,) or float tensor (B, C)
        Classes, or a distribution over them.
    weights_B : float tensor (B,)
        Weight of each sample; the sum is divided by B, whatever the weights are. None: 1 everywhere.
    smoothing : float
        s, from 0 to below 1.

    Source of the smoothing: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016,
    section 7.
    """
    if weights_B is not None:
        classes = own_logits_BC.shape[-1]
        flat = targets.flatten(0, weights_B.dim() - 1)
        each = functional.cross_entropy(
            own_logits_BC.reshape(-1, classes), flat, reduction="none", label_smoothing=smoothing
        )
        return (weights_B * each.view(weights_B.shape)).mean(dim=-1)
    if own_logits_BC.dim() == 2:
        return _mean_cross_entropy(own_logits_BC, targets, smoothing)
    each = functional.cross_entropy(
        own_logits_BC.flatten(0, 1), targets.flatten(0, 1), reduction="none", label_smoothing=smoothing
    )
    mean_G = each.view(own_logits_BC.shape[:2]).mean(dim=-1)
    if not needs_single_rows(mean_G):
        return mean_G
    # The gradient equals that of each participant alone, but this mean is rounded differently, so the value comes from
    # single products.
    pairs = zip(own_logits_BC.detach(), targets, strict=True)
    exact_G = torch.stack([_mean_cross_entropy(own, target, smoothing) for own, target in pairs])
    return exact_G + (mean_G - mean_G.detach())


def _mean_cross_entropy(own_logits_BC: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if not smoothing:
        return functional.cross_entropy(own_logits_BC, targets)
    # Torch's own mean rounds the gradient of a smoothed loss differently from that of several participants at once.
    return functional.cross_entropy(own_logits_BC, targets, reduction="none", label_smoothing=smoothing).mean()


def log_prior(labels_N: Tensor, classes: int) -> Tensor:
    """Return log pi with pi_c = (n_c + 1) / sum over classes of (n + 1), float32 (C,), from the labels of a data set.

    The added 1 (Laplace's rule of succession) keeps the prior of an absent class above 0.
    """
    counts_C = torch.bincount(labels_N, minlength=classes).float() + 1
    return (counts_C / counts_C.sum()).log()


def under_prior(logits_BC: Tensor, log_prior_C: Tensor, strength: float = 1.0) -> Tensor:
    """Return z + tau log pi: scores of the posterior for labels with the prior pi, if z are those for even labels.

    A loss on these scores leaves the prior of the training labels out of z, so that rare classes are not held down.

    Parameters
    ----------
    log_prior_C : float tensor (C,) or (G, 1, C)
        log pi of the labels that the loss is computed on.
    strength : float
        tau; with 0, the scores are unchanged.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", 2020; Menon et al., "Long-tail
    learning via logit adjustment", 2021; in federated learning: Zhang et al., "Federated learning with label
    distribution skew via logits calibration" (FedLC), 2022.
    """
    return logits_BC + strength * log_prior_C


def posteriors_under_prior(theirs_NBC: Tensor, log_prior_C: Tensor, exponent: float = 1.0) -> Tensor:
    """Return q proportional to p pi^exponent, each row summing to 1: posteriors for labels with the prior pi.

    Posteriors at temperature T and strength tau need the exponent tau / T, because softmax((z + tau log pi) / T) is
    proportional to softmax(z / T) pi^(tau / T). Distillation then compares posteriors for one prior, that of the
    samples it is computed on. This is a definition of this project, which follows from `under_prior`.
    """
    weighted_NBC = theirs_NBC * (exponent * log_prior_C).exp()
    return weighted_NBC / weighted_NBC.sum(dim=-1, keepdim=True)


def posteriors(logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Return softmax(logits / T); each row sums to 1."""
    return (logits_BC / temperature).softmax(dim=-1)


def forward_kl(own_log_BC: Tensor, theirs_NBC: Tensor) -> Tensor:
    """Return KL(neighbour || own) of each neighbour and sample, (N, B), in nats.

    It is large where a neighbour finds a class likely and the own model does not.
    """
    # A one-hot posterior has zeros: p * log p would be NaN there, while xlogy is 0.
    return (torch.xlogy(theirs_NBC, theirs_NBC) - theirs_NBC * own_log_BC).sum(dim=-1)


def reverse_kl(own_log_BC: Tensor, theirs_NBC: Tensor) -> Tensor:
    """Return KL(own || neighbour) of each neighbour and sample, (N, B), in nats.

    It lets the own model concentrate on one of the classes that a neighbour finds likely. A neighbour's zeros count as
    `FLOOR`, because otherwise the distance to a one-hot neighbour would be infinite.
    """
    return (own_log_BC.exp() * (own_log_BC - theirs_NBC.clamp(min=FLOOR).log())).sum(dim=-1)


def jensen_shannon(own_log_BC: Tensor, theirs_NBC: Tensor) -> Tensor:
    """Return the mean of the divergences of neighbour and own from their mean, (N, B), in nats; at most log 2.

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
    """Return the mean of a divergence over neighbours and samples, in nats; 0 without neighbours.

    A sum over neighbours would make the weight of distillation grow with the degree, so this is a mean. The caller
    scales by the squared temperature, which keeps the gradient's size independent of T.

    Parameters
    ----------
    own_logits_BC : float tensor (B, C)
        Scores before softmax; gradients flow through these only.
    theirs_NBC : float tensor (N, B, C)
        Neighbours' posteriors at the same temperature, rows summing to 1. Several participants' (N, G, B, C) with own
        logits (G, B, C) give (G,).
    temperature : float
        T, applied to `own_logits_BC`.
    divergence : str
        A name of DIVERGENCES; KL(neighbour || own) by default.
    weights_NB : float tensor (N, B)
        Weight of each neighbour on each sample, summing to 1 over neighbours, or to 0 on a sample that nobody teaches;
        (N, G, B) of several participants. None: equal weights.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, for T squared; Zhang et al.,
    "Deep mutual learning", 2018, for peers as each other's teachers.
    """
    if len(theirs_NBC) == 0:
        # An unlabelled seed set without neighbours still needs a gradient, which is zero; a constant would have none.
        return own_logits_BC[..., :0, :].sum(dim=(-2, -1))
    own_log_BC = (own_logits_BC / temperature).log_softmax(dim=-1)
    apart_NB = DIVERGENCES[divergence](own_log_BC, theirs_NBC.detach())
    if weights_NB is not None:
        return (weights_NB * apart_NB).sum(dim=0).mean(dim=-1)
    return apart_NB.movedim(0, -2).flatten(-2).mean(dim=-1)


def logit_distance(own_logits_BC: Tensor, consensus_BC: Tensor) -> Tensor:
    """Return the mean absolute difference of logits.

    Source: Li and Wang, "FedMD: heterogenous federated learning via model distillation", 2019.
    """
    return functional.l1_loss(own_logits_BC, consensus_BC.detach())


def prototype_distance(embeddings_BK: Tensor, prototypes_BK: Tensor, is_known_B: Tensor) -> Tensor:
    """Return the mean over samples and numbers of (embedding - prototype)^2; a sample without a prototype counts as 0.

    Parameters
    ----------
    embeddings_BK : float tensor (B, K)
        Gradients flow through these only.
    prototypes_BK : float tensor (B, K)
        The prototype of each sample's class.
    is_known_B : float tensor (B,)
        1 if there is such a prototype, else 0.

    Source: Tan et al., "FedProto: federated prototype learning across heterogeneous clients", 2022, the distance
    between local and global prototypes, for each sample instead of the mean of its class, as in the authors' code.
    """
    squared_BK = (embeddings_BK - prototypes_BK.detach()) ** 2
    return (is_known_B[:, None] * squared_BK).mean()
