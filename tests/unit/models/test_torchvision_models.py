"""torchvision's classifiers: what they are built to, and what is said where torchvision cannot be used."""

import importlib
import importlib.util
import sys

import pytest
import torch
from torch import nn

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models import build
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.sample_form import SampleForm


def _why_not() -> str:
    """Why torchvision cannot be used here; empty if it can."""
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    try:
        importlib.import_module("torchvision.models")
    # One that was made for another torch fails with any error, not only ImportError.
    except Exception as error:
        return f"torchvision cannot be imported: {type(error).__name__}: {error}"
    return ""


WHY_NOT = _why_not()
needs_torchvision = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def _stub(folder, monkeypatch, code, models=""):
    """A package `torchvision` of the given code, version 0.20.1, in place of any that is installed."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(code)
    (folder / "torchvision" / "models.py").write_text(models)
    (folder / "torchvision-0.20.1.dist-info").mkdir()
    (folder / "torchvision-0.20.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.1\n"
        "Requires-Dist: numpy\nRequires-Dist: torch (==2.5.1)\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def own_modules():
    """Forgets what a test imported as torchvision."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_without_torchvision_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        UserError,
        match=r"'torchvision:resnet18': torchvision is not installed. Fix: install the extra \[vision\], as in pip",
    ):
        build("torchvision:resnet18", SampleForm.image(3, 32), 7, seed=0)


@pytest.mark.parametrize(
    "error", ["RuntimeError('operator torchvision::nms does not exist')", "OSError('libcudart.so.12')"]
)
def test_a_torchvision_made_for_another_torch_is_named_with_both_versions(tmp_path, monkeypatch, own_modules, error):
    _stub(tmp_path, monkeypatch, f"raise {error}")
    # Twice: an import that failed must not change what the next participant's model says.
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            build("torchvision:resnet18", SampleForm.image(3, 32), 7, seed=0)
        assert "torchvision 0.20.1 (made for torch==2.5.1)" in str(raised.value)
        assert f"with torch {torch.__version__}: {error.split('(')[0]}: " in str(raised.value)


def test_an_unknown_name_and_strange_channels_are_refused(tmp_path, monkeypatch, own_modules):
    _stub(tmp_path, monkeypatch, "", "def list_models(module): return ['alexnet', 'resnet18', 'vgg11']")
    says = r"got 'torchvision:resnet8'\. .*\(did you mean 'torchvision:resnet18' or 'torchvision:alexnet'\?\)"
    with pytest.raises(UserError, match=says):
        build("torchvision:resnet8", SampleForm.image(3, 32), 7, seed=0)
    says = r"needs images of 3 channels, or of 1 channel that is repeated\. The data have 2\.$"
    with pytest.raises(UserError, match=says):
        build("torchvision:resnet18", SampleForm.image(2, 32), 7, seed=0)


NAMES = ["resnet18", "alexnet", "mobilenet_v2", "vgg11_bn", "vit_b_16", "inception_v3", "googlenet"]


@needs_torchvision
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_maps_images_to_logits_in_training_and_in_evaluation(name, channels):
    model = build(f"torchvision:{name}", SampleForm.image(channels, 96), 7, seed=0)
    images = torch.randn(2, channels, 96, 96)
    for mode in (True, False):
        with torch.no_grad():
            assert model.train(mode)(images).shape == (2, 7)


@needs_torchvision
def test_grey_images_are_repeated_to_three_channels():
    grey, colour = (build("torchvision:resnet18", SampleForm.image(channels, 32), 7, seed=0) for channels in (1, 3))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(grey(images), colour(images.repeat(1, 3, 1, 1)))


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "side", "says"),
    [("alexnet", 28, "fails on images of shape"), ("vit_b_16", 28, "cannot be built for images of 3 x 28 x 28")],
)
def test_images_too_small_for_a_classifier_are_refused(name, side, says):
    with pytest.raises(UserError, match=says):
        build(f"torchvision:{name}", SampleForm.image(3, side), 7, seed=0)


@needs_torchvision
@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet"])
def test_flat_storage_holds_a_classifiers_gradient(name):
    plain, flat = (build(f"torchvision:{name}", SampleForm.image(3, 64), 7, seed=0).eval() for _ in range(2))
    vector = FlatParameters(flat)
    images = torch.randn(2, 3, 64, 64)
    expected = torch.autograd.grad(plain(images).square().sum(), list(plain.parameters()))
    gradient = vector.gradient(flat(images).square().sum())
    with torch.no_grad():
        vector.vector.copy_(gradient)
    for parameter, value in zip(flat.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-3, atol=1e-4)


@needs_torchvision
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
def test_weights_of_a_thousand_classes_load_into_seven(name, tmp_path):
    models = importlib.import_module("torchvision.models")
    # As published: with the auxiliary classifiers, where there are any.
    options = {"init_weights": False} if name == "googlenet" else {}
    published = models.get_model(name, weights=None, num_classes=1000, **options).state_dict()
    torch.save(published, tmp_path / "published.pth")
    ours = build(
        f"torchvision:{name}", SampleForm.image(1, 64), 7, seed=2, weights=str(tmp_path / "published.pth")
    ).state_dict()
    fresh = build(f"torchvision:{name}", SampleForm.image(1, 64), 7, seed=2).state_dict()
    kept = [key for key in ours if ours[key].shape != published[key].shape]
    assert len(kept) == 2
    assert all(torch.equal(ours[key], (fresh if key in kept else published)[key]) for key in ours)


@needs_torchvision
def test_torchvisions_resnet18_weights_make_ours_the_same_function(tmp_path):
    theirs: nn.Module = importlib.import_module("torchvision.models").get_model("resnet18", weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "published.pth")
    ours = build("resnet18", SampleForm.image(3, 96), 1000, seed=1, weights=str(tmp_path / "published.pth")).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
