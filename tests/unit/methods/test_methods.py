"""Every method against its formula, on learners small enough to do by hand or with torch.optim."""

import inspect
from typing import ClassVar

import pytest
import torch
from helpers.learners import STAR, a_round, assert_equal, cross_entropy, gradient_of, learner, method, one_step, samples
from helpers.rounds import a_round_of
from torch import nn

from fedh2l_mpi import methods
from fedh2l_mpi.config import MethodConfig, loading
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.errors import DivergedError, UserError
from fedh2l_mpi.methods import METHODS, Method
from fedh2l_mpi.methods.fedh2l import FedH2L
from fedh2l_mpi.methods.mixing import metropolis_weight
from fedh2l_mpi.models import build
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph


def test_every_method_of_the_config_exists_and_no_other():
    assert set(METHODS) == set(MethodConfig.kinds)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_the_same_number_of_optimiser_steps(name):
    participant, learning = learner(), method(name, local_steps=3, mutual_steps=4)
    array = learning.array(participant, samples=40, classes=10)
    for index in range(7):
        now = a_round(index)
        theirs = torch.empty(0, *((array.rows, array.columns) if array else (0, 0)))
        learning.local_phase(participant, now)
        if array and learning.exchanges_in(index):
            own = learning.publish(participant, now)
            assert (own.dtype, tuple(own.shape)) == (torch.float32, (array.rows, array.columns))
            theirs = torch.stack([own] * 3)
        learning.mutual_phase(participant, now, theirs)
        assert participant.optimizer.steps == 7 * (index + 1)
    assert torch.isfinite(participant.parameters.vector).all()


