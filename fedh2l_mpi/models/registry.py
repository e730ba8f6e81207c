"""Registry of architectures: build a model by its name, with initial weights or weights from a file."""

import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import nn

from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.models import pretrained, torchvision_models
from fedh2l_mpi.models.zoo import ZOO
from fedh2l_mpi.runtime import paths
from fedh2l_mpi.runtime.plugins import load_class

# Exceptions of a model that does not fit the images; torchvision's models raise AssertionError.
_MISFITS = (TypeError, ValueError, RuntimeError, IndexError, AssertionError)


def build(name: str, channels: int, side: int, classes: int, seed: int, weights: str | None = None) -> nn.Module:
    """Build a model on the CPU; its weights depend only on `seed` and on the file of pretrained weights.

    Parameters
    ----------
    name : str
        A name of the zoo, `torchvision:NAME`, or `package.module:Class`. The class is called with `channels`, `side`
        and `classes` and must map float32 images (B, channels, side, side) to logits (B, classes).
    seed : int
        Seed of the initial weights; the global generator is restored.
    weights : str, optional
        Path of a state dict that replaces the initial weights, except those of a final classifier for another number
        of classes.

    Raises
    ------
    UserError
        If the name is unknown, the class cannot be built, its output has another shape, or the weights do not fit.
    """
    kind = _kind(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = kind(channels=channels, side=side, classes=classes)
        except UserError:  # it is a ValueError as well, and its message is final
            raise
        except _MISFITS as error:
            raise UserError(
                f"models: {name!r} cannot be built for images of {channels} x {side} x {side} and {classes} classes: "
                f"{error}"
            ) from error
        if not isinstance(model, nn.Module):
            raise UserError(f"models: {name!r} returns a {type(model).__name__}. It must return a torch.nn.Module.")
        # Lazy modules draw their weights in their first forward pass, so it runs under the seed as well.
        _check_output(name, model, (2, channels, side, side), (2, classes))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"models: {name!r} has no trainable parameter.")
    if weights is not None:
        pretrained.load(model, name, weights, classes)
    return model


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
def _check_output(name: str, model: nn.Module, images: tuple[int, ...], logits: tuple[int, ...]) -> None:
    # Eval mode leaves the running statistics unchanged.
    model.eval()
    given = torch.linspace(-1, 1, math.prod(images)).view(images)
    before = given.clone()
    try:
        got = model(given)
    except _MISFITS as error:
        raise UserError(f"models: {name!r} fails on images of shape {images}: {error}") from error
    if not isinstance(got, torch.Tensor) or tuple(got.shape) != logits:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
        raise UserError(f"models: {name!r} maps images {images} to {shape}. It must map them to logits {logits}.")
    if not torch.equal(given, before):
        # All participants of a rank share the test images, so the next one would see changed images.
        raise UserError(
            f"models: {name!r} changes the images that it is given. Its first operation must not work in place."
        )
    if name in ZOO or name.startswith(torchvision_models.PREFIX):
        return
    # Unseeded random numbers, or a memory of earlier images, would make results depend on which participants share a
    # rank.
    if not torch.allclose(model(given), got, rtol=0.0, atol=0.0, equal_nan=True):
        raise UserError(
            f"models: {name!r} returns different logits for the same images in a second pass in eval mode. In eval "
            "mode it must neither draw random numbers nor change. Check self.training first, as dropout does."
        )


def _kind(name: str) -> Callable[..., nn.Module]:
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
