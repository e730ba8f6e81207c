"""The zoo, flat storage, a user's own architecture, and pretrained weights."""

import logging
import subprocess
import sys

import pytest
import torch
from helpers.launching import ROOT
from helpers.pages import blocks
from torch import Tensor, nn

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models import build, check_weights, weights_digest, wide_layout
from fedh2l_mpi.models.attention import Attention
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.models.vit import VisionTransformer
from fedh2l_mpi.models.zoo import taking
from fedh2l_mpi.sample_form import SampleForm


@pytest.mark.parametrize("name", taking("image"))
@pytest.mark.parametrize(
    ("channels", "side", "classes"), [(1, 8, 10), (1, 28, 10), (3, 32, 100), (3, 64, 7), (3, 224, 65)]
)
def test_every_architecture_fits_the_input(name, channels, side, classes):
    model = build(name, SampleForm.image(channels, side), classes, seed=0)
    assert model(torch.randn(3, channels, side, side)).shape == (3, classes)


def test_lenet5_on_mnist_has_the_known_number_of_parameters():
    assert sum(p.numel() for p in build("lenet5", SampleForm.image(1, 28), 10, seed=0).parameters()) == 61_706


def test_resnet18_has_the_known_number_of_parameters_and_a_stem_that_spares_small_images():
    assert sum(p.numel() for p in build("resnet18", SampleForm.image(3, 224), 1000, seed=0).parameters()) == 11_689_512
    # The known number of the usual network for CIFAR-10: a 3 x 3 stem, 64 * 3 * 40 weights fewer, and 10 classes.
    small = build("resnet18", SampleForm.image(3, 32), 10, seed=0)
    assert sum(p.numel() for p in small.parameters()) == 11_173_962
    assert small.layer1(small.maxpool(small.conv1(torch.zeros(1, 3, 32, 32)))).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("side", [1, 8, 17, 28, 29, 30, 31, 32, 33, 65, 224])
@pytest.mark.parametrize("height", [None, 5, 40])
def test_the_transformer_covers_every_pixel_with_at_most_eight_patches_a_side(side, height):
    height = side if height is None else height
    embedding = VisionTransformer((1, height, side), classes=2).embedding
    nn.init.ones_(embedding.weight)
    nn.init.zeros_(embedding.bias)
    patches = embedding(torch.ones(1, 1, height, side))
    assert max(patches.shape[-2:]) <= 8
    # A sum of ones over every patch counts the pixels.
    assert patches[0, 0].sum() == height * side


def test_the_transformers_attention_is_pytorchs():
    own, reference = Attention(width=16, heads=4), nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": own.into.weight,
            "in_proj_bias": own.into.bias,
            "out_proj.weight": own.out.weight,
            "out_proj.bias": own.out.bias,
        }
    )
    x_BTE = torch.randn(3, 5, 16)
    torch.testing.assert_close(own(x_BTE), reference(x_BTE, x_BTE, x_BTE)[0])


def test_the_transformer_computes_the_same_in_training_and_in_evaluation():
    model, images = build("vit", SampleForm.image(1, 28), 10, seed=0), torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "vit"])
def test_training_twice_gives_the_same_bits(name):
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4)
    ends = []
    for _ in range(2):
        model = build(name, SampleForm.image(1, 16), 10, seed=3).train()
        flat = FlatParameters(model)
        for _ in range(3):
            flat.vector.add_(flat.gradient(nn.functional.cross_entropy(model(images), labels)), alpha=-0.01)
        ends.append(flat.vector)
    assert torch.equal(*ends)


