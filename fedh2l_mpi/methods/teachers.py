"""Select and weight the neighbours' posteriors that are the teachers of a mutual phase.

Shape letters: N neighbours, M teachers, S seed rows of the round, C classes.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The trimmed mean drops this share of the values on either side, and at least one if there are three or more.
TRIM = 0.2


@dataclass(frozen=True)
class Teachers:
    """Posteriors float32 (M, S, C) and the weight of each on each sample (M, S).

    The weights of a sample sum to 1, or to 0 if no teacher counts there. All teachers count equally if there are no
    weights. Several participants have posteriors (M, G, S, C) and weights (M, G, S).
    """

    posteriors: Tensor
    weights: Tensor | None = None

    @property
    def untaught(self) -> Tensor | None:
        """1 for a sample on which no teacher counts, else 0, float32 (S,); None if every teacher counts everywhere."""
        return None if self.weights is None else (self.weights.sum(dim=0) == 0).to(self.weights.dtype)

    def on(self, rows_B: Tensor) -> "Teachers":
        """Return the teachers on a minibatch of the round's samples.

        Several participants have rows (G, B).

        Raises
        ------
        ValueError
            If the rows are of several participants, but the weights of one.
        """
        if rows_B.dim() == 2:
            if self.weights is not None and self.weights.dim() == 2:
                raise ValueError(
                    f"weights of shape {tuple(self.weights.shape)} belong to one participant, but rows of shape "
                    f"{tuple(rows_B.shape)} belong to several"
                )
            members = torch.arange(len(rows_B), device=rows_B.device)[:, None]
            weights = None if self.weights is None else self.weights[:, members, rows_B]
            return Teachers(self.posteriors[:, members, rows_B], weights)
        weights = None if self.weights is None else self.weights[:, rows_B]
        return Teachers(self.posteriors[:, rows_B], weights)

    def tensors(self) -> dict[str, Tensor | None]:
        """Return the tensors, for a recorded step (`devices.graphs`)."""
        return {"posteriors": self.posteriors, "weights": self.weights}

    def facts(self) -> Hashable:
        """Return nothing: there is nothing but tensors."""
        return None

    def with_tensors(self, tensors: Mapping[str, Any]) -> "Teachers":
        """Return teachers with other tensors."""
        return Teachers(**tensors)

    def apart(self) -> "list[Teachers]":
        """Return each teacher alone with its weight, so that divergences add up; one empty part if there is none."""
        count, samples = self.posteriors.shape[:2]
        weights = self.weights
        if weights is None:
            weights = self.posteriors.new_full((count, samples), 1 / max(1, count))
        return [Teachers(self.posteriors[m : m + 1], weights[m : m + 1]) for m in range(count)] or [self]


def each(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return every neighbour, with equal weights."""
    return Teachers(theirs_NSC)


