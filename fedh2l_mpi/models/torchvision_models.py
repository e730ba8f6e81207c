"""torchvision's classifiers by name, such as `torchvision:resnet18`; torchvision is imported only for them."""

import importlib
import importlib.metadata
import importlib.util
import re
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.runtime import libraries

PREFIX = "torchvision:"

# With auxiliary classifiers, a model in training returns more than logits; they are left out.
_PLAIN = {"aux_logits": False, "init_weights": True}
# Prefixes of these classifiers' entries in a published file.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Published DenseNets have norm.1 where the model has norm1. Source: torchvision.models.densenet._load_state_dict.
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


def build(name: str, shape: tuple[int, int, int], classes: int, **arguments: Any) -> nn.Module:
    """Build one of torchvision's classifiers with initial weights.

    Images of one channel are repeated to the three that its first convolution needs. Vision transformers and MaxViT are
    built for the images' size, which must be square for the former; the others accept any size that is large enough for
    their poolings.

    Parameters
    ----------
    name : str
        `torchvision:` and a name of `torchvision.models.list_models(module=torchvision.models)`.
    arguments
        Further arguments of its constructor, such as `dropout` of `torchvision:vit_b_16`.

    Raises
    ------
    UserError
        If torchvision is missing or does not match torch, the name is unknown, the images do not suit it, or an
        argument is one that is decided here.
    """
    models = _torchvision_models(name)
    kind = name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if kind not in known:
        raise UserError(
            f"models: got {name!r}. Known: the {len(known)} classifiers of torchvision {_version()}, "
            f"torchvision:{known[0]} to torchvision:{known[-1]}{did_you_mean(kind, known, PREFIX)}."
        )
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(
            f"models: {name!r} needs images of 3 channels, or of 1 channel that is repeated. The data have {channels}."
        )
    options: dict[str, Any] = {}
    if kind in _AUXILIARY:
        options = dict(_PLAIN)
    elif kind.startswith("vit_"):
        if height != width:
            raise UserError(f"models: {name!r} takes square images. The data have {height} x {width} pixels.")
        options = {"image_size": height}
    elif kind.startswith("maxvit_"):
        options = {"input_size": (height, width)}
    decided = {"weights": None, "progress": False, "num_classes": classes, **options}
    for key in arguments:
        if key in decided:
            raise UserError(f"models: {name!r}: argument {key!r} is decided by the run. Fix: remove it.")
    model: nn.Module = models.get_model(kind, **decided, **arguments)
    if channels == 1:
        # A module around the model would rename its parameters, and published weights would not load; a hook does not.
        model.register_forward_pre_hook(_repeat_grey)
    return model


def as_built(name: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a published file as in the model that `build` returns, and drop auxiliary parts."""
    kind = name.removeprefix(PREFIX)
    if kind.startswith("densenet"):
        return {_DENSENET.sub(r"\1\2", key): value for key, value in entries.items()}
    return {key: value for key, value in entries.items() if not key.startswith(_AUXILIARY.get(kind, ()))}


def _repeat_grey(_model: nn.Module, images: tuple[Tensor]) -> tuple[Tensor]:
    return (images[0].expand(-1, 3, -1, -1),)


def _torchvision_models(name: str) -> ModuleType:
    if importlib.util.find_spec("torchvision") is None:
        raise UserError(f"models: {name!r}: torchvision is not installed. Fix: {libraries.fix('torchvision')}.")
    try:
        return importlib.import_module("torchvision.models")
    # A torchvision that was compiled for a different torch can fail with any exception.
    except Exception as error:
        raise UserError(
            f"models: {name!r}: torchvision {_version()} (made for {_made_for()}) cannot be imported with torch "
            f"{torch.__version__}: {type(error).__name__}: {error}. Install the two together, from one source, both "
            "for the CPU or both for the same CUDA."
        ) from error


def _version() -> str:
    try:
        return importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _made_for() -> str:
    """Return the version of torch that torchvision's metadata requires."""
    try:
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        needs = []
    return next((re.sub(r"[() ]", "", need) for need in needs if re.match(r"torch\b", need)), "an unknown torch")
