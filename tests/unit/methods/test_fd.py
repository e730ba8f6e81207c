"""Federated distillation against its paper's steps in plain PyTorch."""

import pytest
import torch
from helpers.learners import a_round, assert_equal, cross_entropy, learner, method

from fedh2l_mpi.methods.by_class_method import SUMS
from fedh2l_mpi.models import build
from fedh2l_mpi.sample_form import SampleForm


def test_fd_publishes_the_mean_posterior_of_each_class_over_the_rounds_own_steps():
    learning, participant, now = method("fd", local_steps=1, mutual_steps=2), learner(), a_round()
    model, batches = build("mlp", SampleForm.image(1, 8), 10, seed=1), learner().minibatches
    optimizer, of_class = torch.optim.SGD(model.parameters(), lr=0.1), {}
    for _ in range(3):
        rows = batches.next()
        inputs, labels = participant.private.stored[rows], participant.private.labels[rows]
        logits = model(inputs)
        for posterior, label in zip(logits.detach().softmax(1), labels.tolist(), strict=True):
            of_class.setdefault(label, []).append(posterior)
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()
        optimizer.step()
    learning.local_phase(participant, now)
    published = learning.published(participant, now)
    assert not learning.publishes_first
    for label in range(10):
        own = of_class.get(label, [])
        expected = torch.stack(own).mean(0) if own else torch.zeros(10)
        torch.testing.assert_close(published[label], torch.cat([expected, torch.tensor([float(len(own))])]))
    learning.mutual_phase(participant, now, torch.empty(0, 10, 11))
    assert not participant.kept, "checkpoints would contain it"


@pytest.mark.parametrize("local_labels", ["private", "private_and_seed"])
def test_fd_pulls_each_sample_towards_the_mean_of_the_neighbours_that_have_its_class(local_labels):
    draw = torch.Generator().manual_seed(4)
    theirs = torch.cat([torch.randn(3, 10, 10, generator=draw).softmax(-1), torch.ones(3, 10, 1)], dim=-1)
    # Nobody has class 0, and one of three has class 1.
    theirs[:, 0], theirs[1:, 1] = 0.0, 0.0
    teacher = theirs[..., :10].sum(0) / theirs[..., 10].sum(0).clamp(min=1)[:, None]
    learning = method("fd", local_steps=1, mutual_steps=0, weight_kd=3.0, local_labels=local_labels)
    participant, now = learner(), a_round()
    participant.kept[SUMS] = torch.zeros(10, 11)
    learning.mutual_phase(participant, now, theirs)
    before = [parameter.detach().clone() for parameter in participant.model.parameters()]
    learning.local_phase(participant, now)
    got = [(b - p.detach()) / 0.1 for b, p in zip(before, participant.model.parameters(), strict=True)]

    model, rows = build("mlp", SampleForm.image(1, 8), 10, seed=1), learner().minibatches.next()
    labels = participant.private.labels[rows]
    assert {0, 1} < set(labels.tolist())
    logits = model(participant.private.stored[rows])
    # The paper's regulariser: the cross-entropy between the own output and the others' mean output of the class.
    pull = -(teacher[labels] * logits.log_softmax(1)).sum(1).mean()
    loss = cross_entropy(logits, labels) + 3.0 * pull
    if local_labels == "private_and_seed":
        (seed_rows,) = learner().seed_minibatches(40, 0, 1)
        loss = loss + cross_entropy(model(now.seed.inputs[seed_rows]), now.seed.labels[seed_rows])
    loss.backward()
    assert_equal(got, [parameter.grad for parameter in model.parameters()])


def test_without_neighbours_fd_is_private_training():
    participant, alone, now = learner(), learner(), a_round()
    for index in range(2):
        method("fd").local_phase(participant, now)
        method("fd").publish(participant, now)
        method("fd").mutual_phase(participant, now, torch.empty(0, 10, 11))
        method("independent").mutual_phase(alone, now, torch.empty(0, 0, 0))
        assert participant.optimizer.steps == index + 1
    assert torch.equal(participant.parameters.vector, alone.parameters.vector)
