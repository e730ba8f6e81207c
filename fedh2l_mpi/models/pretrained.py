"""Pretrained weights from a local file."""

import logging

import torch
from torch import Tensor, nn

from fedh2l_mpi.config.architecture import parse
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.models import torchvision_models
from fedh2l_mpi.runtime import paths

log = logging.getLogger("fedh2l_mpi")

# The largest number of entries that an error names.
NAMED = 4


def load(model: nn.Module, name: str, path: str, classes: int) -> list[str]:
    """Copy the entries of a file into the model, except a final classifier for a different number of classes.

    Parameters
    ----------
    name : str
        The architecture, as the key of `weights`.
    path : str
        File with a state dict, alone or under the key `state_dict` or `model`. Its names may all begin with `module.`.

    Returns
    -------
    list of str
        The entries that keep their initial values. They belong to one module, whose first dimension is `classes` here
        and different in the file, and whose other dimensions agree. Without such a module, the list is empty.

    Raises
    ------
    UserError
        If the file cannot be read, or any other entry is missing, unexpected or of a different shape.
    """
    where = f"weights.{name}: {path!r}"
    theirs = torchvision_models.as_built(parse(name).name, _read(name, path))
    # These tensors share their storage with the model.
    ours = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    # No forward pass reads this counter, and files older than PyTorch 0.4.1 lack it.
    counters = {key for key in ours if key.endswith(".num_batches_tracked")}
    differing = [key for key in ours if key in theirs and ours[key].shape != theirs[key].shape]
    fresh = [key for key in differing if _is_of_a_classifier(ours[key], theirs[key], classes)]
    if len({key.rpartition(".")[0] for key in fresh}) > 1:
        fresh = []
    faults = {
        "missing": [f"{key} {_shape(ours[key])}" for key in ours if key not in theirs and key not in counters],
        "unexpected": [f"{key} {_shape(theirs[key])}" for key in theirs if key not in ours],
        "of a different kind": [
            f"{key} {theirs[key].dtype}, must be floating point"
            for key in ours
            if key in theirs and ours[key].is_floating_point() and not theirs[key].is_floating_point()
        ],
        "of a different shape": [
            f"{key} {_shape(theirs[key])}, must be {_shape(ours[key])}" for key in differing if key not in fresh
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in faults.items() if keys)
        raise UserError(
            f"{where} does not fit the model. Only the final classifier may differ, in its number of classes. "
            f"Entries: {found}."
        )
    # load_state_dict would ask some modules for the version that wrote the file, which few files store.
    with torch.no_grad():
        for key in theirs.keys() - set(fresh):
            ours[key].copy_(theirs[key])
    log.info(
        "weights.%s: %d of %d entries from %s; initial values kept: %s",
        name,
        len(theirs) - len(fresh),
        len(ours),
        path,
        ", ".join(fresh) or "none",
    )
    return fresh


def _read(name: str, path: str) -> dict[str, Tensor]:
    where = f"weights.{name}: {path!r}"
    file = paths.expand_home(f"weights.{name}", path)
    if not paths.is_file(f"weights.{name}", file):
        raise UserError(f"{where} is not a file. Give the path of a state dict saved by torch.save.")
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
    except PermissionError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}.") from None
    # The bytes of a damaged file can make the unpickler raise any exception.
    except Exception as error:
        raise UserError(
            f"{where} cannot be read as weights ({type(error).__name__}): it is damaged, or holds more than tensors. "
            "Save it with torch.save(model.state_dict(), path)."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{where} holds a {type(content).__name__}. It must hold a state dict: names to tensors.")
    strange = [f"{key!r}: {kind}" for key, value in content.items() if (kind := _strange(value))]
    strange += [f"{key!r} as a name" for key in content if not isinstance(key, str)]
    if strange:
        raise UserError(f"{where} must map names to dense tensors of real numbers. Got: {_first(strange)}.")
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _strange(value: object) -> str:
    """Describe a value that cannot be copied into a weight number by number; return "" for one that can."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_quantized or value.is_complex() or value.layout != torch.strided or value.is_meta:
        kind = "no values (device meta)" if value.is_meta else f"{value.dtype}, {value.layout}"
        return f"a tensor of {kind}"
    return ""


def _is_of_a_classifier(ours: Tensor, theirs: Tensor, classes: int) -> bool:
    return 0 < ours.dim() == theirs.dim() and ours.shape[0] == classes and ours.shape[1:] == theirs.shape[1:]


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _first(texts: list[str]) -> str:
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")
