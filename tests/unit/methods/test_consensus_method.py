"""Methods that digest one teacher, against their papers' steps in plain PyTorch."""

import pytest
import torch
from helpers.learners import STAR, a_round, assert_equal, cross_entropy, learner, method

from fedh2l_mpi.methods import kt_pfl
from fedh2l_mpi.methods.ds_fl import entropy_reduced
from fedh2l_mpi.models import build
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph


def of_ds_fl(answers: torch.Tensor) -> torch.Tensor:
    """Itahara et al.: the softmax of the mean probability of each class, at T = 0.1."""
    sharp = (answers.mean(0) / 0.1).exp()
    return sharp / sharp.sum(1, keepdim=True)


def of_feddf(answers: torch.Tensor) -> torch.Tensor:
    """Lin et al.: the softmax of the mean logits, for which the geometric mean of posteriors is the same."""
    together = answers.softmax(-1).log().mean(0).exp()
    return together / together.sum(1, keepdim=True)


def of_kt_pfl(answers: torch.Tensor) -> torch.Tensor:
    """Zhang et al.: the gradient of the weights by autograd, then the mean with the new weights."""
    weights = torch.full((len(answers),), 1 / len(answers), requires_grad=True)
    mean = (weights[:, None, None] * answers).sum(0)
    apart = torch.nn.functional.kl_div(answers[0].log(), mean, reduction="batchmean")
    (apart + 0.7 * ((weights - 1 / len(answers)) ** 2).sum()).backward()
    moved = (weights.detach() - 0.1 * (weights.grad - weights.grad.mean())).clamp(min=0)
    return ((moved / moved.sum())[:, None, None] * answers).sum(0)


TEACHERS = {"ds_fl": of_ds_fl, "feddf": of_feddf, "kt_pfl": of_kt_pfl}


@pytest.mark.parametrize("neighbours", [3, 0])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_round_is_private_steps_then_steps_towards_the_teacher_of_what_was_published_between(name, neighbours):
    graph = STAR if neighbours else Graph(4, [(1, 2)])
    learning, participant, now = method(name, local_steps=2, mutual_steps=1), learner(), a_round(graph=graph)
    theirs = torch.randn(neighbours, 40, 10, generator=torch.Generator().manual_seed(3))
    theirs = theirs if name == "feddf" else theirs.softmax(-1)
    model, batches = build("mlp", SampleForm.image(1, 8), 10, seed=1), learner().minibatches
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(2):
        rows = batches.next()
        step(cross_entropy(model(participant.private.stored[rows]), participant.private.labels[rows]))
    own = model(now.seed.inputs).detach()
    own = own if name == "feddf" else own.softmax(1)
    teacher = TEACHERS[name](torch.cat([own[None], theirs]))
    (rows,) = learner().seed_minibatches(40, 0, 1)
    step(torch.nn.functional.kl_div(model(now.seed.inputs[rows]).log_softmax(1), teacher[rows], reduction="batchmean"))

    assert not learning.publishes_first
    learning.local_phase(participant, now)
    torch.testing.assert_close(learning.published(participant, now), own, rtol=1e-4, atol=1e-5)
    learning.mutual_phase(participant, now, theirs)
    assert_equal([p.detach() for p in participant.model.parameters()], [p.detach() for p in model.parameters()])
    assert set(participant.kept) == ({kt_pfl.COEFFICIENTS} if name == "kt_pfl" else set())


@pytest.mark.parametrize("name", TEACHERS)
def test_seed_labels_are_never_used(name):
    weights = []
    for labelled in (True, False):
        learning, participant, now = method(name, labelled=labelled), learner(), a_round()
        if not labelled:
            now.seed.labels.zero_()
        learning.publish(participant, now)
        learning.mutual_phase(participant, now, learning.publish(learner(1), now).expand(3, 40, 10))
        weights.append(participant.parameters.vector)
    assert torch.equal(*weights)


def test_a_sharpened_mean_is_surer_than_the_mean_and_has_its_likeliest_class():
    posteriors = torch.tensor([[[0.5, 0.3, 0.2]], [[0.3, 0.5, 0.2]], [[0.5, 0.4, 0.1]]])
    # exp((13/30 - 12/30) / 0.1) = exp(1/3), and exp((13/30 - 5/30) / 0.1) = exp(8/3).
    odds = torch.tensor([1.0, -1 / 3, -8 / 3]).sub(torch.tensor([1.0, 0.0, 0.0])).exp()
    torch.testing.assert_close(entropy_reduced(posteriors, 0.1)[0], odds / odds.sum())


def test_weights_of_teachers_descend_towards_those_that_agree_and_are_kept_by_participant():
    draw = torch.Generator().manual_seed(0)
    own = torch.randn(40, 10, generator=draw).softmax(-1)
    answers = torch.stack([own, own, torch.randn(40, 10, generator=draw).softmax(-1)])
    weights = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    apart = torch.nn.functional.kl_div(own.log(), kt_pfl.weighted(answers, weights), reduction="batchmean")
    loss = apart + 0.3 * ((weights - 1 / 3) ** 2).sum()
    (expected,) = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(kt_pfl.gradient(weights.detach(), answers, 0.3), expected)
    after = kt_pfl.stepped(torch.full((3,), 1 / 3), answers, 0.1, 0.0)
    assert after.sum().item() == pytest.approx(1.0)
    assert after[0] == after[1] > after[2] > 0
    # However long the step, no weight is below 0.
    assert kt_pfl.stepped(weights.detach(), answers, 100.0, 0.0).min() == 0.0

    learning, participant = method("kt_pfl", coefficient_pull=0.0), learner()
    for graph in (Graph(4, [(0, 1)]), Graph(4, [(0, 2)])):
        now = a_round(graph=graph)
        learning.publish(participant, now)
        learning.mutual_phase(participant, now, torch.full((1, 40, 10), 0.1))
    relative = participant.kept[kt_pfl.COEFFICIENTS]
    assert relative[3] == 1.0
    assert relative[0] > 1.0 > relative[1]
    assert (relative[0] + relative[2]).item() == pytest.approx(2.0)
