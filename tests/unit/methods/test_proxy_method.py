"""ProxyFL and FML against their papers' steps in plain PyTorch, and the second model as a part of a participant."""

import io

import pytest
import torch
from helpers.configs import settled
from helpers.learners import STAR, a_round, cross_entropy, learner, method
from torch import nn

from fedh2l_mpi import methods
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import second_model
from fedh2l_mpi.methods.mixing import metropolis_weight
from fedh2l_mpi.models import build
from fedh2l_mpi.planning import requirements, traffic
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph

COMPLETE = Graph(4, [(i, j) for i in range(4) for j in range(i)])


def kl(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return nn.functional.kl_div(own.log_softmax(1), other.detach().softmax(1), reduction="batchmean")


@pytest.mark.parametrize(
    ("name", "optimizer", "local_labels"),
    [
        ("proxyfl", {}, "private"),
        ("proxyfl", {"name": "adam", "lr": 0.01}, "private_and_seed"),
        ("fml", {"name": "adam", "lr": 0.01}, "private"),
        ("fml", {}, "private_and_seed"),
    ],
)
def test_a_step_trains_both_models_on_the_same_samples_and_on_each_others_posteriors(name, optimizer, local_labels):
    keys = {"proxy_model": "lenet5", "proxy_share": 0.3, "local_labels": local_labels}
    learning = method(name, local_steps=1, mutual_steps=2, **keys)
    participant, now = learner(**optimizer), a_round()
    seeds = learner().seed_minibatches(40, 0, 3)
    own, batches = build("mlp", SampleForm.image(1, 8), 10, seed=1), learner().minibatches
    proxy = second_model.initial("lenet5", learner(), now).model
    kind = torch.optim.Adam if optimizer else torch.optim.SGD
    both = [kind(model.parameters(), lr=optimizer.get("lr", 0.1)) for model in (own, proxy)]
    for step in range(3):
        rows = batches.next()
        parts = [(participant.private.stored[rows], participant.private.labels[rows])]
        if local_labels == "private_and_seed":
            parts.append((now.seed.inputs[seeds[step]], now.seed.labels[seeds[step]]))
        images = torch.cat([part[0] for part in parts])
        z, z_proxy = own(images), proxy(images)
        losses = [
            0.7 * sum(cross_entropy(mine(part[0]), part[1]) for part in parts) + 0.3 * kl(mine(images), other)
            for mine, other in ((own, z_proxy), (proxy, z))
        ]
        for stepping in both:
            stepping.zero_grad()
        sum(losses).backward()
        for stepping in both:
            stepping.step()

    learning.local_phase(participant, now)
    # Adam divides by the gradient's size, so rounding moves some weights; each of its steps is 1e-2 long.
    close = {"rtol": 1e-3, "atol": 2e-4 if optimizer else 1e-5}
    got = [p.detach() for p in participant.model.parameters()]
    for ours, theirs in zip(got, own.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), **close)
    with learning.proxy(participant) as mine:
        for ours, theirs in zip(mine.model.parameters(), proxy.parameters(), strict=True):
            torch.testing.assert_close(ours.detach(), theirs.detach(), **close)
    assert participant.optimizer.steps == 3
    noted = {"loss_private", "loss_distillation", *(["loss_seed"] if len(parts) == 2 else [])}
    assert noted == set(participant.noted_means())


