"""FedProto against its paper's steps in plain PyTorch, and its projection of unlike embeddings."""

import pytest
import torch
from helpers.configs import settled
from helpers.learners import a_round, assert_equal, cross_entropy, learner, method
from torch import nn

from fedh2l_mpi import losses, methods
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods.fedproto import projection
from fedh2l_mpi.models import build, embedding
from fedh2l_mpi.planning import requirements
from fedh2l_mpi.sample_form import SampleForm


def by_hand(model: nn.Module, size: int):
    """The model in two parts: from images to projected embeddings, and its classifier."""
    *body, head = model.layers
    project = torch.eye(64) if size == 64 else projection(64, size, seed=0)
    return nn.Sequential(*body), head, project


@pytest.mark.parametrize("local_labels", ["private", "private_and_seed"])
@pytest.mark.parametrize("size", [64, 12])
def test_fedproto_pulls_embeddings_towards_the_mean_of_the_neighbourhoods_samples(size, local_labels):
    keys = {"local_steps": 1, "mutual_steps": 1, "weight_prototypes": 3.0, "prototype_size": size}
    learning, participant, now = method("fedproto", local_labels=local_labels, **keys), learner(), a_round()
    model, batches = build("mlp", SampleForm.image(1, 8), 10, seed=1), learner().minibatches
    body, head, project = by_hand(model, size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draw = torch.Generator().manual_seed(4)
    # Class 0 is nobody's but maybe the own, and class 1 has 5 and 2 samples elsewhere.
    theirs = torch.cat([torch.randn(2, 10, size, generator=draw), torch.full((2, 10, 1), 3.0)], dim=-1)
    theirs[:, 0] = 0.0
    theirs[0, 1, -1], theirs[1, 1, -1] = 5.0, 2.0
    prototypes: dict[int, torch.Tensor] = {}
    for index in range(2):
        seeds = list(learner().seed_minibatches(40, index, 2))
        seen: dict[int, list[torch.Tensor]] = {}
        for step in range(2):
            rows = batches.next()
            inputs, labels = participant.private.stored[rows], participant.private.labels[rows]
            embedded = body(inputs)
            loss = cross_entropy(head(embedded), labels)
            for one, label in zip(embedded @ project, labels.tolist(), strict=True):
                seen.setdefault(label, []).append(one.detach())
                if label in prototypes:
                    loss = loss + 3.0 * ((one - prototypes[label]) ** 2).mean() / len(labels)
            if local_labels == "private_and_seed":
                loss = loss + cross_entropy(model(now.seed.inputs[seeds[step]]), now.seed.labels[seeds[step]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = a_round(index)
        learning.local_phase(participant, now)
        published = learning.published(participant, now)
        for label, own in seen.items():
            expected = torch.cat([torch.stack(own).mean(0), torch.tensor([float(len(own))])])
            torch.testing.assert_close(published[label], expected, rtol=1e-4, atol=1e-5)
        learning.mutual_phase(participant, now, theirs)
        everyone = torch.cat([published[None], theirs])
        prototypes = {
            label: (everyone[:, label, :-1] * everyone[:, label, -1:]).sum(0) / everyone[:, label, -1].sum()
            for label in range(10)
            if everyone[:, label, -1].sum() > 0
        }
    assert_equal([p.detach() for p in participant.model.parameters()], [p.detach() for p in model.parameters()])
    assert "loss_distillation" in participant.noted_means()
    assert not participant.model.layers[-1]._forward_pre_hooks


def test_a_projection_keeps_lengths_on_average_and_is_one_for_every_embedding_of_a_size():
    draws = torch.stack([projection(84, 64, seed) for seed in range(200)])
    direction = torch.nn.functional.normalize(torch.arange(84.0), dim=0)
    squared = ((direction @ draws) ** 2).sum(-1)
    # The squared length is chi-squared over 64 with 64 degrees of freedom: variance 2 / 64 of each of 200 draws.
    assert squared.mean().item() == pytest.approx(1.0, abs=4 * (2 / 64 / 200) ** 0.5)
    assert torch.equal(projection(84, 64, 3), draws[3])
    assert not torch.equal(projection(32, 64, 3), draws[3][:32])


def test_the_distance_from_prototypes_is_a_mean_over_samples_and_numbers():
    embeddings, prototypes = torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    # (1 + 4) / 2 of the first sample; the second has no prototype.
    assert losses.prototype_distance(embeddings, prototypes, torch.tensor([1.0, 0.0])).item() == 5 / 4


@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn", "resnet8", "mobilenet", "vit"])
def test_an_embedding_is_what_the_classifier_makes_logits_of(name):
    model, images = build(name, SampleForm.image(1, 8), 10, seed=1).eval(), torch.randn(3, 1, 8, 8)
    with embedding.capturing(model, 10) as captured:
        logits = model(images)
        torch.testing.assert_close(embedding.classifier(model, 10)(captured.values), logits)


class Pairwise(nn.Module):
    """Logits of ten classes without a linear layer of ten outputs."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.halves = nn.Linear(channels * side * side, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        halves = self.halves(images.flatten(1))
        return torch.cat([halves, -halves], dim=1)


def test_a_model_without_a_classifier_is_refused_before_the_first_round():
    config = settled("method.name=fedproto", f"models=[mlp, '{__name__}:Pairwise']")
    counts = requirements.count_samples(federated.plan(config, digits()))
    says = f"needs a model whose last layer is linear with 10 outputs, but '{__name__}:Pairwise' of models has no such"
    with pytest.raises(UserError, match=says):
        requirements.compute(config, digits(), methods.build(config), counts)