def mean(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return one teacher, the mean of the neighbours. Its gradient of KL(teacher || own) equals that of `each`."""
    return Teachers(theirs_NSC.mean(dim=0, keepdim=True))


def by_seed_accuracy(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return every neighbour, weighted by its accuracy on the round's seed labels; equally if all are 0."""
    right_N = (theirs_NSC.argmax(dim=-1) == labels_S).to(theirs_NSC.dtype).mean(dim=-1)
    return Teachers(theirs_NSC, _shares(right_N[:, None].expand(-1, theirs_NSC.shape[1])))


def by_confidence(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return every neighbour, weighted on each sample by 1 - H / log C, where H is its posterior's entropy."""
    entropy_NS = -torch.xlogy(theirs_NSC, theirs_NSC).sum(dim=-1)
    classes = torch.tensor(float(theirs_NSC.shape[-1]))
    return Teachers(theirs_NSC, _shares((1 - entropy_NS / classes.log().to(theirs_NSC)).clamp(min=0)))


def median(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return one teacher, the median of each class over the neighbours, scaled to sum to 1.

    A minority of neighbours cannot move it far. An even number of neighbours gives the mean of the middle two.
    Source: Yin et al., "Byzantine-robust distributed learning", 2018.
    """
    ordered, count = theirs_NSC.sort(dim=0).values, len(theirs_NSC)
    middle = ordered[(count - 1) // 2 : count // 2 + 1].mean(dim=0, keepdim=True)
    return Teachers(_distribution(middle))


def trimmed_mean(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return one teacher, the mean of each class without its lowest and highest values, scaled to sum to 1.

    Source: Yin et al., "Byzantine-robust distributed learning", 2018.
    """
    count = len(theirs_NSC)
    dropped = max(1, int(TRIM * count)) if count >= 3 else 0
    kept = theirs_NSC.sort(dim=0).values[dropped : count - dropped]
    return Teachers(_distribution(kept.mean(dim=0, keepdim=True)))


def right(theirs_NSC: Tensor, labels_S: Tensor) -> Teachers:
    """Return every neighbour, of which those count on a sample whose likeliest class is the seed label.

    Source: Meng et al., "Conditional teacher-student learning", 2019.
    """
    return _counting(theirs_NSC, theirs_NSC.argmax(dim=-1) == labels_S)


def better(theirs_NSC: Tensor, labels_S: Tensor, own_SC: Tensor) -> Teachers:
    """Return every neighbour, of which those count that are right and surer of the seed label than the own posterior.

    A condition of this project, stricter than that of `right`: such teachers do not leave a sure model less sure.
    """
    of_label_N = theirs_NSC.gather(-1, labels_S.expand(theirs_NSC.shape[:-1])[..., None])[..., 0]
    of_label = own_SC.gather(-1, labels_S.expand(own_SC.shape[:-1])[..., None])[..., 0]
    return _counting(theirs_NSC, (theirs_NSC.argmax(dim=-1) == labels_S) & (of_label_N > of_label))


def agreement(theirs_NSC: Tensor, labels_S: Tensor, own_SC: Tensor) -> Teachers:
    """Return every neighbour, of which those count whose likeliest class has most votes among neighbours and own.

    Among classes with equally many votes, the one with the largest sum of posteriors wins. Labels are not used. This
    is a definition of this project: the winning class takes the place of the label in `right`.
    """
    votes_SC, total_SC = torch.zeros_like(own_SC), own_SC + theirs_NSC.sum(dim=0)
    one = votes_SC.new_ones(()).expand(*own_SC.shape[:-1], 1)
    for voter_SC in (*theirs_NSC, own_SC):
        votes_SC.scatter_add_(-1, voter_SC.argmax(dim=-1, keepdim=True), one)
    leads_SC = votes_SC == votes_SC.amax(dim=-1, keepdim=True)
    winner_S = total_SC.where(leads_SC, torch.full_like(total_SC, -1)).argmax(dim=-1)
    return _counting(theirs_NSC, theirs_NSC.argmax(dim=-1) == winner_S)


CHOICES: dict[str, Callable[[Tensor, Tensor], Teachers]] = {
    "each": each,
    "mean": mean,
    "seed_accuracy": by_seed_accuracy,
    "confidence": by_confidence,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "right": right,
}
# Choices that compare the neighbours' posteriors with the own ones of the same round.
COMPARED: dict[str, Callable[[Tensor, Tensor, Tensor], Teachers]] = {"better": better, "agreement": agreement}
# Choices that use the seed labels, and those that several participants may make at once.
LABELLED = ("seed_accuracy", "right", "better")
BATCHED = ("each", "mean", "right", "better", "agreement")

# Size of what a choice makes of the neighbours' posteriors on the way, as a multiple of theirs: sorted values have
# places in int64 as well. Measured with 10 to 100 classes; the others make only a few numbers for each sample.
CHOOSING = {"median": 3.0, "trimmed_mean": 3.0, "confidence": 1.0, "agreement": 0.5}


def choose(kind: str, theirs_NSC: Tensor, labels_S: Tensor, own_SC: Tensor | None = None) -> Teachers:
    """Return the round's teachers; a participant without neighbours has none.

    Parameters
    ----------
    kind : str
        A name of CHOICES or COMPARED.
    theirs_NSC : float tensor (N, S, C)
        The neighbours' posteriors; (N, G, S, C) of several participants, for the kinds in BATCHED.
    labels_S : int64 (S,)
        Seed labels; only the kinds in LABELLED use them.
    own_SC : float tensor (S, C) or (G, S, C)
        The own posteriors that were published in this round; needed by the kinds in COMPARED.

    Raises
    ------
    ValueError
        If the own posteriors are missing.
    """
    if len(theirs_NSC) == 0:
        return Teachers(theirs_NSC)
    if kind not in COMPARED:
        return CHOICES[kind](theirs_NSC, labels_S)
    if own_SC is None:
        raise ValueError(f"teachers {kind!r} need the posteriors that the participant itself published in this round")
    return COMPARED[kind](theirs_NSC, labels_S, own_SC)


def _counting(theirs_NSC: Tensor, counts_NS: Tensor) -> Teachers:
    """Return the neighbours, of which those that count on a sample share the weight there equally."""
    weights_NS = counts_NS.to(theirs_NSC.dtype)
    return Teachers(theirs_NSC, weights_NS / weights_NS.sum(dim=0).clamp(min=1))


def _shares(weights_NS: Tensor) -> Tensor:
    """Return non-negative weights scaled to sum to 1 over the neighbours; equal weights if all are 0."""
    total_S = weights_NS.sum(dim=0)
    return torch.where(total_S > 0, weights_NS / total_S.clamp(min=1e-30), 1 / len(weights_NS))


def _distribution(values: Tensor) -> Tensor:
    # The class-wise median of contradictory certainties can be 0 for all classes; an even distribution then says so.
    total = values.sum(dim=-1, keepdim=True)
    return torch.where(total > 1e-12, values / total.clamp(min=1e-12), 1 / values.shape[-1])