def mixed(name: str, graph: Graph, proxy: str = "cnn") -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Everyone's published proxies before and after a round's averaging."""
    learning, now = method(name, local_steps=1, mutual_steps=0, proxy_model=proxy), a_round(graph=graph)
    everyone = [learner(index, "mlp" if index % 2 else "lenet5", seed=index) for index in range(4)]
    for participant in everyone:
        learning.local_phase(participant, now)
    before = [learning.published(participant, now) for participant in everyone]
    own_models = [participant.parameters.vector.clone() for participant in everyone]
    for participant in everyone:
        theirs = torch.stack([before[j] for j in graph.neighbours[participant.index]])
        learning.mutual_phase(participant, now, theirs)
    assert all(torch.equal(p.parameters.vector, own) for p, own in zip(everyone, own_models, strict=True))
    return before, [learning.published(participant, now) for participant in everyone]


def test_proxyfl_mixes_proxies_by_the_metropolis_matrix_running_statistics_included():
    before, after = mixed("proxyfl", STAR)
    for i in range(4):
        expected = before[i] + sum(metropolis_weight(STAR, i, j) * (before[j] - before[i]) for j in STAR.neighbours[i])
        torch.testing.assert_close(after[i], expected)
    assert not torch.equal(before[0], before[1])


def test_fml_leaves_everyone_with_the_mean_meme_by_private_samples():
    before, after = mixed("fml", COMPLETE)
    expected = sum(n / 320 * meme for n, meme in zip((64, 64, 128, 64), before, strict=True))
    torch.testing.assert_close(after[0], expected)
    assert all(torch.equal(after[0], one) for one in after)


def test_a_proxy_is_the_participants_own_whoever_shares_the_module_and_a_checkpoint_gives_it_back():
    keys = {"proxy_model": "cnn", "local_steps": 2, "mutual_steps": 0}
    alone = []
    for index in range(2):
        learning, participant = method("proxyfl", **keys), learner(index, name="adam")
        for round_index in range(2):
            learning.local_phase(participant, a_round(round_index))
        alone.append(learning.published(participant, a_round()))
    together, everyone = method("proxyfl", **keys), [learner(index, name="adam") for index in range(2)]
    for participant in everyone:
        together.local_phase(participant, a_round(0))
    stored = io.BytesIO()
    torch.save([participant.state() for participant in everyone], stored)
    stored.seek(0)
    resumed, again = method("proxyfl", **keys), [learner(index, name="adam", seed=5) for index in range(2)]
    for participant, state in zip(again, torch.load(stored, weights_only=True), strict=True):
        participant.restore(state)
    for learning, several in ((together, everyone), (resumed, again)):
        for participant in reversed(several):
            learning.local_phase(participant, a_round(1))
        published = [learning.published(participant, a_round()) for participant in several]
        assert all(torch.equal(one, other) for one, other in zip(published, alone, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_second_model_is_counted_with_its_optimiser_and_its_place_in_a_checkpoint(optimizer):
    sizes, kept = [], {}
    for name in ("independent", "proxyfl"):
        proxy = ["method.proxy_model=cnn"] if name == "proxyfl" else []
        settings = ["participants=4", "models=[mlp]", f"method.name={name}", f"optimizer.name={optimizer}", *proxy]
        needs = needed(settled(*settings))
        sizes.append(needs.memory(Hosting(4, 2), traffic.links([(0, 1), (1, 2), (2, 3), (3, 0)], Hosting(4, 2))))
    participant = learner(name=optimizer, lr=0.01)
    method("proxyfl", proxy_model="cnn").local_phase(participant, a_round())
    for name, value in participant.kept.items():
        kind = "models" if name == second_model.WEIGHTS or "buffer" in name else "optimisers"
        kept[kind] = kept.get(kind, 0) + value.nbytes
    independent, proxyfl = sizes
    assert (proxyfl.models - independent.models).tolist() == [2 * kept["models"]] * 2
    assert (proxyfl.optimisers - independent.optimisers).tolist() == [2 * kept.get("optimisers", 0)] * 2
    assert (proxyfl.checkpoint - independent.checkpoint).tolist() == [4 * sum(kept.values())] * 2
    assert (proxyfl.step > independent.step).all()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.name=fml"], "topology.kind: got 'ring', but method 'fml' averages over all participants"),
        (["method.name=proxyfl", "method.proxy_model=mine:Net"], "method.proxy_model: got 'mine:Net'. Allowed: a "),
        (["method.name=proxyfl", "method.proxy_model=lenet"], "method.proxy_model: got 'lenet'. Allowed: a built-in"),
        (["method.name=proxyfl", "method.proxy_model=cnn1d"], "method.proxy_model: 'cnn1d' takes series"),
        (
            ["method.name=proxyfl", "data.name=grammar_text", "models=[mlp]", "seed_set.views=none"],
            "method.proxy_model: a second model for sequences of token ids is not supported",
        ),
    ],
)
def test_what_cannot_be_a_proxy_is_refused_with_the_reason(overrides, says):
    with pytest.raises(UserError) as error:
        needed(settled(*overrides))
    assert says in str(error.value)


def needed(config: Config) -> requirements.Requirements:
    """What a run needs, which is computed before its first round."""
    source = open_source(config.data)
    counts = requirements.count_samples(federated.plan(config, source))
    return requirements.compute(config, source, methods.build(config), counts)
