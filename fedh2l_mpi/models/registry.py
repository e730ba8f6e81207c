"""Registry of architectures: build a model by its name, with initial weights or weights from a file."""

import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from fedh2l_mpi.config.architecture import parse
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.models import constructor, memory_format, pretrained, torchvision_models
from fedh2l_mpi.models.zoo import IMAGES, TAKES, ZOO, taking
from fedh2l_mpi.rng import global_generators
from fedh2l_mpi.runtime import paths
from fedh2l_mpi.runtime.plugins import Plugin, load_class, reporting
from fedh2l_mpi.sample_form import PLURAL, SampleForm


def build(name: str, form: SampleForm, classes: int, seed: int, weights: str | None = None) -> nn.Module:
    """Build a model on the CPU; its weights depend only on `seed` and on the file of pretrained weights.

    Parameters
    ----------
    name : str
        A name of the zoo, `torchvision:NAME`, or `package.module:Class`, with arguments as in `mlp(hidden=[64])`. The
        class is called with those of `shape`, `classes`, `vocabulary` (of token ids), `channels` and `side` (of square
        images) that it has parameters for, and must map contiguous samples (B, *shape) to logits (B, classes).
    form : SampleForm
        Form of the samples that the model gets.
    seed : int
        Seed of the global generators, which are restored afterwards, and thus of the initial weights.
    weights : str, optional
        Path of a state dict that replaces the initial weights, except those of a final classifier for another number
        of classes.

    Raises
    ------
    UserError
        If the name is unknown, the class cannot be built, its output has another shape, or the weights do not fit.
    """
    kind = _kind(name)
    _check_kind(name, form)
    given = constructor.keywords(name, kind, form, classes, parse(name).arguments)
    with global_generators(seed):
        wanted = f"{form} and {classes} classes"
        with reporting(f"cannot be built for {wanted}", Plugin("models", name)):
            model = kind(**given)
        if not isinstance(model, nn.Module):
            raise UserError(f"models: {name!r} returns a {type(model).__name__}. It must return a torch.nn.Module.")
        if is_own(name):
            if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
                raise UserError(
                    f"models: {name!r} has parts that TorchScript compiled, whose parameters cannot be moved into one "
                    "vector. Fix: use the modules themselves."
                )
            memory_format.keep_contiguous(model)
        # Lazy modules draw their weights in their first forward pass, so it runs under the seed as well.
        _check_output(name, model, form, classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"models: {name!r} has no trainable parameter.")
    if is_own(name):
        _check_parameters(name, model)
    if weights is not None:
        pretrained.load(model, name, weights, classes)
    return model


def is_own(name: str) -> bool:
    """Return True if the name is that of a user's own class; it may have arguments, as in `my_models:Net(width=64)`."""
    name = parse(name).name
    return name not in ZOO and not name.startswith(torchvision_models.PREFIX)


def check_weights(weights: Iterable[str], architectures: Collection[str]) -> None:
    """Raise `UserError` if a key of `weights` is none of the run's architectures."""
    known = sorted(set(architectures))
    for name in weights:
        if name not in known:
            raise UserError(
                f"weights: got a file for {name!r}, which this run does not train. "
                f"Architectures: {', '.join(known)}{did_you_mean(name, known)}."
            )


def weights_digest(weights: Mapping[str, str]) -> bytes:
    """Return the SHA-256 of the files by architecture, because nodes may have different files at the same path."""
    sha = hashlib.sha256()
    for name, path in sorted(weights.items()):
        sha.update(name.encode() + b"\0")
        with paths.expand_home(f"weights.{name}", path).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.digest()


@torch.no_grad()
def _check_output(name: str, model: nn.Module, form: SampleForm, classes: int) -> None:
    # Eval mode leaves the running statistics unchanged.
    model.eval()
    inputs, logits = (2, *form.shape), (2, classes)
    given, other = _two_inputs(form)
    before = given.clone()
    with reporting(f"fails on {PLURAL[form.kind]} of shape {inputs}", Plugin("models", name)):
        got = model(given)
    check_logits(name, got, inputs, logits)
    if not torch.equal(given, before):
        # All participants of a rank share the test samples, so the next one would see changed samples.
        raise UserError(
            f"models: {name!r} changes the {PLURAL[form.kind]} that it is given. Its first operation must not work in "
            "place."
        )
    if not is_own(name):
        return
    first = got.clone()
    with reporting(f"fails on other {PLURAL[form.kind]} of shape {inputs}", Plugin("models", name)):
        model(other)
        is_kept = torch.allclose(got, first, rtol=0.0, atol=0.0, equal_nan=True)
        again = model(given)
    if not is_kept:
        raise UserError(
            f"models: {name!r} returns a tensor that its next pass changes. Fix: return a new one in every pass."
        )
    # Unseeded random numbers, or a memory of earlier inputs, would make results depend on which participants share a
    # rank.
    if not torch.allclose(again, first, rtol=0.0, atol=0.0, equal_nan=True):
        raise UserError(
            f"models: {name!r} returns different logits for the same {PLURAL[form.kind]} in a second pass in eval "
            "mode. In eval mode it must neither draw random numbers nor change. Check self.training first, as dropout "
            "does."
        )


