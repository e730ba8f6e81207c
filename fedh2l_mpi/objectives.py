"""The losses: one function for each formula, all in nats.

Shape letters: B minibatch, C classes, N neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(own_logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean over the minibatch of -log softmax(own_logits)[label], in nats.

    Parameters
    ----------
    own_logits_BC : float tensor (B, C)
        Scores before softmax.
    labels_B : int64 tensor (B,)
        Classes.
    """
    return functional.cross_entropy(own_logits_BC, labels_B)


def posteriors(logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(logits / T): each row sums to 1."""
    return (logits_BC / temperature).softmax(dim=-1)


def mutual_distillation(own_logits_BC: Tensor, theirs_NBC: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean of KL(neighbour || own) over neighbours and samples, in nats; 0 without neighbours.

    A mean over neighbours, not a sum: the weight of distillation must not grow with the degree. The caller scales by
    the squared temperature, which keeps the gradient's size independent of T.

    Parameters
    ----------
    own_logits_BC : float tensor (B, C)
        Scores before softmax; gradients flow through these only.
    theirs_NBC : float tensor (N, B, C)
        Neighbours' posteriors at the same temperature, rows summing to 1.
    temperature : float
        T, applied to `own_logits_BC`.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, for T squared; Zhang et al.,
    "Deep mutual learning", 2018, for peers as each other's teachers.
    """
    if len(theirs_NBC) == 0:
        # Not a constant: an unlabelled seed set without neighbours still needs a (vanishing) gradient.
        return own_logits_BC[:0].sum()
    theirs_NBC = theirs_NBC.detach()
    own_log_BC = (own_logits_BC / temperature).log_softmax(dim=-1)
    # xlogy, not p * log p: a one-hot posterior has zeros, and 0 * log 0 is NaN.
    return (torch.xlogy(theirs_NBC, theirs_NBC) - theirs_NBC * own_log_BC).sum(dim=-1).mean()
