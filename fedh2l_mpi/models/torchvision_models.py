"""torchvision's classifiers by name, imported only when one is asked for: `torchvision:resnet18`."""

import difflib
import importlib
import importlib.metadata
import importlib.util
import re
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fedh2l_mpi.errors import UserError

PREFIX = "torchvision:"

# Auxiliary classifiers change what the model returns while training; without them it is logits, as everywhere.
_PLAIN = {"aux_logits": False, "init_weights": True}
# Parts of a published file that belong to those classifiers.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Published DenseNets say norm.1 where the model says norm1. Source: torchvision.models.densenet._load_state_dict.
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


def build(name: str, channels: int, side: int, classes: int) -> nn.Module:
    """One of torchvision's classifiers with fresh weights.

    Images of one channel are repeated to the three that its first convolution takes. Vision transformers and MaxViT
    are made for `side`; others take any side that survives their poolings.

    Parameters
    ----------
    name : str
        `torchvision:` and a name of `torchvision.models.list_models(module=torchvision.models)`.

    Raises
    ------
    UserError
        If torchvision is missing or does not fit torch, the name is unknown, or there are neither 1 nor 3 channels.
    """
    models = _torchvision_models(name)
    kind = name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=3)
        hint = f" (did you mean {' or '.join(repr(PREFIX + one) for one in near)}?)" if near else ""
        raise UserError(
            f"models: got {name!r}; torchvision {_version()} has {len(known)} classifiers, "
            f"torchvision:{known[0]} to torchvision:{known[-1]}{hint}"
        )
    if channels not in (1, 3):
        raise UserError(f"models: {name!r} takes images of 3 channels, or of 1 to be repeated; the data has {channels}")
    options: dict[str, Any] = {}
    if kind in _AUXILIARY:
        options = dict(_PLAIN)
    elif kind.startswith("vit_"):
        options = {"image_size": side}
    elif kind.startswith("maxvit_"):
        options = {"input_size": (side, side)}
    model: nn.Module = models.get_model(kind, weights=None, num_classes=classes, **options)
    if channels == 1:
        # A hook, not a module around the model: parameters keep the names that published weights carry.
        model.register_forward_pre_hook(_repeat_grey)
    return model


def as_built(name: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a published file under the names of the model that `build` makes, without auxiliary parts."""
    kind = name.removeprefix(PREFIX)
    if kind.startswith("densenet"):
        return {_DENSENET.sub(r"\1\2", key): value for key, value in entries.items()}
    return {key: value for key, value in entries.items() if not key.startswith(_AUXILIARY.get(kind, ()))}


def _repeat_grey(_model: nn.Module, images: tuple[Tensor]) -> tuple[Tensor]:
    return (images[0].expand(-1, 3, -1, -1),)


def _torchvision_models(name: str) -> ModuleType:
    if importlib.util.find_spec("torchvision") is None:
        raise UserError(f"models: {name!r} needs torchvision: pip install 'fedh2l_mpi[vision]'")
    try:
        return importlib.import_module("torchvision.models")
    # Its compiled part meets another torch than it was made for, and fails with whatever that leads to.
    except Exception as error:
        raise UserError(
            f"models: {name!r}: torchvision {_version()} (made for {_made_for()}) cannot be imported with torch "
            f"{torch.__version__}: {type(error).__name__}: {error}; install the two together, from one source and both "
            "for the CPU or both for the same CUDA"
        ) from error


def _version() -> str:
    try:
        return importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _made_for() -> str:
    """The torch that torchvision's metadata asks for."""
    try:
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        needs = []
    return next((re.sub(r"[() ]", "", need) for need in needs if re.match(r"torch\b", need)), "an unknown torch")
