"""FedH2L written down as plain loops over whole models, to compare the simulator with.

The loops share the inputs with the simulator: config, partition, the seed rows of each round, initial weights, and the
random streams that order the minibatches. All else is torch.optim, and each formula as docs/method.md gives it.

Shape letters: B minibatch, S seed rows of a round, N neighbours, C classes.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.models import build
from fedh2l_mpi.rng import Purpose, generator, torch_seed
from fedh2l_mpi.sample_form import SampleForm

cross_entropy = nn.functional.cross_entropy


@dataclass
class Learner:
    """A participant: model, optimiser, private data, rows of its private minibatches, numbers of its neighbours."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor
    minibatches: Iterator[np.ndarray]
    near: list[int]

    def private(self) -> tuple[Tensor, Tensor]:
        rows = next(self.minibatches)
        return self.images[rows], self.labels[rows]


def cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Whole minibatches of an epoch; the samples after the last one are left out."""
    return [order[at : at + size] for at in range(0, len(order) - size + 1, size)]


def private_minibatches(settings: Config, index: int, samples: int) -> Iterator[np.ndarray]:
    for epoch in itertools.count():
        order = generator(settings.seed, Purpose.PRIVATE_BATCHES, index, epoch).permutation(samples)
        yield from cut(order, settings.optimizer.batch_size)


def seed_minibatches(settings: Config, index: int, round_index: int, samples: int) -> Iterator[np.ndarray]:
    draw = generator(settings.seed, Purpose.SEED_BATCHES, index, round_index)
    while True:
        yield from cut(draw.permutation(samples), settings.optimizer.seed_batch_size)


def inputs(settings: Config) -> tuple[list[Learner], federated.Federation]:
    everyone = range(settings.size)
    loaded = federated.load(federated.plan(settings, digits()), everyone, torch.device("cpu"))
    learners = []
    for index in everyone:
        ring = sorted({(index - 1) % settings.size, (index + 1) % settings.size})
        star = [0] if index else list(everyone[1:])
        first = torch_seed(settings.seed, Purpose.INITIALISATION, index)
        model, data = build(settings.architecture(index), SampleForm.image(1, 8), 10, first), loaded.private[index]
        learners.append(
            Learner(
                model,
                torch.optim.Adam(model.parameters(), lr=settings.optimizer.lr),
                data.stored,
                data.labels,
                private_minibatches(settings, index, len(data.labels)),
                {"ring": ring, "star": star}[settings.topology.kind],
            )
        )
    return learners, loaded


def classic(settings: Config) -> dict[str, np.ndarray]:
    """The classic recipe, with one backward pass a loss, and gem by its definition."""
    learners, loaded = inputs(settings)

    def gradients(one: Learner, loss: Tensor) -> list[Tensor]:
        one.optimizer.zero_grad()
        loss.backward()
        return [parameter.grad.clone() for parameter in one.model.parameters()]

    def private_loss(one: Learner) -> Tensor:
        images, labels = one.private()
        return cross_entropy(one.model(images), labels)

    for round_index in range(settings.rounds):
        seed = loaded.seed_set.of_round(round_index)
        with torch.no_grad():
            published = [one.model.eval()(seed.inputs).softmax(1) for one in learners]
        for index, one in enumerate(learners):
            one.model.train()
            for _ in range(settings.method.local_steps):
                gradients(one, private_loss(one))
                one.optimizer.step()
            minibatches = seed_minibatches(settings, index, round_index, len(seed))
            for rows in itertools.islice(minibatches, settings.method.mutual_steps):
                g_private = gradients(one, private_loss(one))
                logits = one.model(seed.inputs[rows])
                teachers = [published[j][rows] for j in one.near]
                kl = [nn.functional.kl_div(logits.log_softmax(1), t, reduction="batchmean") for t in teachers]
                g_seed = gradients(one, cross_entropy(logits, seed.labels[rows]) + sum(kl) / len(kl))
                named = {"L": g_private, "S": g_seed}
                dot = {
                    x + y: sum((a * b).sum() for a, b in zip(named[x], named[y], strict=True))
                    for x, y in itertools.product("LS", repeat=2)
                }
                step = [a + b for a, b in zip(g_private, g_seed, strict=True)]
                for name, g in named.items():
                    violated = dot["L" + name] + dot["S" + name]
                    if violated < 0:
                        step = [v - violated / dot[name + name] * h for v, h in zip(step, g, strict=True)]
                for parameter, value in zip(one.model.parameters(), step, strict=True):
                    parameter.grad = value
                one.optimizer.step()
    with torch.no_grad():
        loss = [
            [float(cross_entropy(one.model.eval()(test.stored), test.labels)) for test in loaded.tests]
            for one in learners
        ]
    return {"loss": np.array([loss])}


def log_prior(labels: Tensor) -> Tensor:
    return ((torch.bincount(labels, minlength=10) + 1) / (len(labels) + 10)).log()


def through_a_byte(posteriors_SC: Tensor) -> Tensor:
    """Posteriors that were sent as -log p in steps of 1/16 nat, from 0 to 255, and scaled to sum to 1."""
    steps = (-16 * posteriors_SC.log()).round().clamp(0, 255)
    received = (-steps / 16).exp()
    return received / received.sum(1, keepdim=True)


def taught(
    logits_BC: Tensor, theirs_NBC: Tensor, labels_B: Tensor, prior_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The mean KL(q_j || own) of the neighbours that are right about a sample, 0 where none is, and their number.

    The own scores have tau log pi_S added already (`prior_C`); q_j is proportional to p_j pi_S^(tau / T).
    """
    own_log_BC = (logits_BC / temperature).log_softmax(1)
    total_B, right_B = torch.zeros(len(labels_B)), torch.zeros(len(labels_B))
    for p_BC in theirs_NBC:
        q_BC = p_BC * (prior_C / temperature).exp()
        q_BC = q_BC / q_BC.sum(1, keepdim=True)
        is_right_B = (p_BC.argmax(1) == labels_B).float()
        total_B = total_B + is_right_B * (q_BC * (q_BC.log() - own_log_BC)).sum(1)
        right_B = right_B + is_right_B
    return total_B / right_B.clamp(min=1), right_B


