"""Whom to believe: the neighbours' posteriors of a round as the teachers of its mutual phase, each with a weight.

Shape letters: N neighbours, M teachers, S seed samples of the round, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the values on either side, the trimmed mean drops this share, and at least one where there are three.
TRIM = 0.2


@dataclass(frozen=True)
class Teachers:
    """Posteriors float32 (M, S, C) and the weight of each on each sample (M, S), summing to 1 over M.

    Without weights, all count the same.
    """

    posteriors: Tensor
    weights: Tensor | None = None

    def on(self, rows_B: Tensor) -> "Teachers":
        """The teachers on a minibatch of the round's samples; of several participants, (N, G, S, C) on rows (G, B).

        Raises
        ------
        ValueError
            If there are weights, but several participants: whose they are is not known.
        """
        if rows_B.dim() == 2:
            if self.weights is not None:
                raise ValueError(
                    f"teachers with weights {tuple(self.weights.shape)} are of one participant, but rows "
                    f"{tuple(rows_B.shape)} are of several"
                )
            return Teachers(self.posteriors[:, torch.arange(len(rows_B), device=rows_B.device)[:, None], rows_B])
        weights = None if self.weights is None else self.weights[:, rows_B]
        return Teachers(self.posteriors[:, rows_B], weights)

    def apart(self) -> "list[Teachers]":
        """Each teacher alone with its weight: their divergences add up to that of all; one empty part for none."""
        count, samples = self.posteriors.shape[:2]
        weights = self.weights
        if weights is None:
            weights = self.posteriors.new_full((count, samples), 1 / max(1, count))
        return [Teachers(self.posteriors[m : m + 1], weights[m : m + 1]) for m in range(count)] or [self]


def each(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Every neighbour, all alike."""
    return Teachers(theirs_NSC)


def mean(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """One teacher, the mean of the neighbours. For KL(teacher || own) its gradient is that of `each`."""
    return Teachers(theirs_NSC.mean(dim=0, keepdim=True))


def by_seed_accuracy(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Every neighbour, weighted by its accuracy on the round's seed labels; all alike if none has any right."""
    right_N = (theirs_NSC.argmax(dim=-1) == labels_S).to(theirs_NSC.dtype).mean(dim=-1)
    return Teachers(theirs_NSC, _shares(right_N[:, None].expand(-1, theirs_NSC.shape[1])))


def by_confidence(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Every neighbour, weighted on each sample by 1 - H / log C, with H its posterior's entropy."""
    entropy_NS = -torch.xlogy(theirs_NSC, theirs_NSC).sum(dim=-1)
    classes = torch.tensor(float(theirs_NSC.shape[-1]))
    return Teachers(theirs_NSC, _shares((1 - entropy_NS / classes.log().to(theirs_NSC)).clamp(min=0)))


def median(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """One teacher, the median of each class over the neighbours, scaled to sum to 1: a minority cannot move it far.

    Of an even number, the mean of the middle two. Source: Yin et al., "Byzantine-robust distributed learning", 2018.
    """
    ordered, count = theirs_NSC.sort(dim=0).values, len(theirs_NSC)
    middle = ordered[(count - 1) // 2 : count // 2 + 1].mean(dim=0, keepdim=True)
    return Teachers(_distribution(middle))


def trimmed_mean(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """One teacher, the mean of each class without its lowest and highest values, scaled to sum to 1.

    Source: Yin et al., "Byzantine-robust distributed learning", 2018.
    """
    count = len(theirs_NSC)
    dropped = max(1, int(TRIM * count)) if count >= 3 else 0
    kept = theirs_NSC.sort(dim=0).values[dropped : count - dropped]
    return Teachers(_distribution(kept.mean(dim=0, keepdim=True)))


CHOICES: dict[str, Callable[[Tensor, Tensor], Teachers]] = {
    "each": each,
    "mean": mean,
    "seed_accuracy": by_seed_accuracy,
    "confidence": by_confidence,
    "median": median,
    "trimmed_mean": trimmed_mean,
}


def choose(kind: str, theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """The round's teachers; none for a participant without neighbours.

    Parameters
    ----------
    kind : str
        A name of CHOICES.
    labels_S : int64 (S,)
        Looked at by `seed_accuracy` alone.
    """
    return CHOICES[kind](theirs_NSC, labels_S) if len(theirs_NSC) else Teachers(theirs_NSC)


def _shares(weights_NS: Tensor) -> Tensor:
    """Non-negative weights scaled to sum to 1 over the neighbours; equal where all are 0."""
    total_S = weights_NS.sum(dim=0)
    return torch.where(total_S > 0, weights_NS / total_S.clamp(min=1e-30), 1 / len(weights_NS))


def _distribution(values: Tensor) -> Tensor:
    # The class-wise median of contradictory certainties can be 0 everywhere: then nothing is known.
    total = values.sum(dim=-1, keepdim=True)
    return torch.where(total > 1e-12, values / total.clamp(min=1e-12), 1 / values.shape[-1])
