"""An architecture's name to a freshly initialised model."""

import difflib
import importlib

import torch
from torch import nn

from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models.zoo import ZOO


def build(name: str, channels: int, side: int, classes: int, seed: int) -> nn.Module:
    """A model on the CPU whose initial weights depend on `seed` alone.

    Parameters
    ----------
    name : str
        A name of the zoo, or `package.module:Class`; the class is called with `channels`, `side` and `classes` and
        must map float32 images (B, channels, side, side) to logits (B, classes).
    seed : int
        Of the initialisation; the global generator is left as it was.

    Raises
    ------
    UserError
        If the name is unknown, the class cannot be built, or its output has another shape.
    """
    kind = ZOO.get(name) or _users_own(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = kind(channels=channels, side=side, classes=classes)
        except (TypeError, ValueError, RuntimeError) as error:
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
    return model


@torch.no_grad()
def _check_output(name: str, model: nn.Module, images: tuple[int, ...], logits: tuple[int, ...]) -> None:
    # In eval mode: no running statistic moves.
    model.eval()
    try:
        got = model(torch.zeros(images))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"models: {name!r} fails on images of shape {images}: {error}") from error
    if not isinstance(got, torch.Tensor) or tuple(got.shape) != logits:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
        raise UserError(f"models: {name!r} maps images {images} to {shape}, must be logits {logits}")


def _users_own(name: str) -> type[nn.Module]:
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        near = difflib.get_close_matches(name, ZOO, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"models: got {name!r}; known: {', '.join(ZOO)}, or your own as package.module:Class{hint}")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError, SyntaxError) as error:
        raise UserError(
            f"models: {name!r}: cannot import {module_name}: {error}; run from its folder, or set PYTHONPATH"
        ) from error
    try:
        kind: type[nn.Module] = getattr(module, class_name)
    except AttributeError:
        raise UserError(f"models: {name!r}: {module_name} has no {class_name}") from None
    return kind
