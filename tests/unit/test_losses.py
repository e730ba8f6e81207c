"""Each loss against numbers worked out by hand, and the mistakes that published code has made with them."""

import math

import pytest
import torch
from torch.nn import functional

from fedh2l_mpi.losses import (
    DIVERGENCES,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    log_prior,
    logit_distance,
    mutual_distillation,
    posteriors,
    posteriors_under_prior,
    reverse_kl,
    under_prior,
)

OWN = torch.tensor([[2.0, 0.0, -1.0]])


def test_a_certain_neighbour_makes_the_distillation_loss_our_cross_entropy():
    theirs = torch.tensor([[[0.0, 1.0, 0.0]]])
    # log(e^2 + 1 + e^-1) - 0
    assert mutual_distillation(OWN, theirs).item() == pytest.approx(2.16985, abs=1e-5)
    assert mutual_distillation(OWN, theirs).item() == pytest.approx(cross_entropy(OWN, torch.tensor([1])).item())


def test_distillation_of_two_coins_is_the_textbook_divergence():
    # KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
    own = torch.tensor([[math.log(3.0), 0.0]])
    theirs = torch.tensor([[[0.5, 0.5]]])
    assert mutual_distillation(own, theirs).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


def test_cross_entropy_of_even_scores_is_log_of_the_number_of_classes():
    assert cross_entropy(torch.zeros(4, 10), torch.arange(4)).item() == pytest.approx(math.log(10))


def test_weights_of_samples_weigh_them_without_a_share_of_the_sum():
    logits, classes = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]), torch.tensor([0, 1])
    # Losses log 2 and log 4.
    weighted = cross_entropy(logits, classes, torch.tensor([2.0, 0.5]))
    assert weighted.item() == pytest.approx((2 * math.log(2) + 0.5 * math.log(4)) / 2)
    assert cross_entropy(logits, classes, torch.ones(2)).item() == pytest.approx(cross_entropy(logits, classes).item())
    # Of two participants, each its own; a distribution over classes instead of a class.
    both = cross_entropy(logits.expand(2, 2, 2), classes.expand(2, 2), torch.tensor([[2.0, 0.5], [0.0, 1.0]]))
    assert both.tolist() == pytest.approx([weighted.item(), math.log(4) / 2])
    mixed = cross_entropy(logits, torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0.0, 1.0]))
    assert mixed.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 4)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_labels_cost_what_they_do_in_torch_for_one_participant_and_for_several(smoothing):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 13, 5, generator=draw, requires_grad=True)
    classes = torch.randint(5, (3, 13), generator=draw)
    # A mixup of two samples has a distribution as its target; a prior is added to the scores beforehand.
    mixed = 0.3 * functional.one_hot(classes, 5) + 0.7 * functional.one_hot(classes.flip(1), 5)
    skewed = under_prior(logits, torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]).log())
    for scores, targets in ((logits, classes), (logits, mixed), (skewed, classes)):
        together = cross_entropy(scores, targets, smoothing=smoothing)
        of_all = torch.autograd.grad(together.sum(), logits, retain_graph=True)[0]
        weights = torch.ones(3, 13)
        torch.testing.assert_close(cross_entropy(scores, targets, weights, smoothing), together)
        for member in range(3):
            alone = cross_entropy(scores[member], targets[member], smoothing=smoothing)
            theirs = functional.cross_entropy(scores[member], targets[member], label_smoothing=smoothing)
            torch.testing.assert_close(alone, theirs)
            assert torch.equal(alone, together[member])
            gradient = torch.autograd.grad(alone, logits, retain_graph=True)[0]
            assert torch.equal(gradient[member], of_all[member])


def test_the_prior_of_labels_counts_one_more_of_each_class():
    # (2 + 1, 0 + 1, 1 + 1) of 6.
    assert log_prior(torch.tensor([0, 2, 0]), 3).exp().tolist() == pytest.approx([3 / 6, 1 / 6, 2 / 6])


def test_scores_under_an_even_prior_cost_the_same_and_under_a_skewed_one_ask_more_of_the_rare_class():
    even, skewed = log_prior(torch.arange(3), 3), torch.tensor([0.8, 0.1, 0.1]).log()
    rare = torch.tensor([1])
    assert cross_entropy(under_prior(OWN, even), rare).item() == pytest.approx(cross_entropy(OWN, rare).item())
    # -log(0.1 / (0.8 e^2 + 0.1 + 0.1 / e))
    expected = math.log(8 * math.exp(2) + 1 + math.exp(-1))
    assert cross_entropy(under_prior(OWN, skewed), rare).item() == pytest.approx(expected)
    assert torch.equal(under_prior(OWN, skewed, 0.0), OWN)


