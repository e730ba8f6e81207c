"""Learners that are small enough to compute a method's step by hand or with torch.optim, and their rounds."""

import torch
from torch import nn

from fedh2l_mpi.config import EvaluationConfig, MethodConfig, OptimizerConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.methods import METHODS, Method, Round
from fedh2l_mpi.models import build
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph
from helpers.rounds import a_round_of

cross_entropy = nn.functional.cross_entropy
STAR = Graph(4, [(0, 1), (0, 2), (0, 3)])


def samples(count: int, seed: int = 0) -> Labelled:
    draw = torch.Generator().manual_seed(seed)
    return Labelled(torch.randn(count, 1, 8, 8, generator=draw), torch.randint(10, (count,), generator=draw))


def learner(index: int = 0, architecture: str = "mlp", seed: int = 1, **average: object) -> Participant:
    # Seed minibatches are smaller than the seed set; published and evaluated are the trained weights.
    plain = {"name": "sgd", "lr": 0.1, "seed_batch_size": 32, "average": "none"}
    return Participant(
        index,
        architecture,
        build(architecture, SampleForm.image(1, 8), 10, seed=seed),
        samples(64, seed=index),
        samples(10, 1),
        OptimizerConfig(**{**plain, **average}),
        EvaluationConfig(),
        seed=0,
    )


def a_round(index: int = 0, graph: Graph = STAR) -> Round:
    some = samples(40, seed=2)
    return a_round_of(some, graph, (64, 64, 128, 64), index)


def method(name: str, labelled: bool = True, **keys: object) -> Method:
    # One mutual step on losses that are not corrected, unless a test asks for more.
    plain = {"local_steps": 0, "mutual_steps": 1, "prior_correction": "none"}
    settings = MethodConfig(name=name, **{**plain, **keys})
    return METHODS[name](settings, labelled)


def one_step(learning: Method, theirs: torch.Tensor) -> list[torch.Tensor]:
    """The change of the weights by one mutual step of SGD at rate 0.1, as a gradient."""
    participant = learner()
    before = [parameter.detach().clone() for parameter in participant.model.parameters()]
    learning.mutual_phase(participant, a_round(), theirs)
    return [(b - p.detach()) / 0.1 for b, p in zip(before, participant.model.parameters(), strict=True)]


def gradient_of(loss_of) -> list[torch.Tensor]:
    """The gradient of `loss_of(model, private images, labels, seed images, labels, seed rows)` by autograd alone."""
    participant, now = learner(), a_round()
    model = build("mlp", SampleForm.image(1, 8), 10, seed=1).train()
    (rows,) = participant.seed_minibatches(40, 0, 1)
    private, private_rows = participant.private, participant.minibatches.next()
    loss_of(
        model, private.stored[private_rows], private.labels[private_rows], now.seed.inputs[rows],
        now.seed.labels[rows], rows,
    ).backward()  # fmt: skip
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def assert_equal(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-6)
