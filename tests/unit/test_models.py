"""The zoo, flat storage, and a user's own architecture."""

import sys

import pytest
import torch
from torch import nn

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models import build
from fedh2l_mpi.models.flat import FlatParameters
from fedh2l_mpi.models.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 8, 10), (1, 28, 10), (3, 32, 100), (3, 64, 7)])
def test_every_architecture_fits_the_input(name, channels, side, classes):
    model = build(name, channels, side, classes, seed=0)
    assert model(torch.randn(3, channels, side, side)).shape == (3, classes)


def test_lenet5_on_mnist_has_the_known_number_of_parameters():
    assert sum(p.numel() for p in build("lenet5", 1, 28, 10, seed=0).parameters()) == 61_706


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (build("cnn", 1, 8, 10, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
def test_flat_storage_changes_neither_the_function_nor_the_gradient(name):
    plain, flat = build(name, 3, 16, 10, seed=0).train(), build(name, 3, 16, 10, seed=0).train()
    vector = FlatParameters(flat)
    images = torch.randn(4, 3, 16, 16)
    labels = torch.arange(4)
    expected = torch.autograd.grad(nn.functional.cross_entropy(plain(images), labels), list(plain.parameters()))
    gradient = vector.gradient(nn.functional.cross_entropy(flat(images), labels))
    # Written through the vector, read through the parameters: the same order, and the same values.
    with torch.no_grad():
        vector.vector.copy_(gradient)
    for parameter, value in zip(flat.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-4, atol=1e-6)


def test_unused_and_frozen_parameters_do_no_harm():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    flat = FlatParameters(model)
    gradient = flat.gradient(model["frozen"](model["used"](torch.ones(1, 2))).sum())
    assert len(gradient) == 12
    assert gradient[6:].abs().max() == 0.0
    assert gradient[:6].abs().max() > 0.0


def test_weights_that_a_lazy_model_draws_in_its_first_pass_follow_the_seed_too(tmp_path, monkeypatch):
    (tmp_path / "lazy_models.py").write_text(
        "from torch import nn\n"
        "class Lazy(nn.Sequential):\n"
        "    def __init__(self, channels, side, classes): super().__init__(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = build("lazy_models:Lazy", 1, 8, 10, seed=4)[1].weight
        torch.rand(3)
        assert torch.equal(one, build("lazy_models:Lazy", 1, 8, 10, seed=4)[1].weight)


def test_a_users_own_class_is_found_and_checked(tmp_path, monkeypatch):
    (tmp_path / "users_models.py").write_text(
        "from torch import nn\n"
        "class Good(nn.Module):\n"
        "    def __init__(self, channels, side, classes, extra=0):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(channels * side * side, classes + extra)\n"
        "    def forward(self, images): return self.layer(images.flatten(1))\n"
        "class WrongShape(Good):\n"
        "    def __init__(self, **sizes): super().__init__(**sizes, extra=1)\n"
        "class WrongArguments(nn.Module):\n"
        "    def __init__(self, width): super().__init__()\n"
        "class NothingToLearn(Good):\n"
        "    def __init__(self, **sizes): super().__init__(**sizes); self.requires_grad_(False)\n"
        "def not_a_model(**sizes): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert build("users_models:Good", 1, 8, 10, seed=0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for name, says in {
        "users_models:WrongShape": r"\(2, 11\), must be logits \(2, 10\)",
        "users_models:WrongArguments": "cannot be built",
        "users_models:not_a_model": "gave a int",
        "users_models:NothingToLearn": "has no parameter to train",
        ".users_models:Good": "cannot import .users_models",
        "users_models:Missing": "has no Missing",
        "no_such_module:Model": "cannot import no_such_module",
        "lenet": "did you mean 'lenet5'",
        "users_models:": "known: mlp",
    }.items():
        with pytest.raises(UserError, match=says):
            build(name, 1, 8, 10, seed=0)
    sys.modules.pop("users_models")
