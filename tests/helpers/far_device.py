"""A device that exists on no machine: tensors on it compute on the CPU, and every copy to or from it is counted.

Within `FarDevice`, `cuda:0` is that device. Tensors are there if they were moved or made there, or were computed from
tensors that are. As on a GPU, tensors of both sides do not mix, except for numbers (tensors without dimensions).
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FAR = torch.device("cuda", 0)
# Calls by which the host waits for numbers of a device.
WAITING = {
    "item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__", "nonzero",
    "masked_select", "unique", "bincount",
}  # fmt: skip
NOT_MIXING = {"_has_compatible_shallow_copy_type", "__get__", "__set__", "copy_", "to", "type", "backward", "__repr__"}


class _Scalars(TorchDispatchMode):
    """Count numbers that a kernel itself reads from a tensor, as a mask in an index does."""

    def __init__(self, count: Counter[str]) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name.startswith("index") and any(mask.dtype == torch.bool for mask in _tensors(args[1:2]))
        if masks or name in ("_local_scalar_dense", "nonzero", "equal"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


class FarDevice(TorchFunctionMode):
    """Context in which `FAR` can be used; `copies` counts what the host waits for, and copies to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: Counter[str] = Counter()
        self._scalars = _Scalars(self.copies)
        # By storage, because views, parameters and their gradients are new objects that share it.
        self._far: dict[int, Any] = {}

    def __enter__(self) -> "FarDevice":
        self._scalars.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._scalars.__exit__(*failure)

    @property
    def total(self) -> int:
        """Number of all copies so far."""
        return sum(self.copies.values())

    def is_far(self, tensor: Tensor) -> bool:
        """Return True if the tensor is on the device."""
        return tensor.untyped_storage()._cdata in self._far

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = _tensors((args, kwargs))
        far = [tensor for tensor in tensors if self.is_far(tensor)]
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return FAR if far else torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if name == "pin_memory":
            return args[0]
        if name == "_parse_to":
            return func(*args, **kwargs)
        goes_far = any(_is_far_device(value) for value in (*args, *kwargs.values()))
        goes_near = name == "cpu" or any(_is_cpu(value) for value in (*args, *kwargs.values()))
        near = [tensor for tensor in tensors if not self.is_far(tensor)]
        if (name == "copy_" and bool(far) and bool(near)) or (goes_far and (near or name in ("tensor", "as_tensor"))):
            self.copies["to the device"] += 1
        elif (far and name in WAITING) or (far and goes_near):
            self.copies[name] += 1
        elif far and name not in NOT_MIXING and any(tensor.dim() for tensor in near):
            raise RuntimeError(f"{name}: tensors on two devices")
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor) and self.is_far(args[1]) and near:
            self.copies["to the device"] += 1
            goes_far = True
        args, kwargs = _on_cpu(args), {key: _on_cpu(value) for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        crosses = goes_far and bool(near) and name != "copy_"
        for tensor in _tensors(result):
            if crosses and not self.is_far(tensor) and any(tensor is one for one in near):
                # On a CPU, `to` returns the tensor itself; on a device, it is a copy.
                result = tensor = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            if goes_far or (far and not goes_near):
                storage = tensor.untyped_storage()
                self._far[storage._cdata] = storage
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple | list) else []


def _is_far_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value == FAR


def _is_cpu(value: Any) -> bool:
    return value == "cpu" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cpu"


def _on_cpu(value: Any) -> Any:
    if _is_far_device(value):
        return torch.device("cpu")
    return type(value)(map(_on_cpu, value)) if type(value) in (tuple, list) else value