def _two_inputs(form: SampleForm) -> tuple[Tensor, Tensor]:
    """Return two different inputs of two samples, images channels last."""
    shape = (2, *form.shape)
    if form.kind == "tokens":
        ids = torch.arange(math.prod(shape)).view(shape)
        return ids % form.vocabulary, (ids + 1) % form.vocabulary
    given = memory_format.as_stored(torch.linspace(-1, 1, math.prod(shape)).view(shape))
    return given, -given


def _check_kind(name: str, form: SampleForm) -> None:
    """Raise `UserError` if a built-in model or one of torchvision's does not take samples of this kind."""
    bare = parse(name).name
    if is_own(name) or form.kind in TAKES.get(bare, IMAGES):
        return
    takes = " or ".join(PLURAL[kind] for kind in TAKES.get(bare, IMAGES))
    raise UserError(
        f"models: {name!r} takes {takes}, but the data are {form}. Built-in models that fit: "
        f"{', '.join(taking(form.kind))}; or your own as package.module:Class."
    )


def check_logits(name: str, got: object, inputs: tuple[int, ...], logits: tuple[int, ...], when: str = "") -> None:
    """Raise `UserError` unless a model's output is a tensor of real numbers with the shape of logits.

    Parameters
    ----------
    inputs, logits : tuple of int
        Shapes of the inputs, and of the logits that they must give.
    when : str
        The mode of the pass, for the message.
    """
    if isinstance(got, Tensor) and tuple(got.shape) == logits and got.is_floating_point():
        return
    shape = str(tuple(got.shape)) if isinstance(got, Tensor) else type(got).__name__
    if isinstance(got, Tensor) and not got.is_floating_point():
        shape += f" of {got.dtype}"
    raise UserError(
        f"models: {name!r} maps inputs {inputs} to {shape}{when}. It must map them to logits {logits} of real numbers, "
        "in training as in evaluation."
    )


def _check_parameters(name: str, model: nn.Module) -> None:
    """Raise `UserError` unless the trainable parameters can be stored in one vector, each in memory of its own."""
    lazy = [key for key, value in model.named_parameters() if nn.parameter.is_lazy(value)]
    if lazy:
        raise UserError(
            f"models: {name!r} does not use its lazy parameter {lazy[0]!r} in eval mode, so it never gets a shape. "
            "Fix: give it one."
        )
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.device.type != "cpu":
            raise UserError(f"models: {name!r} has {key!r} on {value.device}. Fix: build it on the CPU.")
    trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
    kinds: dict[str, str] = {}
    for key, value in trainable.items():
        kinds.setdefault(str(value.dtype if value.layout == torch.strided else value.layout), key)
    is_real = all(value.is_floating_point() and value.layout == torch.strided for value in trainable.values())
    if len(kinds) > 1 or not is_real:
        found = ", ".join(f"{kind} ({key})" for kind, key in kinds.items())
        raise UserError(f"models: {name!r}: all trainable parameters must be of one real dtype; got {found}.")
    homes = {value.untyped_storage().data_ptr(): key for key, value in trainable.items()}
    for module in model.modules():
        for key, value in [*vars(module).items(), *module._buffers.items()]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in homes:
                home = homes[value.untyped_storage().data_ptr()]
                raise UserError(
                    f"models: {name!r}: {key!r} is a view of parameter {home!r}, which moves before training, so the "
                    "view would keep the first weights. Fix: make it in forward()."
                )
    end, owner = 0, ""
    for begin, key in sorted((value.data_ptr(), key) for key, value in trainable.items()):
        value = trainable[key]
        if begin < end:
            raise UserError(
                f"models: {name!r}: parameters {owner!r} and {key!r} share memory, but are two parameters. Fix: use "
                "the same nn.Parameter for both."
            )
        left = value.untyped_storage().nbytes() - int(value.storage_offset()) * value.itemsize
        end, owner = begin + min(value.nbytes, left), key


def _kind(name: str) -> Callable[..., nn.Module]:
    name = parse(name).name
    if name.startswith(torchvision_models.PREFIX):
        return functools.partial(torchvision_models.build, name)
    return ZOO.get(name) or _users_own(name)


def _users_own(name: str) -> type[nn.Module]:
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        raise UserError(
            f"models: got {name!r}. Known: {', '.join(ZOO)}, torchvision:NAME, or your own as "
            f"package.module:Class{did_you_mean(name, ZOO)}."
        )
    kind: type[nn.Module] = load_class("models", name)
    return kind
