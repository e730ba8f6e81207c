"""Whom to believe: numbers worked out by hand, and what a bad teacher can do."""

import math

import pytest
import torch

from fedh2l_mpi.losses import mutual_distillation
from fedh2l_mpi.methods import teachers

LABELS = torch.tensor([0, 1])
SURE = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
UNSURE = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
WRONG = torch.tensor([[0.0, 1.0], [1.0, 0.0]])


def test_each_takes_all_alike_and_their_parts_add_up():
    theirs = torch.stack([SURE, UNSURE, WRONG])
    taught = teachers.choose("each", theirs, LABELS)
    assert taught.weights is None
    logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    whole = mutual_distillation(logits, taught.posteriors)
    parts = [mutual_distillation(logits, one.posteriors, weights_NB=one.weights) for one in taught.apart()]
    assert len(parts) == 3
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_divergence_from_the_mean_has_the_gradient_of_the_mean_divergence():
    # KL(p || q) is linear in p except for p's own entropy, which has no gradient.
    theirs = torch.rand(3, 2, 2).softmax(-1)
    gradients = []
    for kind in ("each", "mean"):
        logits = torch.zeros(2, 2, requires_grad=True)
        mutual_distillation(logits, teachers.choose(kind, theirs, LABELS).posteriors).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_weights_are_never_dropped_for_several_participants():
    theirs, rows = torch.stack([SURE, UNSURE]), torch.tensor([[1, 0], [0, 1]])
    together = teachers.Teachers(theirs[:, None].expand(-1, 2, -1, -1))
    torch.testing.assert_close(together.on(rows).posteriors[:, 0], theirs.flip(1))
    weighted = teachers.Teachers(together.posteriors, torch.full((2, 2), 0.5))
    with pytest.raises(
        ValueError,
        match=r"weights of shape \(2, 2\) belong to one participant, but rows of shape \(2, 2\) belong to several",
    ):
        weighted.on(rows)


def test_seed_accuracy_silences_who_gets_all_wrong():
    taught = teachers.choose("seed_accuracy", torch.stack([SURE, WRONG]), LABELS)
    assert taught.weights.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert teachers.choose("seed_accuracy", torch.stack([WRONG, WRONG]), LABELS).weights.tolist() == [[0.5] * 2] * 2


def test_confidence_weighs_by_what_the_entropy_leaves():
    taught = teachers.choose("confidence", torch.stack([SURE, UNSURE, WRONG]), LABELS)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    expected = (1 - entropy) / (2 - entropy)
    assert taught.weights[:, 0].tolist() == pytest.approx([expected, 0.0, 1 - expected], abs=1e-6)
    assert teachers.choose("confidence", torch.stack([UNSURE, UNSURE]), LABELS).weights.tolist() == [[0.5] * 2] * 2


def test_right_takes_only_who_knows_the_label_and_nobody_where_none_does():
    half = torch.stack([SURE[0], WRONG[1]])
    taught = teachers.choose("right", torch.stack([SURE, half, WRONG]), LABELS)
    assert taught.weights.tolist() == [[0.5, 1.0], [0.5, 0.0], [0.0, 0.0]]
    assert taught.untaught.tolist() == [0.0, 0.0]
    nobody = teachers.choose("right", torch.stack([half, WRONG]), LABELS)
    assert nobody.weights.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert nobody.untaught.tolist() == [0.0, 1.0]
    # A sample without a teacher adds 0 to the mean over both samples: KL((0.9, 0.1) || even) / 2.
    loss = mutual_distillation(torch.zeros(2, 2), nobody.posteriors, weights_NB=nobody.weights)
    assert loss.item() == pytest.approx((0.9 * math.log(1.8) + 0.1 * math.log(0.2)) / 2, rel=1e-5)