def test_the_zoo_loads_neither_the_compiler_nor_torchvision():
    # Seconds and hundreds of megabytes on every rank.
    code = (
        "import sys; from fedh2l_mpi.models import build; from fedh2l_mpi.models.zoo import taking\n"
        "from fedh2l_mpi.sample_form import SampleForm\n"
        "for name in taking('image'): build(name, SampleForm.image(1, 8), 10, seed=0)\n"
        "print([m for m in ('torch._dynamo', 'torchvision') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (build("cnn", SampleForm.image(1, 8), 10, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "resnet18", "mobilenet", "vit"])
def test_flat_storage_changes_neither_the_function_nor_the_gradient(name, frozen):
    plain, flat = (
        build(name, SampleForm.image(3, 16), 10, seed=0).train(),
        build(name, SampleForm.image(3, 16), 10, seed=0).train(),
    )
    if frozen:
        for model in (plain, flat):
            parameters = list(model.parameters())
            for parameter in parameters[: len(parameters) // 2]:
                parameter.requires_grad_(False)
    vector = FlatParameters(flat)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(nn.functional.cross_entropy(plain(images), labels), trained)
    gradient = vector.gradient(nn.functional.cross_entropy(flat(images), labels))
    # Written through the vector, read through the parameters: the same order, and the same values.
    with torch.no_grad():
        vector.vector.copy_(gradient)
    values = iter(expected)
    for parameter, own in zip(flat.parameters(), plain.parameters(), strict=True):
        if own.requires_grad:
            torch.testing.assert_close(parameter.detach(), next(values), rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(parameter, own)


@pytest.mark.parametrize(("channels", "side", "padding"), [(1, 28, 2), (3, 32, 0), (6, 9, (1, 3)), (20, 7, 1)])
@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_a_minibatch_as_one_wide_image_gives_what_its_images_give(channels, side, padding, batch):
    draw = torch.Generator().manual_seed(side)
    # Multiples of 1/8, small enough for exact sums in any order; few values, so that windows have ties: of equals,
    # the same one must get the gradient.
    images = torch.randint(-2, 3, (batch, channels, side, side), generator=draw) / 8
    layers = nn.Sequential(nn.Conv2d(channels, 6, 5, padding=padding), nn.MaxPool2d(2), nn.ReLU(inplace=True))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=draw) / 8)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    wide, expected = wide_layout.forward(layers, ours), layers(theirs)
    assert torch.equal(wide, expected)
    weights = torch.randint(-2, 3, expected.shape, generator=draw) / 8
    got = torch.autograd.grad((wide * weights).sum(), [ours, *layers.parameters()])
    for one, other in zip(
        got, torch.autograd.grad((expected * weights).sum(), [theirs, *layers.parameters()]), strict=True
    ):
        assert torch.equal(one, other)


def test_lenet5_is_its_layers_one_after_the_other():
    model = build("lenet5", SampleForm.image(1, 28), 10, seed=0)
    images = torch.randn(7, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), model.layers(images), rtol=1e-6, atol=1e-7)


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
        one = build("lazy_models:Lazy", SampleForm.image(1, 8), 10, seed=4)[1].weight
        torch.rand(3)
        assert torch.equal(one, build("lazy_models:Lazy", SampleForm.image(1, 8), 10, seed=4)[1].weight)


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
    assert build("users_models:Good", SampleForm.image(1, 8), 10, seed=0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for name, says in {
        "users_models:WrongShape": r"\(2, 11\)\. It must map them to logits \(2, 10\)",
        "users_models:WrongArguments": "cannot be built",
        "users_models:not_a_model": "returns a int",
        "users_models:NothingToLearn": "has no trainable parameter",
        ".users_models:Good": "cannot import .users_models",
        "users_models:Missing": "has no Missing",
        "no_such_module:Model": "cannot import no_such_module",
        "lenet": "did you mean 'lenet5'",
        "users_models:": "Known: mlp",
    }.items():
        with pytest.raises(UserError, match=says):
            build(name, SampleForm.image(1, 8), 10, seed=0)
    sys.modules.pop("users_models")


def test_a_class_gets_the_sizes_that_it_asks_for_and_the_arguments_of_the_config(tmp_path, monkeypatch):
    (tmp_path / "argued_models.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, channels, side, classes, width=32, bias=True):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(side * side, width, bias), nn.Linear(width, classes))\n"
        "class Passes(Net):\n"
        "    def __init__(self, **sizes): super().__init__(**sizes)\n"
        "class Keeps(nn.Module):\n"
        "    def __init__(self, classes, **sizes):\n"
        "        super().__init__()\n"
        "        self.layer, self.got = nn.Linear(64, classes), sizes\n"
        "    def forward(self, images): return self.layer(images.flatten(1))\n"
        "class Shaped(Net):\n"
        "    def __init__(self, shape, **sizes): super().__init__(1, shape[-1], **sizes)\n"
        "class Fixed(nn.Sequential):\n"
        "    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Net", "Passes", "Shaped"):
        model = build(f"argued_models:{name}(bias=false,width=5)", SampleForm.image(1, 8), 10, seed=0)
        assert [tuple(value.shape) for value in model.parameters()] == [(5, 64), (10, 5), (10,)]
    kept = build("argued_models:Keeps(width=[5,{}])", SampleForm.image(1, 8), 10, seed=0).got
    assert kept == {"width": [5, {}], "shape": (1, 8, 8), "channels": 1, "side": 8}
    tokens = SampleForm("tokens", (64,), 9)
    with pytest.raises(UserError, match="fails on .*int64|fails on .*Long|fails on .*dtype"):
        build("argued_models:Keeps", tokens, 10, seed=0)
    with pytest.raises(UserError, match=r"asks for 'channels', which .* do not have. Fix: .* shape, classes, voc"):
        build("argued_models:Passes", tokens, 10, seed=0)
    assert build("argued_models:Fixed", SampleForm.image(1, 8), 10, seed=0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert [
        len(layer.weight) for layer in build("mlp(hidden=[9])", SampleForm.image(1, 8), 10, seed=0).layers[1::2]
    ] == [9, 10]
    for name, says in {
        "argued_models:Passes(widht=5)": r"has no argument 'widht'. Its arguments: width, bias .did you mean 'width'?",
        "argued_models:Fixed(width=5)": "has no argument 'width'. It has no arguments.",
        "argued_models:Net(side=5)": "'side' comes from the data",
        'argued_models:Net(width="wide")': "cannot be built for .*: TypeError",
        "lenet5(width=5)": "'lenet5.*' has no argument 'width'. It has no arguments.",
        "mlp(width=5)": "has no argument 'width'. Its arguments: hidden",
    }.items():
        with pytest.raises(UserError, match=says):
            build(name, SampleForm.image(1, 8), 10, seed=0)
    sys.modules.pop("argued_models")


def test_the_pages_function_for_timm_gets_what_it_asks_for(tmp_path, monkeypatch):
    page = ROOT / "docs" / "extending.md"
    example = next(block for block in blocks(page) if block.asked == "file my_timm.py")
    (tmp_path / "my_timm.py").write_text(example.text)
    (tmp_path / "timm.py").write_text(
        "from torch import nn\n"
        "def create_model(name, in_chans, num_classes, drop_rate=0.0):\n"
        "    layers = nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)\n"
        "    model = nn.Sequential(*layers, nn.Dropout(drop_rate))\n"
        "    model.name = name\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build('my_timm:net(drop_rate=0.5,variant="vit_tiny")', SampleForm("image", (3, 8, 12)), 5, seed=0)
    assert (model.name, model[-1].p, model[0].in_channels, model[3].out_features) == ("vit_tiny", 0.5, 3, 5)
    with pytest.raises(UserError, match=r"my_timm.py, line \d+: .*unexpected keyword argument 'depth'"):
        build("my_timm:net(depth=5)", SampleForm("image", (3, 8, 12)), 5, seed=0)
    for name in ("my_timm", "timm"):
        sys.modules.pop(name)


def _saved(folder, content):
    torch.save(content, folder / "weights.pt")
    return str(folder / "weights.pt")


def test_weights_from_a_file_replace_the_initial_ones_bit_for_bit(tmp_path):
    theirs = build("cnn", SampleForm.image(1, 8), 10, seed=1).state_dict()
    packings = [
        theirs,
        {"state_dict": theirs, "epoch": 3},
        {"model": theirs},
        {f"module.{key}": value for key, value in theirs.items()},
        {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")},
    ]
    for packing in packings:
        ours = build("cnn", SampleForm.image(1, 8), 10, seed=2, weights=_saved(tmp_path, packing)).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_classifier_for_other_classes_keeps_its_seeded_initial_values_and_the_log_says_so(tmp_path, caplog):
    path = _saved(tmp_path, build("resnet18", SampleForm.image(1, 8), 1000, seed=1).state_dict())
    theirs, fresh = (build("resnet18", SampleForm.image(1, 8), *rest).state_dict() for rest in ((1000, 1), (7, 2)))
    with caplog.at_level(logging.INFO, logger="fedh2l_mpi"):
        ours = build("resnet18", SampleForm.image(1, 8), 7, seed=2, weights=path).state_dict()
    assert all(torch.equal(ours[key], (fresh if key.startswith("fc.") else theirs)[key]) for key in ours)
    assert "120 of 122 entries" in caplog.text
    assert "initial values kept: fc.weight, fc.bias" in caplog.text


def test_weights_fit_a_users_own_architecture_too(tmp_path, monkeypatch):
    (tmp_path / "weighed_models.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Sequential):\n"
        "    def __init__(self, channels, side, classes): super().__init__(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = _saved(tmp_path, {"1.weight": torch.ones(10, 64), "1.bias": torch.zeros(10)})
    assert build("weighed_models:Own", SampleForm.image(1, 8), 10, seed=4, weights=path)[1].weight.min() == 1.0


def test_weights_that_do_not_fit_are_refused_by_name_and_shape(tmp_path):
    theirs = build("mlp", SampleForm.image(1, 8), 10, seed=1).state_dict()
    missing = {key: value for key, value in theirs.items() if key != "layers.3.bias"}
    for content, says in [
        (missing, r"weights\.mlp: .*1 missing: layers\.3\.bias \(64,\)\.$"),
        ({**theirs, "extra": torch.zeros(3)}, r"1 unexpected: extra \(3,\)\.$"),
        # Other images: the first layer differs, and no classifier is meant.
        (
            build("mlp", SampleForm.image(1, 12), 10, seed=1).state_dict(),
            r"layers\.1\.weight \(128, 144\), must be \(128, 64\)\.$",
        ),
        # The classifier of a wider network differs in more than its classes.
        ({**theirs, "layers.5.weight": torch.zeros(9, 65)}, r"layers\.5\.weight \(9, 65\), must be \(10, 64\)\.$"),
        (
            build("cnn", SampleForm.image(1, 8), 10, seed=1).state_dict(),
            r"2 missing: .*; 12 unexpected: .* and 8 more; 3 of a different",
        ),
        ([1, 2], r"holds a list\. It must hold a state dict"),
        ({}, r"holds a dict\. It must hold a state dict"),
        ({"layers": 3}, "'layers': int"),
        (nn.Linear(2, 2), r"cannot be read as weights \(UnpicklingError\): it is damaged, or holds more than tensors"),
    ]:
        with pytest.raises(UserError, match=says):
            build("mlp", SampleForm.image(1, 8), 10, seed=0, weights=_saved(tmp_path, content))


def test_only_one_module_may_differ_by_the_number_of_classes(tmp_path, monkeypatch):
    (tmp_path / "two_heads.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Sequential):\n"
        "    def __init__(self, channels, side, classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, classes), nn.BatchNorm1d(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = _saved(tmp_path, build("two_heads:Two", SampleForm.image(1, 8), 9, seed=0).state_dict())
    with pytest.raises(UserError, match=r"6 of a different shape: 1\.weight \(9, 64\), must be \(10, 64\)"):
        build("two_heads:Two", SampleForm.image(1, 8), 10, seed=0, weights=path)


def test_a_missing_or_damaged_file_of_weights_is_the_users_to_mend(tmp_path):
    path = _saved(tmp_path, build("mlp", SampleForm.image(1, 8), 10, seed=1).state_dict())
    whole = (tmp_path / "weights.pt").read_bytes()
    for damaged in (b"", b"not weights at all", whole[: len(whole) // 2], whole[:100] + bytes(50) + whole[150:]):
        (tmp_path / "weights.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"weights\.mlp: .*weights\.pt' cannot be read as weights"):
            build("mlp", SampleForm.image(1, 8), 10, seed=0, weights=path)
    for nowhere, says in [
        (str(tmp_path), "is not a file"),
        (str(tmp_path / "no.pt"), "is not a file"),
        ("~nobody_here/w.pt", "but ~nobody_here has no home folder"),
        ("/" + 300 * "a", "File name too long"),
    ]:
        with pytest.raises(UserError, match=rf"weights\.mlp: .*{says}"):
            build("mlp", SampleForm.image(1, 8), 10, seed=0, weights=nowhere)


def test_a_file_of_weights_that_the_disk_does_not_give_is_not_called_damaged(tmp_path, monkeypatch):
    def fails(*given: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = _saved(tmp_path, build("mlp", SampleForm.image(1, 8), 10, seed=1).state_dict())
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(UserError, match=r"weights\.mlp: .* cannot be read: Permission denied\.$"):
        build("mlp", SampleForm.image(1, 8), 10, seed=0, weights=path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.to_sparse() if w.dim() == 2 else w, r"'layers\.1\.weight': a tensor of torch.float32, torch.spar"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "a tensor of torch.qint8"),
        (lambda w: w.to("meta"), "a tensor of no values"),
        (lambda w: w.to(torch.complex64), "a tensor of torch.complex64"),
        (lambda w: w > 0, r"6 of a different kind: layers\.1\.weight torch.bool, must be floating point"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_are_not_plain_numbers_are_refused(tmp_path, change, says):
    theirs = {
        key: change(value) for key, value in build("mlp", SampleForm.image(1, 8), 10, seed=1).state_dict().items()
    }
    with pytest.raises(UserError, match=says):
        build("mlp", SampleForm.image(1, 8), 10, seed=0, weights=_saved(tmp_path, theirs))


def test_weights_for_an_architecture_that_is_not_in_the_run_are_refused():
    check_weights({"cnn": "a.pt"}, ["mlp", "cnn", "mlp"])
    says = (
        r"a file for 'lenet', which this run does not train\. Architectures: lenet5, mlp \(did you mean 'lenet5'\?\)\.$"
    )
    with pytest.raises(UserError, match=says):
        check_weights({"lenet": "a.pt"}, ("mlp", "lenet5", "mlp"))


class InPlace(nn.Sequential):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(channels * side * side, classes))


def test_a_model_that_changes_its_images_is_refused():
    says = r"changes the images that it is given\. Its first operation must not work in place\.$"
    with pytest.raises(UserError, match=says):
        build(f"{__name__}:InPlace", SampleForm.image(1, 8), 10, seed=0)


class Noisy(nn.Sequential):
    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * side * side, classes))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(images), training=True)


def test_a_model_that_draws_random_numbers_in_evaluation_is_refused():
    says = (
        r"returns different logits for the same images in a second pass in eval mode\. "
        r"In eval mode it must neither draw random numbers nor change\."
    )
    with pytest.raises(UserError, match=says):
        build(f"{__name__}:Noisy", SampleForm.image(1, 8), 10, seed=0)


def test_the_digest_of_weights_is_that_of_the_files(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"1")
    one = weights_digest({"mlp": str(path)})
    assert one == weights_digest({"mlp": str(path)}) != weights_digest({"cnn": str(path)})
    path.write_bytes(b"2")
    assert weights_digest({"mlp": str(path)}) != one