def kl(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return nn.functional.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")


def posteriors(count: int) -> torch.Tensor:
    return torch.randn(count, 40, 10, generator=torch.Generator().manual_seed(5)).softmax(-1)


def test_independent_learns_from_private_data_alone():
    got = one_step(method("independent"), torch.empty(0, 0, 0))
    assert_equal(got, gradient_of(lambda f, x, y, sx, sy, rows: cross_entropy(f(x), y)))


@pytest.mark.parametrize("name", ["seed_supervised", "pooled"])
def test_seed_supervised_adds_the_seed_labels(name):
    got = one_step(method(name, combine="sum", weight_ce=0.5), torch.empty(0, 0, 0))
    assert_equal(
        got, gradient_of(lambda f, x, y, sx, sy, rows: cross_entropy(f(x), y) + 0.5 * cross_entropy(f(sx), sy))
    )


def test_dml_learns_on_the_seed_set_from_the_sum_of_its_neighbours():
    theirs = posteriors(3)
    got = one_step(method("dml", weight_kd=2.0), theirs)
    assert_equal(
        got,
        gradient_of(
            lambda f, x, y, sx, sy, rows: cross_entropy(f(sx), sy) + 2.0 * sum(kl(f(sx), t[rows]) for t in theirs)
        ),
    )


def test_distributed_distillation_never_looks_at_seed_labels():
    theirs = posteriors(2)

    def loss(f, x, y, sx, sy, rows):
        return cross_entropy(f(x), y) + sum(kl(f(sx), t[rows]) for t in theirs) / 2

    assert_equal(one_step(method("distributed_distillation"), theirs), gradient_of(loss))
    assert_equal(one_step(method("distributed_distillation", labelled=False), theirs), gradient_of(loss))


def prior(labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([(labels == c).sum() + 1 for c in range(10)]) / (len(labels) + 10)


PI, PI_S = prior(samples(64).labels), prior(samples(40, seed=2).labels)


def balanced(logits: torch.Tensor, pi: torch.Tensor, classes: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """Menon et al. by its definition: the likelihood of the label if class c is drawn with pi_c^tau exp(z_c)."""
    weighted = pi**tau * logits.exp()
    return -(weighted[torch.arange(len(classes)), classes] / weighted.sum(1)).log().mean()


@pytest.mark.parametrize("name", ["independent", "seed_supervised", "pooled", "dml", "distributed_distillation"])
def test_corrected_losses_leave_out_the_priors_of_the_private_and_of_the_seed_labels(name):
    def loss(f, x, y, sx, sy, rows):
        private = 0.0 if name == "dml" else balanced(f(x), PI, y, 0.5)
        return private + (balanced(f(sx), PI_S, sy, 0.5) if name in ("seed_supervised", "pooled", "dml") else 0.0)

    more = {} if name in ("independent", "dml", "distributed_distillation") else {"combine": "sum"}
    learning = method(name, prior_correction="balanced", prior_strength=0.5, **more)
    assert_equal(one_step(learning, torch.empty(0, 40, 10)), gradient_of(loss))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("name", "divergence"),
    [("fedh2l", "forward_kl"), ("fedh2l", "reverse_kl"), ("fedh2l", "jensen_shannon"), ("dml", "forward_kl")],
)
def test_corrected_distillation_compares_posteriors_for_the_seed_prior_if_that_is_known(name, divergence, labelled):
    theirs, tau, temperature = posteriors(2), 0.7, 2.0
    keys = {"combine": "sum", "divergence": divergence} if name == "fedh2l" else {}

    def loss(f, x, y, sx, sy, rows):
        logits = f(sx) + (tau * PI_S.log() if labelled else 0)
        own, total = (logits / temperature).softmax(1), 0.0
        for teacher in theirs[:, rows]:
            q = teacher * PI_S ** (tau / temperature) if labelled else teacher
            q = q / q.sum(1, keepdim=True)
            middle = (q + own) / 2
            total = (
                total
                + {
                    "forward_kl": lambda q=q: q * (q / own).log(),
                    "reverse_kl": lambda q=q: own * (own / q).log(),
                    "jensen_shannon": lambda q=q, m=middle: (q * (q / m).log() + own * (own / m).log()) / 2,
                }[divergence]()
                .sum(1)
                .mean()
                * temperature**2
            )
        mean = total if name == "dml" else total / 2
        private = 0.0 if name == "dml" else balanced(f(x), PI, y, tau)
        return private + mean + (balanced(f(sx), PI_S, sy, tau) if labelled else 0.0)

    learning = method(name, labelled, prior_correction="balanced", prior_strength=tau, temperature=temperature, **keys)
    assert_equal(one_step(learning, theirs), gradient_of(loss))


def test_predictions_and_publications_are_not_corrected():
    plain, corrected = (method("fedh2l", prior_correction=kind) for kind in ("none", "balanced"))
    assert torch.equal(plain.publish(learner(), a_round()), corrected.publish(learner(), a_round()))


@pytest.mark.parametrize("teachers", ["right", "better"])
@pytest.mark.parametrize("combine", ["sum", "gem_neighbours", "joint"])
def test_where_nobody_is_right_the_label_has_the_teachers_weight_too(teachers, combine):
    now, theirs = a_round(), posteriors(3)
    sure = torch.nn.functional.one_hot(now.seed.labels, 10) * 0.9 + 0.01
    theirs[0, ::2], theirs[1, ::4] = sure[::2], sure[::4]
    right = theirs.argmax(-1) == now.seed.labels
    participant = learner()
    learning = method("fedh2l", teachers=teachers, backoff=True, combine=combine, weight_ce=0.5, weight_kd=2.0)
    own = learning.publish(participant, now)
    if teachers == "better":
        at = torch.arange(40)
        right &= theirs[:, at, now.seed.labels] > own[at, now.seed.labels]
    assert 0 < right.any(dim=0).sum() < 40

    def loss(f, x, y, sx, sy, rows):
        each = nn.functional.cross_entropy(f(sx), sy, reduction="none")
        total = cross_entropy(f(x), y)
        for n, row in enumerate(rows):
            counting = [theirs[j, row] for j in range(3) if right[j, row]]
            divergence = [(q * (q.log() - f(sx)[n].log_softmax(0))).sum() for q in counting]
            taught = 2.0 * sum(divergence) / len(divergence) if divergence else 2.0 * each[n]
            total = total + (0.5 * each[n] + taught) / len(rows)
        return total

    if combine == "gem_neighbours":
        # The terms are what is tested here; the cone would bend their sum.
        learning.step_within_cone = lambda p, g, terms: p.step(g + sum(terms))
    before = participant.parameters.vector.clone()
    learning.mutual_phase(participant, now, theirs)
    got = (before - participant.parameters.vector) / 0.1
    torch.testing.assert_close(got, torch.cat([g.flatten() for g in gradient_of(loss)]), rtol=2e-4, atol=5e-6)
    assert not participant.kept, "checkpoints would contain it"


@pytest.mark.parametrize("backoff", [False, True])
def test_every_loss_on_labels_is_smoothed_after_the_correction_and_the_distillation_is_not(backoff):
    now, theirs, tau = a_round(), posteriors(2), 0.5
    if backoff:
        # Nobody is right, so the label takes the teachers' place.
        wrong = torch.nn.functional.one_hot((now.seed.labels + 1) % 10, 10) * 0.9 + 0.01
        theirs = wrong.expand(2, -1, -1).clone()

    def loss(f, x, y, sx, sy, rows):
        own = f(sx) + tau * PI_S.log()
        smoothed = cross_entropy(own, sy, label_smoothing=0.2)
        q = theirs[:, rows] * PI_S**tau
        q = q / q.sum(-1, keepdim=True)
        taught = smoothed if backoff else (q * (q.log() - own.log_softmax(1))).sum(-1).mean()
        return cross_entropy(f(x) + tau * PI.log(), y, label_smoothing=0.2) + smoothed + taught

    participant = learner(label_smoothing=0.2)
    keys = {"teachers": "right", "backoff": True} if backoff else {"teachers": "each"}
    learning = method("fedh2l", combine="sum", prior_correction="balanced", prior_strength=tau, **keys)
    before = participant.parameters.vector.clone()
    learning.mutual_phase(participant, now, theirs)
    got = (before - participant.parameters.vector) / 0.1
    torch.testing.assert_close(got, torch.cat([g.flatten() for g in gradient_of(loss)]), rtol=2e-4, atol=5e-6)


@pytest.mark.parametrize("combine", ["gem", "project", "joint", "gem_neighbours"])
def test_what_a_step_goes_along_is_clipped_and_not_the_gradients_that_are_combined(combine):
    now, theirs = a_round(), posteriors(3)
    moved = []
    for longest in (None, 0.05):
        participant = learner(clip_norm=longest)
        before = participant.parameters.vector.clone()
        method("fedh2l", combine=combine, weight_kd=20.0).mutual_phase(participant, now, theirs)
        moved.append((before - participant.parameters.vector) / 0.1)
    whole, clipped = moved
    assert whole.norm() > 0.1
    torch.testing.assert_close(clipped, whole * 0.05 / (whole.norm() + 1e-6), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("kind", ["no neighbours", "warm-up"])
def test_nothing_backs_off_where_nobody_could_teach(kind):
    theirs = torch.empty(0, 40, 10) if kind == "no neighbours" else posteriors(2)
    keys = {"teachers": "right", "combine": "sum", "warmup_rounds": int(kind == "warm-up")}
    plain, backing = (one_step(method("fedh2l", backoff=on, **keys), theirs) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, backing, strict=True))


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
@pytest.mark.parametrize("name", ["fedh2l", "seed_supervised", "pooled"])
def test_joint_steps_make_one_pass_whose_gradient_is_that_of_the_sum(name, architecture):
    def step(combine: str) -> tuple[Participant, torch.Tensor, list[int]]:
        participant, learning, passes = learner(0, architecture), method(name, combine=combine), []
        participant.model.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
        theirs = posteriors(2) if name == "fedh2l" else torch.empty(0, 0, 0)
        learning.mutual_phase(participant, a_round(), theirs)
        return participant, participant.parameters.vector, passes

    apart, expected, two = step("sum")
    joint, got, one = step("joint")
    assert (two, one) == ([32, 32], [64])
    # BatchNorm's statistics are those of both minibatches together.
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6) == (architecture == "mlp")
    assert {"loss_private", "loss_seed"} <= joint.noted_means().keys()
    learning = method(name, combine="joint")
    learning.mutual_phase(joint, a_round(), posteriors(2) if name == "fedh2l" else torch.empty(0, 0, 0))
    assert not {"gradient_cosine", "conflict_rate"} & joint.noted_means().keys()
    assert {"gradient_cosine", "conflict_rate"} <= apart.noted_means().keys()


@pytest.mark.parametrize("name", ["fedh2l", "seed_supervised", "pooled", "fedavg", "fedprox", "d_psgd", "fd", "fml"])
def test_local_steps_with_seed_labels_use_the_rounds_first_minibatches_and_mutual_steps_the_next(name):
    keys = {"combine": "sum"} if name in ("fedh2l", "seed_supervised", "pooled") else {}
    learning = method(name, local_steps=2, mutual_steps=3, local_labels="private_and_seed", **keys)
    participant, now, seen = learner(), a_round(), []
    inner = learning.seed_loss
    learning.seed_loss = lambda p, n, logits, rows, *more: (seen.append(rows), inner(p, n, logits, rows, *more))[1]
    learning.local_phase(participant, now)
    in_local_phase = learning.all_steps_in == "local"
    assert len(seen) == (5 if in_local_phase else 2)
    if not in_local_phase:
        learning.mutual_phase(participant, now, torch.empty(0, 40, 10))
    assert [rows.tolist() for rows in seen] == [rows.tolist() for rows in learner().seed_minibatches(40, 0, 5)]
    assert learning.seed_steps == participant.optimizer.steps == 5


@pytest.mark.parametrize("name", ["fedh2l", "fedavg", "d_psgd", "ds_fl", "feddf", "kt_pfl", "fedproto"])
def test_a_local_step_with_seed_labels_is_one_of_private_and_seed_labels(name):
    keys = {"combine": "sum", "weight_ce": 0.5} if name == "fedh2l" else {}
    learning = method(name, local_steps=1, mutual_steps=0, local_labels="private_and_seed", **keys)
    participant = learner()
    before = participant.parameters.vector.clone()
    learning.local_phase(participant, a_round())
    weight = keys.get("weight_ce", 1.0)
    expected = gradient_of(lambda f, x, y, sx, sy, rows: cross_entropy(f(x), y) + weight * cross_entropy(f(sx), sy))
    torch.testing.assert_close(
        (before - participant.parameters.vector) / 0.1, torch.cat([g.flatten() for g in expected]), rtol=2e-4, atol=2e-6
    )


def test_fedmd_digests_the_mean_of_all_logits_then_revisits_private_data():
    learning, participant, now = method("fedmd", local_steps=2, mutual_steps=1, warmup_rounds=0), learner(), a_round()
    model = build("mlp", SampleForm.image(1, 8), 10, seed=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = torch.randn(2, 40, 10, generator=torch.Generator().manual_seed(3))
    consensus = (model(now.seed.inputs).detach() + theirs[0] + theirs[1]) / 3
    (rows,) = learner().seed_minibatches(40, 0, 1)
    batches = learner().minibatches
    losses = [lambda: (model(now.seed.inputs[rows]) - consensus[rows]).abs().mean()]
    for _ in range(2):
        private_rows = batches.next()
        losses.append(
            lambda at=private_rows: cross_entropy(model(participant.private.stored[at]), participant.private.labels[at])
        )
    for loss in losses:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    learning.publish(participant, now)
    learning.local_phase(participant, now)
    learning.mutual_phase(participant, now, theirs)
    assert_equal([p.detach() for p in participant.model.parameters()], [p.detach() for p in model.parameters()])


def test_fedmd_begins_with_the_seed_labels_and_no_exchange():
    learning = method("fedmd", warmup_rounds=2)
    assert [learning.exchanges_in(index) for index in range(4)] == [False, False, True, True]
    got = one_step(learning, torch.empty(0, 40, 10))
    assert_equal(got, gradient_of(lambda f, x, y, sx, sy, rows: cross_entropy(f(sx), sy)))


def test_metropolis_weights_leave_a_share_for_oneself_and_are_symmetric():
    assert metropolis_weight(STAR, 0, 1) == metropolis_weight(STAR, 1, 0) == 1 / 4
    shares = [1 - sum(metropolis_weight(STAR, i, j) for j in STAR.neighbours[i]) for i in range(4)]
    assert shares == pytest.approx([1 / 4, 3 / 4, 3 / 4, 3 / 4])


def averaged(learning: Method, architecture: str = "mlp") -> tuple[list[torch.Tensor], list[torch.Tensor], Graph]:
    """Everyone's states before and after a round of averaging without a step, on the method's graph."""
    graph = Graph(4, [(i, j) for i in range(4) for j in range(i)]) if learning.needs_complete_graph else STAR
    now = a_round(graph=graph)
    everyone = [learner(index, architecture, seed=index) for index in range(4)]
    published = [learning.publish(participant, now) for participant in everyone]
    before = [participant.shared_state.read() for participant in everyone]
    for participant in everyone:
        theirs = [published[j] for j in graph.neighbours[participant.index]]
        learning.mutual_phase(participant, now, torch.stack(theirs))
    return before, [participant.shared_state.read() for participant in everyone], graph


def test_d_psgd_multiplies_by_the_metropolis_matrix_and_keeps_the_mean():
    before, after, graph = averaged(method("d_psgd"), architecture="cnn")
    for i in range(4):
        expected = before[i].clone()
        for j in graph.neighbours[i]:
            expected += metropolis_weight(graph, i, j) * (before[j] - before[i])
        torch.testing.assert_close(after[i], expected)
    torch.testing.assert_close(torch.stack(after).mean(0), torch.stack(before).mean(0), rtol=1e-5, atol=1e-6)


def test_d_psgd_published_at_the_start_averages_the_weights_before_the_local_steps():
    # Lian et al.: x <- W x - rate * gradient, the gradient at the weights before the average.
    learning = method("d_psgd", publish="start", local_steps=1, mutual_steps=0)
    assert learning.publishes_first
    one, other, now = learner(0), learner(1, seed=2), a_round(graph=Graph(2, [(0, 1)]))
    before = one.shared_state.read()
    learning.publish(one, now)
    theirs = other.shared_state.read()
    learning.local_phase(one, now)
    moved = one.shared_state.read() - before
    learning.mutual_phase(one, now, theirs[None, None])
    torch.testing.assert_close(one.shared_state.read(), (before + theirs) / 2 + moved)


def test_published_at_the_start_running_variances_stay_local_and_positive():
    learning = method("d_psgd", publish="start")
    now = a_round(graph=Graph(2, [(0, 1)]))
    one, other = learner(0, "cnn"), learner(1, "cnn", seed=2)
    norms = [participant.model.layers[1] for participant in (one, other)]
    norms[0].running_var.fill_(4.0)
    norms[1].running_var.fill_(0.5)
    published = [learning.publish(participant, now) for participant in (one, other)]
    norms[0].running_var.fill_(1.0)  # what local steps have made of it
    learning.mutual_phase(one, now, published[1][None])
    assert norms[0].running_var.tolist() == [1.0] * 16


def test_a_gradient_that_is_not_finite_ends_the_run_by_name():
    participant, now = learner(3), a_round()
    participant.private = Labelled(torch.full((64, 1, 8, 8), torch.nan), participant.private.labels)
    with pytest.raises(DivergedError, match="participant 3 diverged: a gradient is not finite"):
        method("fedh2l", combine="gem_neighbours").mutual_phase(participant, now, posteriors(3))


def test_a_method_of_ones_own_may_be_made_of_any_other():
    # It has the keys and defaults of all methods, or a subclass would silently learn with weights of 0.
    settings = MethodConfig(name="mine:Mine", weight_kd=2.0, proximal=0.5)
    assert (settings.weight_kd, settings.weight_ce, settings.combine, settings.proximal) == (2.0, 1.0, "joint", 0.5)
    assert (settings.publish, settings.options) == ("start", {})
    assert settings.joins_minibatches
    assert MethodConfig(name="mine:Mine", combine="gem", local_labels="private_and_seed").joins_minibatches
    assert not MethodConfig(name="mine:Mine", combine="gem").joins_minibatches


def test_fedavg_weighs_by_private_samples_and_leaves_everyone_with_the_same_bits():
    before, after, _ = averaged(method("fedavg"), architecture="cnn")
    counts = (64, 64, 128, 64)
    expected = sum(n / 320 * state for n, state in zip(counts, before, strict=True))
    torch.testing.assert_close(after[0], expected)
    assert all(torch.equal(after[0], state) for state in after)


def test_running_statistics_are_averaged_like_parameters():
    participants = [learner(index, "cnn") for index in range(2)]
    for index, participant in enumerate(participants):
        participant.model.layers[1].running_mean.fill_(float(index))
    now = a_round_of(samples(40, seed=2), Graph(2, [(0, 1)]), (64, 64))
    learning = method("fedavg")
    published = [learning.publish(participant, now) for participant in participants]
    learning.mutual_phase(participants[0], now, published[1][None])
    assert participants[0].model.layers[1].running_mean.tolist() == [0.5] * 16


@pytest.mark.parametrize("name", METHODS)
def test_methods_publish_and_are_evaluated_with_averaged_weights_unless_they_exchange_the_weights(name):
    participant, now = learner(architecture="cnn", average="ema", average_decay=0.9), a_round(index=9)
    learning = method(name, local_steps=2)
    learning.private_steps(participant, 4)
    trained = participant.shared_state.read()
    with_average = build("cnn", SampleForm.image(1, 8), 10, seed=7)
    with_average.load_state_dict({**participant.model.state_dict(), **participant.state()["average"]})
    with learning.evaluating(participant), torch.no_grad():
        expected = with_average.eval()(now.seed.inputs)
        torch.testing.assert_close(participant.model.eval()(now.seed.inputs), expected, rtol=1e-5, atol=1e-5)
    array = learning.array(participant, 40, 10)
    # What is published by class is of the training steps themselves, and a proxy is another model.
    if array is not None and not learning.publishes_classes and learning.second_model is None:
        published = learning.published(participant, now)
        if learning.shares_parameters:
            assert torch.equal(published[0], trained)
        else:
            expected = expected if array.name == "logits" else expected.softmax(-1)
            torch.testing.assert_close(published, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(participant.shared_state.read(), trained)


def test_fedprox_pulls_towards_the_last_average():
    pulled, free = learner(), learner()
    method("fedprox", local_steps=2, mutual_steps=0, proximal=5.0).local_phase(pulled, a_round())
    method("fedprox", local_steps=2, mutual_steps=0, proximal=0.0).local_phase(free, a_round())
    start = learner().parameters.vector
    # By hand: the first steps agree; the second gets mu (w - w_0) added, w - w_0 being the first step.
    first = learner()
    method("fedprox", local_steps=1, mutual_steps=0).local_phase(first, a_round())
    torch.testing.assert_close(
        pulled.parameters.vector, free.parameters.vector - 0.1 * 5.0 * (first.parameters.vector - start)
    )


def test_the_weight_of_distillation_warms_up_then_rises():
    learning = method("fedh2l", warmup_rounds=2, ramp_rounds=3, weight_kd=2.0)
    assert [learning.weight_kd(index) for index in range(7)] == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [learning.exchanges_in(index) for index in range(4)] == [False, False, True, True]


def test_constraints_for_every_neighbour_change_nothing_where_none_is_violated():
    # A teacher that is the learner itself has a vanishing gradient, and private data that are the seed set agree.
    def weights(combine: str) -> torch.Tensor:
        participant, now = learner(), a_round()
        every = torch.arange(64) % 40
        participant.private = Labelled(now.seed.inputs[every], now.seed.labels[every])
        theirs = torch.stack([method("fedh2l").publish(participant, now)] * 2)
        method("fedh2l", combine=combine).mutual_phase(participant, now, theirs)
        return participant.parameters.vector

    torch.testing.assert_close(weights("gem_neighbours"), weights("sum"), rtol=1e-4, atol=1e-6)


def test_a_step_within_the_cone_of_constraints_raises_no_loss():
    participant, now, theirs = learner(), a_round(), posteriors(3)
    gradients = []
    learning = method("fedh2l", combine="gem_neighbours", weight_kd=20.0)
    inner = learning.step_within_cone
    learning.step_within_cone = lambda p, g, terms: (gradients.extend([g, *terms]), inner(p, g, terms))
    before = participant.parameters.vector.clone()
    learning.mutual_phase(participant, now, theirs)
    assert len(gradients) == 1 + 1 + 3
    direction = (before - participant.parameters.vector) / 0.1
    for gradient in gradients:
        assert float(gradient @ direction) >= -1e-4 * float(gradient.norm() * direction.norm())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method.name=d_psgd"], "all participants need one architecture, but models gives cnn, lenet5, mlp"),
        (["method.name=fedavg", "models=[mlp]"], "topology.kind: got 'ring', but method 'fedavg' averages over all"),
        (["method.name=seed_supervised", "seed_set.labelled=false"], "seed_set.labelled: got False"),
        (["method.name=pooled", "seed_set.labelled=false"], "seed_set.labelled: got False"),
        (["method.teachers=seed_accuracy", "seed_set.labelled=false"], "method.teachers: got 'seed_accuracy'"),
        (["method.teachers=right", "seed_set.labelled=false"], "method.teachers: got 'right', but seed_set.labelled"),
        (["method.teachers=better", "seed_set.labelled=false"], "method.teachers: got 'better', but seed_set.labelled"),
        (["method.warmup_rounds=2", "seed_set.labelled=false"], "method.warmup_rounds: needs seed labels"),
        (
            ["method.local_labels=private_and_seed", "seed_set.labelled=false"],
            "method.local_labels: got 'private_and_seed', but seed_set.labelled is false",
        ),
        (
            [f"method.name={__name__}:WithOptions", "method.options.widht=3"],
            f"method.options.widht: got 3, but '{__name__}:WithOptions' has no such option (did you mean 'width'?). "
            "Known: depth, width.",
        ),
        (
            ["method.name=fedh2l_mpi.methods.dml:DeepMutualLearning", "method.options={a: 1}"],
            "method.options.a: got 1, but 'fedh2l_mpi.methods.dml:DeepMutualLearning' has no such option. Known: none.",
        ),
        (["method.name=no_such_module:Kind"], "method.name: 'no_such_module:Kind': cannot import no_such_module"),
        (
            ["method.name=fedh2l_mpi.methods.dml:DeepMutualLearning", "method.combine=gem_neighbours"],
            "method.combine: got 'gem_neighbours', but 'fedh2l_mpi.methods.dml:DeepMutualLearning' makes no gradient "
            "for each neighbour. Fix: use gem, project, pcgrad, sum.",
        ),
        (["method.name=json:JSONDecoder"], "must be a subclass of fedh2l_mpi.methods.Method"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_with_the_reason(settings, says):
    config = loading.load(None, settings).resolved(1, launched=False)
    with pytest.raises(UserError) as error:
        methods.build(config)
    assert says in str(error.value)


class Deep(Method):
    options: ClassVar = {"depth": 1}


class WithOptions(Deep):
    options: ClassVar = {"width": 2.0}


def test_a_class_has_the_options_that_it_and_its_bases_declare_with_the_values_of_the_config():
    config = loading.load(None, [f"method.name={__name__}:WithOptions", "method.options.width=3"])
    assert methods.build(config.resolved(1, launched=False)).options == {"depth": 1, "width": 3}
    assert WithOptions.options == {"width": 2.0}


def test_teachers_that_are_compared_with_oneself_need_what_was_published():
    with pytest.raises(ValueError, match="teachers 'agreement' need the posteriors that the participant itself"):
        method("fedh2l", teachers="agreement").mutual_phase(learner(), a_round(), posteriors(2))


class OwnMutualPhase(FedH2L):
    def mutual_phase(self, participant, now, theirs):
        self.combined_step(participant, *torch.ones(2, participant.parameters.vector.numel()))


def test_a_class_with_a_phase_of_its_own_does_not_inherit_what_was_said_of_another():
    settings = [f"method.name={__name__}:OwnMutualPhase", "devices.batching=like"]
    config = loading.load(None, settings).resolved(1, launched=False)
    assert not methods.build(config).takes_batches
    with pytest.raises(UserError, match="'.*OwnMutualPhase' makes no gradient for each neighbour"):
        methods.build(loading.load(None, [*settings, "method.combine=gem_neighbours"]).resolved(1, launched=False))


def test_a_method_that_makes_a_gradient_for_each_neighbour_may_have_a_constraint_for_each():
    settings = ["method.name=fedh2l_mpi.methods.fedh2l:FedH2L", "method.combine=gem_neighbours"]
    assert methods.build(loading.load(None, settings).resolved(1, launched=False)).constrains_each_neighbour


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method.name=fedhl2"], "method.name: got 'fedhl2'; known: independent, .*did you mean 'fedh2l'"),
        (["method.name=independent", "method.temperature=2"], "method.temperature: got 2, but method 'independent'"),
        (["method.name=dml", "method.combine=gem"], "method.combine: got 'gem', but method 'dml' does not use it"),
        (["method.name=pooled", "method.combine=gem_neighbours"], "gem_neighbours needs neighbours"),
        (
            ["method.prior_strength=0.5", "method.prior_correction=none"],
            "method.prior_strength: got 0.5, but prior_correction is none. Fix: remove it",
        ),
        (
            ["method.backoff=true", "method.teachers=each"],
            "method.backoff: got true, but teachers 'each' count on every",
        ),
        (["method.backoff=true", "seed_set.labelled=false"], "got true, but teachers 'confidence' count on every"),
        (["method.backoff=true", "method.teachers=agreement"], "or without labels. Fix: set it to false, or teachers"),
        (["method.name=dml", "method.local_labels=private"], "method 'dml' does not use it"),
        (["method.name=pooled", "method.backoff=true"], "method 'pooled' does not use it"),
        (
            ["method.options={a: 1}"],
            "method.options: got {'a': 1}, but options are for your own method, not for 'fedh2l'",
        ),
    ],
)
def test_keys_that_a_method_does_not_use_are_refused_by_name(settings, says):
    with pytest.raises(UserError, match=says):
        loading.load(None, settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_cites_its_source_or_is_a_bound_of_our_own(name):
    ours = {"independent", "seed_supervised", "pooled"}
    assert name in ours or "Source:" in (inspect.getdoc(METHODS[name]) or "")
