"""An architecture's name to a model, freshly initialised or with weights from a file."""

import difflib
import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import nn

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models import pretrained, torchvision_models
from fedh2l_mpi.models.zoo import ZOO
from fedh2l_mpi.runtime import paths
from fedh2l_mpi.runtime.plugins import load_class

# What a model raises that does not fit the images; torchvision's say so by assertions.
_MISFITS = (TypeError, ValueError, RuntimeError, IndexError, AssertionError)


def build(name: str, channels: int, side: int, classes: int, seed: int, weights: str | None = None) -> nn.Module:
    """A model on the CPU whose weights depend on `seed`, and on the file of pretrained ones, alone.

    Parameters
    ----------
    name : str
        A name of the zoo, `torchvision:NAME`, or `package.module:Class`; the class is called with `channels`, `side`
        and `classes` and must map float32 images (B, channels, side, side) to logits (B, classes).
    seed : int
        Of the initialisation; the global generator is left as it was.
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
        except UserError:  # a ValueError too, and says already what is wrong
            raise
        except _MISFITS as error:
            raise UserError(
                f"models: {name!r} cannot be built for images of {channels} x {side} x {side} and {classes} classes: "
                f"{error}"
            ) from error
        if not isinstance(model, nn.Module):
            raise UserError(f"models: {name!r} gave a {type(model).__name__}, must be a torch.nn.Module")
        # Still under the seed: lazy modules draw their weights in their first forward pass.
        _check_output(name, model, (2, channels, side, side), (2, classes))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"models: {name!r} has no parameter to train")
    if weights is not None:
        pretrained.load(model, name, weights, classes)
    return model


def check_weights(weights: Iterable[str], architectures: Collection[str]) -> None:
    """Raise `UserError` if `weights`, a map by architecture, has a key that is none of the run's architectures."""
    for name in weights:
        if name not in architectures:
            near = difflib.get_close_matches(name, architectures, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(
                f"weights: got a file for {name!r}; architectures of this run: "
                f"{', '.join(sorted(set(architectures)))}{hint}"
            )


def weights_digest(weights: Mapping[str, str]) -> bytes:
    """SHA-256 of the files, by architecture: ranks on several nodes may see other files at one path."""
    sha = hashlib.sha256()
    for name, path in sorted(weights.items()):
        sha.update(name.encode() + b"\0")
        with paths.expand_home(f"weights.{name}", path).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.digest()


@torch.no_grad()
def _check_output(name: str, model: nn.Module, images: tuple[int, ...], logits: tuple[int, ...]) -> None:
    # In eval mode: no running statistic moves.
    model.eval()
    given = torch.linspace(-1, 1, math.prod(images)).view(images)
    before = given.clone()
    try:
        got = model(given)
    except _MISFITS as error:
        raise UserError(f"models: {name!r} fails on images of shape {images}: {error}") from error
    if not isinstance(got, torch.Tensor) or tuple(got.shape) != logits:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
        raise UserError(f"models: {name!r} maps images {images} to {shape}, must be logits {logits}")
    if not torch.equal(given, before):
        # Test images are shared by all participants of a rank: the next one would see what this one has left.
        raise UserError(f"models: {name!r} changes the images it is given; its first operation must not be in place")
    if name in ZOO or name.startswith(torchvision_models.PREFIX):
        return
    # Random numbers that nobody has seeded would depend on who is hosted together, as would a memory of earlier images.
    if not torch.allclose(model(given), got, rtol=0.0, atol=0.0, equal_nan=True):
        raise UserError(
            f"models: {name!r} gives the same images other logits in a second pass in eval mode, where it must neither "
            "draw random numbers nor change; as for dropout, ask self.training"
        )


def _kind(name: str) -> Callable[..., nn.Module]:
    if name.startswith(torchvision_models.PREFIX):
        return functools.partial(torchvision_models.build, name)
    return ZOO.get(name) or _users_own(name)


def _users_own(name: str) -> type[nn.Module]:
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        near = difflib.get_close_matches(name, ZOO, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"models: got {name!r}; known: {', '.join(ZOO)}, torchvision:NAME, or your own as "
            f"package.module:Class{hint}"
        )
    kind: type[nn.Module] = load_class("models", name)
    return kind