def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    for a, w in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.copy_(keep * a + (1 - keep) * w)


def fitted(logits_SC: Tensor, labels_S: Tensor, prior_C: Tensor) -> float:
    """The temperature between 1/20 and 20 with the smallest cross-entropy of z / T + tau log pi_S."""

    def loss(log_t: float) -> float:
        return float(cross_entropy(logits_SC.double() / np.exp(log_t) + prior_C.double(), labels_S))

    return float(np.exp(optimize.minimize_scalar(loss, bounds=np.log([1 / 20, 20]), method="bounded").x))


def standard(settings: Config) -> dict[str, np.ndarray]:
    """The standard recipe of `fedh2l`; of `seed_supervised`, which is the same loop without teachers."""
    learners, loaded = inputs(settings)
    averages = [copy.deepcopy(one.model) for one in learners]
    method, exchanges = settings.method, settings.method.name == "fedh2l"
    prior_C = method.prior_strength * log_prior(loaded.seed_set.samples.labels)
    names = ("loss", "accuracy", "temperature", "loss_private", "loss_seed", "loss_distillation")
    history: dict[str, list] = {name: [] for name in names}
    for round_index in range(settings.rounds):
        seed = loaded.seed_set.of_round(round_index)
        with torch.no_grad():
            logits = [average.eval()(seed.inputs) for average in averages]
        published = [through_a_byte((z / method.temperature).softmax(1)) for z in logits] if exchanges else []
        row: dict[str, list] = {name: [] for name in names}
        for index, one in enumerate(learners):
            own_prior_C = method.prior_strength * log_prior(one.labels)
            theirs_NSC = torch.stack([published[j] for j in one.near]) if exchanges else None
            minibatches = seed_minibatches(settings, index, round_index, len(seed))
            one.model.train()
            noted: dict[str, list] = {"loss_private": [], "loss_seed": [], "loss_distillation": []}
            for step in range(method.local_steps + method.mutual_steps):
                (images, labels), rows = one.private(), next(minibatches)
                both = one.model(torch.cat([images, seed.inputs[rows]]))
                own, shared = both[: len(labels)] + own_prior_C, both[len(labels) :] + prior_C
                private = cross_entropy(own, labels)
                each_B = cross_entropy(shared, seed.labels[rows], reduction="none")
                loss = private + method.weight_ce * each_B.mean()
                noted["loss_private"].append(private.item())
                noted["loss_seed"].append(each_B.mean().item())
                if exchanges and step >= method.local_steps:
                    kl_B, right_B = taught(shared, theirs_NSC[:, rows], seed.labels[rows], prior_C, method.temperature)
                    noted["loss_distillation"].append(kl_B.mean().item())
                    loss = loss + method.weight_kd * method.temperature**2 * kl_B.mean()
                    if method.backoff:
                        loss = loss + method.weight_kd * ((right_B == 0) * each_B).mean()
                one.optimizer.zero_grad()
                loss.backward()
                one.optimizer.step()
                taken = round_index * (method.local_steps + method.mutual_steps) + step + 1
                follow(averages[index], one.model, min(settings.optimizer.average_decay, (1 + taken) / (10 + taken)))
            for name, values in noted.items():
                row[name].append(np.mean(values) if values else np.nan)
            unseen, average = loaded.seed_set.of_round(round_index + 1), averages[index].eval()
            with torch.no_grad():
                temperature = fitted(average(unseen.inputs), unseen.labels, prior_C)
                tested = [(average(test.stored), test.labels) for test in loaded.tests]
            row["temperature"].append(temperature)
            row["loss"].append([float(cross_entropy(z / temperature, labels)) for z, labels in tested])
            row["accuracy"].append([float((z.argmax(1) == labels).float().mean()) for z, labels in tested])
        for name, values in row.items():
            history[name].append(values)
    return {name: np.array(values) for name, values in history.items()}