def test_better_takes_only_who_is_right_and_surer_of_the_label_than_oneself():
    unsure = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    own = torch.tensor([[0.7, 0.3], [0.5, 0.5]])
    taught = teachers.choose("better", torch.stack([SURE, unsure, WRONG]), LABELS, own)
    assert taught.weights.tolist() == [[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]
    # Neither is surer than itself.
    assert teachers.choose("better", torch.stack([SURE]), LABELS, SURE).untaught.tolist() == [1.0, 1.0]


def test_agreement_takes_who_votes_with_most_and_decides_ties_by_the_sum_of_posteriors():
    voters = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])[:, None]
    own = torch.tensor([[0.6, 0.3, 0.1]])
    # Two votes each for the classes 0 and 1; the posteriors sum to 1.4 and 2.1. The labels (2) are not used.
    taught = teachers.choose("agreement", voters, torch.tensor([2]), own)
    assert taught.weights.flatten().tolist() == [0.0, 0.5, 0.5]
    # Against one neighbour, the surer of the two decides.
    assert teachers.choose("agreement", voters[:1], LABELS, own).weights.tolist() == [[1.0]]
    other = torch.tensor([[0.1, 0.9, 0.0]])
    assert teachers.choose("agreement", voters[:1], LABELS, other).weights.tolist() == [[0.0]]
    # The class with the largest sum does not win against more votes.
    few = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.45, 0.05]])[:, None]
    assert teachers.choose("agreement", few, LABELS, own).weights.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", ["right", "better", "agreement"])
def test_several_participants_get_the_teachers_that_each_would_get_alone(kind):
    draw = torch.Generator().manual_seed(3)
    theirs, own = (torch.rand(*shape, 6, 3, generator=draw).softmax(-1) for shape in ((4, 5), (5,)))
    labels, rows = torch.randint(3, (6,), generator=draw), torch.randint(6, (5, 4), generator=draw)
    together = teachers.choose(kind, theirs, labels, own).on(rows)
    for member in range(5):
        alone = teachers.choose(kind, theirs[:, member], labels, own[member]).on(rows[member])
        assert torch.equal(together.weights[:, member], alone.weights)
        assert torch.equal(together.posteriors[:, member], alone.posteriors)
        assert torch.equal(together.untaught[member], alone.untaught)


def test_median_and_trimmed_mean_ignore_a_liar_among_three():
    theirs = torch.stack([SURE, SURE, WRONG])
    for kind in ("median", "trimmed_mean"):
        torch.testing.assert_close(teachers.choose(kind, theirs, LABELS).posteriors[0], SURE)
    # The mean does not.
    assert teachers.choose("mean", theirs, LABELS).posteriors[0, 0, 0].item() == pytest.approx(0.6)


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    theirs = torch.tensor([0.1, 0.2, 0.6, 0.9])[:, None, None] * torch.tensor([1.0, 0.0])
    theirs = theirs + torch.tensor([0.0, 1.0]) * (1 - theirs.sum(-1, keepdim=True))
    assert teachers.choose("median", theirs, LABELS).posteriors[0, 0].tolist() == pytest.approx([0.4, 0.6])


def test_five_neighbours_lose_the_lowest_and_the_highest():
    shares = torch.tensor([0.0, 0.2, 0.3, 0.4, 1.0])
    theirs = torch.stack([shares, 1 - shares], dim=-1)[:, None]
    assert teachers.choose("trimmed_mean", theirs, LABELS).posteriors[0, 0].tolist() == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("kind", [*teachers.CHOICES, *teachers.COMPARED])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_every_choice_gives_distributions_for_any_number_of_neighbours(kind, count):
    theirs = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(1)).softmax(-1)
    taught = teachers.choose(kind, theirs, LABELS, UNSURE)
    assert taught.posteriors.sum(-1).flatten().tolist() == pytest.approx([1.0] * 2 * len(taught.posteriors))
    if taught.weights is not None:
        sums = [1.0, 1.0] if taught.untaught is None else (1 - taught.untaught).tolist()
        assert taught.weights.sum(0).tolist() == pytest.approx(sums)
        assert kind in ("right", "better", "agreement") or sums == [1.0, 1.0]
    logits = torch.zeros(2, 2, requires_grad=True)
    minibatch = taught.on(torch.tensor([1, 0]))
    mutual_distillation(logits, minibatch.posteriors, weights_NB=minibatch.weights).backward()
    assert torch.isfinite(logits.grad).all()


def test_contradictory_certainties_teach_nothing_by_their_median():
    theirs = torch.eye(3)[:, None]
    assert teachers.choose("median", theirs, LABELS).posteriors[0, 0].tolist() == pytest.approx([1 / 3] * 3)