@pytest.mark.parametrize(("tau", "temperature"), [(1.0, 1.0), (0.5, 4.0)])
def test_published_posteriors_are_carried_to_a_prior_as_their_logits_would_be(tau, temperature):
    logits, prior = torch.randn(2, 4, 3), torch.tensor([0.7, 0.2, 0.1]).log()
    carried = posteriors_under_prior(posteriors(logits, temperature), prior, tau / temperature)
    torch.testing.assert_close(carried, posteriors(under_prior(logits, prior, tau), temperature))
    # So a teacher that agrees teaches nothing.
    loss = mutual_distillation(under_prior(logits[0], prior, tau), carried[:1], temperature)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_an_agreeing_neighbour_costs_nothing_and_pulls_nowhere():
    own = torch.randn(5, 7, requires_grad=True)
    loss = mutual_distillation(own, posteriors(own)[None])
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert own.grad.abs().max() < 1e-6


def test_distillation_is_a_mean_over_samples_not_over_classes():
    # KLDivLoss with its default reduction would divide by the number of classes too.
    once = mutual_distillation(OWN, torch.tensor([[[0.0, 1.0, 0.0]]]))
    twice = mutual_distillation(OWN.repeat(2, 1), torch.tensor([[[0.0, 1.0, 0.0]] * 2]))
    assert once.item() == pytest.approx(twice.item())


def test_the_weight_of_distillation_does_not_grow_with_the_degree():
    theirs = torch.tensor([[[0.2, 0.5, 0.3]]])
    one, four = mutual_distillation(OWN, theirs), mutual_distillation(OWN, theirs.repeat(4, 1, 1))
    assert one.item() == pytest.approx(four.item())


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(1, 3, requires_grad=True)
    own = OWN.clone().requires_grad_()
    mutual_distillation(own, posteriors(teacher)[None]).backward()
    assert teacher.grad is None
    assert own.grad is not None


def test_the_gradient_is_the_difference_of_the_posteriors():
    own = torch.randn(1, 3, requires_grad=True)
    theirs = torch.tensor([[0.2, 0.5, 0.3]])
    mutual_distillation(own, theirs[None]).backward()
    torch.testing.assert_close(own.grad, posteriors(own.detach()) - theirs)


def test_a_one_hot_neighbour_gives_no_nan():
    own = torch.tensor([[100.0, -100.0, 0.0]], requires_grad=True)
    loss = mutual_distillation(own, torch.tensor([[[0.0, 1.0, 0.0]]]))
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert torch.isfinite(own.grad).all()


def test_without_neighbours_the_loss_and_its_gradient_are_zero():
    own = OWN.clone().requires_grad_()
    loss = mutual_distillation(own, torch.empty(0, 1, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert own.grad.abs().max() == 0.0


def test_temperature_softens_and_its_square_keeps_the_size_of_the_gradient():
    logits = torch.tensor([[0.1, -0.2, 0.05]])
    assert posteriors(logits, 1e6)[0].tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    sizes = []
    for temperature in (10.0, 20.0):
        own = torch.zeros(1, 3, requires_grad=True)
        (temperature**2 * mutual_distillation(own, posteriors(logits, temperature)[None], temperature)).backward()
        sizes.append(own.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def hard_cases() -> tuple[torch.Tensor, torch.Tensor]:
    """Own logits and neighbours' posteriors with zeros, certainties and extremes."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5], [80.0, -80.0, 0.0]])
    theirs = torch.tensor([[[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]])
    return logits, theirs


def test_divergences_by_hand():
    own = torch.tensor([[0.5, 0.5]]).log()
    theirs = torch.tensor([[[0.25, 0.75]]])
    assert forward_kl(own, theirs).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    assert reverse_kl(own, theirs).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    m = (0.375, 0.625)
    expected = 0.5 * (0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(0.75 / m[1]))
    expected += 0.5 * (0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1]))
    assert jensen_shannon(own, theirs).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_vanishes_at_agreement_is_positive_elsewhere_and_has_finite_gradients(name):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    same = mutual_distillation(logits, logits.softmax(-1)[None], divergence=name)
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    logits, theirs = hard_cases()
    logits.requires_grad_()
    loss = mutual_distillation(logits, theirs, divergence=name)
    loss.backward()
    assert loss.item() > 0.1
    assert torch.isfinite(logits.grad).all()


def test_jensen_shannon_is_symmetric_and_bounded_by_log_2():
    p, q = (torch.rand(5, 3).softmax(-1) for _ in range(2))
    one, other = jensen_shannon(p.log(), q[None]), jensen_shannon(q.log(), p[None])
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    logits, theirs = hard_cases()
    assert jensen_shannon(logits.log_softmax(-1), theirs).max().item() <= math.log(2) + 1e-6


def test_weights_decide_how_much_each_neighbour_counts():
    logits, theirs = torch.zeros(1, 2), torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    weights = torch.tensor([[0.25], [0.75]])
    assert mutual_distillation(logits, theirs, weights_NB=weights).item() == pytest.approx(0.25 * math.log(2))


def test_logit_distance_is_the_mean_absolute_difference():
    own = torch.tensor([[1.0, -2.0], [0.0, 4.0]], requires_grad=True)
    consensus = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    distance = logit_distance(own, consensus)
    distance.backward()
    assert distance.item() == pytest.approx((1 + 2 + 1 + 3) / 4)
    assert consensus.grad is None
