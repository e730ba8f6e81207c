"""Means of vectors by class: what `fd` and `fedproto` exchange in place of anything on a seed set.

An array of means has a row for each class: the mean vector, and in its last column the number of samples it is of. A
class without samples has a row of zeros.

Shape letters: B minibatch, C classes, K numbers of a vector, N neighbours.
"""

import torch
from torch import Tensor


def sums(values_BK: Tensor, labels_B: Tensor, classes: int) -> Tensor:
    """Return the sum of the vectors of each class, and their number in the last column, float32 (C, K + 1).

    It is a product with the one-hot labels, because an indexed sum adds in no fixed order on a GPU.
    """
    is_of_CB = (labels_B[:, None] == torch.arange(classes, device=labels_B.device)).float().T
    ones_B1 = torch.ones(len(labels_B), 1, device=values_BK.device)
    return is_of_CB @ torch.cat([values_BK.detach().float(), ones_B1], dim=1)


def means(sums_CK: Tensor) -> Tensor:
    """Return the array of means, float32 (C, K + 1), from the sums; 0 for a class without samples."""
    counts_C1 = sums_CK[:, -1:]
    return torch.cat([sums_CK[:, :-1] / counts_C1.clamp(min=1), counts_C1], dim=1)


def mean_of_means(theirs_NCK: Tensor) -> Tensor:
    """Return the plain mean over the neighbours that have samples of a class, and their number, float32 (C, K + 1)."""
    has_NC1 = (theirs_NCK[..., -1:] > 0).to(theirs_NCK.dtype)
    return means(torch.cat([theirs_NCK[..., :-1] * has_NC1, has_NC1], dim=-1).sum(dim=0))


def mean_of_samples(theirs_NCK: Tensor) -> Tensor:
    """Return the mean over all neighbours' samples of a class, and their number, float32 (C, K + 1)."""
    counts_NC1 = theirs_NCK[..., -1:]
    return means(torch.cat([theirs_NCK[..., :-1] * counts_NC1, counts_NC1], dim=-1).sum(dim=0))
