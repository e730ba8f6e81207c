"""Combining gradients: hand-made cases, the defining properties on random ones, and a QP solver as the oracle."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from fedh2l_mpi.methods.gradients import COMBINERS, InnerProducts, gem, nearest_in_cone


def combine(rule: str, g_private: torch.Tensor, g_seed: torch.Tensor) -> torch.Tensor:
    a, b = COMBINERS[rule](InnerProducts.of(g_private, g_seed))
    return a * g_private + b * g_seed


def opposing(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    g_private = torch.randn(8, generator=draw, dtype=torch.float64)
    g_seed = -float(torch.rand(1, generator=draw) * 3) * g_private + torch.randn(8, generator=draw, dtype=torch.float64)
    return g_private, g_seed


@pytest.mark.parametrize("rule", COMBINERS)
def test_gradients_that_agree_are_added(rule):
    g_private, g_seed = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    assert combine(rule, g_private, g_seed).tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", [-2.0, 1.0]),  # (1, 0) + (-3, 1)
        ("gem", [0.0, 1.0]),  # (-2, 1) moved to the nearest point with no negative part along (1, 0)
        ("project", [1.0, 1.0]),  # (1, 0) + (0, 1)
        ("pcgrad", [0.1, 1.3]),  # (1, 0) + 3/10 (-3, 1), and (0, 1)
    ],
)
def test_strongly_opposing_gradients_by_hand(rule, expected):
    assert combine(rule, torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 1.0])).tolist() == pytest.approx(
        expected, abs=1e-6
    )


def test_gem_keeps_a_sum_that_raises_neither_loss():
    # They oppose each other, yet their sum helps both: nothing needs to be changed.
    g_private, g_seed = torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 1.0])
    assert combine("gem", g_private, g_seed).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("seed", range(50))
def test_gem_is_what_a_quadratic_programme_finds(seed):
    g_private, g_seed = opposing(seed)
    # min |v - g|^2 with G v >= 0 has the dual v = g + G' u, u >= 0 minimising |G' u + g|: non-negative least squares.
    constraints = np.stack([g_private.numpy(), g_seed.numpy()])
    target = (g_private + g_seed).numpy()
    multipliers, _ = nnls(constraints.T, -target)
    expected = target + constraints.T @ multipliers
    assert combine("gem", g_private, g_seed).numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rule", ["gem", "pcgrad"])
def test_to_first_order_neither_loss_rises(rule, seed):
    g_private, g_seed = opposing(seed)
    step = combine(rule, g_private, g_seed)
    assert step.dot(g_private) >= -1e-9
    assert step.dot(g_seed) >= -1e-9


@pytest.mark.parametrize("seed", range(20))
def test_project_never_opposes_the_private_gradient(seed):
    g_private, g_seed = opposing(seed)
    dropped = combine("project", g_private, g_seed) - g_private
    assert dropped.dot(g_private) >= -1e-9


@pytest.mark.parametrize("rule", COMBINERS)
@pytest.mark.parametrize("zero", ["private", "seed", "both"])
def test_a_vanishing_gradient_constrains_nothing(rule, zero):
    g_private = torch.zeros(2) if zero != "seed" else torch.tensor([1.0, -2.0])
    g_seed = torch.zeros(2) if zero != "private" else torch.tensor([1.0, -2.0])
    assert combine(rule, g_private, g_seed).tolist() == (g_private + g_seed).tolist()


def test_cosine_and_conflict():
    right = InnerProducts.of(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
    assert right.cosine.item() == pytest.approx(-(0.5**0.5))
    assert right.conflict.item() == 1.0
    apart = InnerProducts.of(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert (apart.cosine.item(), apart.conflict.item()) == (0.0, 0.0)
    assert InnerProducts.of(torch.zeros(2), torch.ones(2)).cosine.item() == 0.0


@pytest.mark.parametrize("size", [1e-15, 1e-8, 1.0, 1e8, 1e15])
def test_the_cosine_of_opposite_gradients_is_minus_one_at_any_size(size):
    gradient = torch.tensor([size, -2 * size])
    assert InnerProducts.of(gradient, -gradient).cosine.item() == pytest.approx(-1.0)


def random_gradients(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_the_nearest_vector_in_the_cone_of_two_is_gem(seed):
    gradients = random_gradients(2, seed)
    a, b = gem(InnerProducts.of(*gradients))
    expected = a * gradients[0] + b * gradients[1]
    found = nearest_in_cone(gradients @ gradients.T) @ gradients
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [3, 6])
def test_the_nearest_vector_in_a_cone_is_feasible_and_no_feasible_one_is_nearer(seed, count):
    gradients = random_gradients(count, seed)
    found = nearest_in_cone(gradients @ gradients.T) @ gradients
    assert (gradients @ found).min() >= -1e-8
    # The projection onto a convex cone: the rest is orthogonal to it, and has no positive product with the cone.
    rest = gradients.sum(dim=0) - found
    assert float(rest @ found) == pytest.approx(0.0, abs=1e-7)
    from scipy.optimize import linprog

    worst = linprog(-rest.numpy(), A_ub=-gradients.numpy(), b_ub=[0.0] * count, bounds=[(-1, 1)] * 7)
    assert -worst.fun <= 1e-6


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-7])
def test_what_rounding_leaves_of_a_gradient_constrains_nothing(size):
    gradients = random_gradients(3, 1)
    gradients[1] = gradients[0] + 0.1 * gradients[1]
    # It points away from the others, as rounding may.
    gradients[2] = -size * (gradients[0] + gradients[1])
    assert nearest_in_cone(gradients @ gradients.T).tolist() == [1.0, 1.0, 1.0]
    gradients[2] *= 1e-2 / max(size, 1e-9)
    if size:
        assert nearest_in_cone(gradients @ gradients.T)[2] > 1


def test_gradients_that_all_vanish_are_summed():
    assert nearest_in_cone(torch.zeros(3, 3)).tolist() == [1.0, 1.0, 1.0]


def test_a_vanishing_or_repeated_gradient_is_an_ordinary_case():
    gradients = random_gradients(2, 0)[[0, 1, 1, 1]]
    gradients[3] = 0.0
    found = nearest_in_cone(gradients @ gradients.T) @ gradients
    assert torch.isfinite(found).all()
    assert (gradients @ found).min() >= -1e-8
