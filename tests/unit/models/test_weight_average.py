"""The average of the weights against its closed form, and the weights that a model holds meanwhile."""

import pytest
import torch
from torch import Tensor, nn

from fedh2l_mpi.config import OptimizerConfig
from fedh2l_mpi.models import weight_average
from fedh2l_mpi.models.flat_parameters import FlatParameters, SharedState
from fedh2l_mpi.models.weight_average import WeightAverage

DECAY = 0.6


class Normalised(nn.Sequential):
    """A frozen layer, BatchNorm, a counter, and a layer that the state dict names twice."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
        self[0].bias.requires_grad_(False)
        self.again = self[2]


class Replaced(nn.Linear):
    """Puts a new tensor into its buffer, instead of numbers into the tensor, where BatchNorm does not."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("mean", torch.zeros(3))

    def replace(self, mean: Tensor) -> None:
        self.mean = mean


def averaged(follows: weight_average.Interval = "step") -> tuple[nn.Module, SharedState, WeightAverage]:
    torch.manual_seed(0)
    model = Normalised()
    parameters = FlatParameters(model)
    return model, SharedState(model, parameters), WeightAverage(model, parameters, DECAY, follows)


def moved(state: SharedState, step: int) -> Tensor:
    """Other weights and running statistics, as double."""
    weights = torch.randn(state.size, generator=torch.Generator().manual_seed(step))
    state.write(weights)
    return weights.double()


def held(state: SharedState, average: WeightAverage) -> Tensor:
    with average.in_place():
        return state.read().double()


def test_the_average_is_the_weighted_sum_of_all_weights_so_far():
    _, state, average = averaged()
    history = [state.read().double()]
    for step in range(1, 17):
        history.append(moved(state, step))
        average.after_step(step)
        average.after_round(step, 3)
        # The weights of step k have the share 1 - d_k of what the later steps keep; d is 2/11, 3/12, ... up to 0.6.
        d = [0.0] + [min(0.6, (1 + t) / (10 + t)) for t in range(1, step + 1)]
        kept = [torch.tensor(d[k + 1 :]).double().prod() for k in range(step + 1)]
        expected = sum((1 - d[k]) * kept[k] * history[k] for k in range(step + 1))
        torch.testing.assert_close(held(state, average), expected, rtol=1e-5, atol=1e-6)
    assert d[1] == pytest.approx(2 / 11)
    assert d[-1] == 0.6


def test_a_round_of_n_steps_counts_as_n_steps_with_its_last_weights():
    _, state, average = averaged("round")
    first, last = state.read().double(), moved(state, 1)
    average.after_step(3)
    assert torch.equal(held(state, average), first)
    average.after_round(3, 3)
    keeps = (4 / 13) ** 3
    torch.testing.assert_close(held(state, average), keeps * first + (1 - keeps) * last, rtol=1e-5, atol=1e-6)


def test_weights_that_do_not_move_are_their_own_average():
    _, state, average = averaged()
    for step in range(1, 5):
        average.after_step(step)
    assert torch.equal(held(state, average), state.read().double())


def test_the_model_holds_the_average_within_the_context_and_its_own_weights_after_it_also_after_an_error():
    model, state, average = averaged()
    images = torch.randn(5, 4)
    model.eval()
    before = model(images)
    moved(state, 1)
    average.after_step(1)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    after = model(images)
    with average.in_place():
        within = model(images)
        with pytest.raises(KeyError), average.in_place():
            raise KeyError
        assert torch.equal(model(images), within)
    assert not torch.allclose(within, before)
    assert not torch.allclose(within, after)
    assert torch.equal(model(images), after)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    # Steps and exchanges still reach the model.
    moved(state, 2)
    assert not torch.allclose(model(images), after)


def test_the_state_has_the_averaged_entries_of_the_state_dict_and_loads_into_a_model():
    model, state, average = averaged()
    moved(state, 1)
    average.after_step(1)
    stored = {name: value.clone() for name, value in average.state().items()}
    assert set(model.state_dict()) - set(stored) == {"0.bias", "1.num_batches_tracked"}
    torch.manual_seed(0)
    other = Normalised()
    other.load_state_dict({**other.state_dict(), **stored})
    images = torch.randn(5, 4)
    with average.in_place():
        assert torch.equal(other.eval()(images), model.eval()(images))


def test_without_an_average_nothing_is_allocated_and_an_open_decay_is_refused():
    model = Normalised()
    parameters = FlatParameters(model)
    assert weight_average.build(model, parameters, OptimizerConfig(average="none"), "step") is None
    with pytest.raises(RuntimeError, match="not resolved"):
        weight_average.build(model, parameters, OptimizerConfig(), "step")


def test_a_buffer_that_a_module_replaces_is_averaged_and_shared_like_one_that_it_changes():
    model = Replaced()
    parameters = FlatParameters(model)
    state, average = SharedState(model, parameters), WeightAverage(model, parameters, DECAY, "step")
    model.replace(torch.full((3,), 11.0))
    average.after_step(1)
    assert state.read()[-3:].tolist() == [11.0] * 3
    # d of the first step is 2 / 11, from a mean of 0.
    assert held(state, average)[-3:].tolist() == pytest.approx([9.0] * 3)
    assert model.mean.tolist() == [11.0] * 3
    assert average.state()["mean"].tolist() == pytest.approx([9.0] * 3)
