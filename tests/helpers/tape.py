"""A stand-in for CUDA graphs on the CPU: it records the kernels of a step, and replays them on the same memory.

As with a CUDA graph, Python does not run in a replay, every Python number stays what it was, memory is addressed as it
was recorded, and nothing changes while a step is recorded. A step that asks for a number of a tensor is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Made:
    """A tensor in memory that the step itself makes: the number of that memory, and the tensor's place in it."""

    number: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, memory: dict[int, Any]) -> Tensor:
        return torch.empty(0, dtype=self.dtype).set_(memory[self.number], self.offset, self.shape, self.stride)


@dataclass
class Tape:
    """A recorded step: the calls, with their arguments and the memory that each makes."""

    calls: list[tuple[Any, Any, Any, list[tuple[int, int]]]] = field(default_factory=list)

    def replay(self) -> None:
        memory: dict[int, Any] = {}
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                result = _tensors(func(*_mapped(args, memory), **_mapped(kwargs, memory)))
                for place, number in made:
                    memory[number] = result[place].untyped_storage()


class TapeRecorder:
    """Record steps as tapes; it counts the recordings."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, step: Callable[[], None]) -> Tape:
        self.recorded += 1
        state = torch.default_generator.get_state()
        recording = _Recording()
        try:
            with recording:
                step()
        finally:
            recording.undo()
            torch.default_generator.set_state(state)
        return recording.tape


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.tape = Tape()
        # Memory that the step makes, by address of the storage object; the storages stay alive, so none comes twice.
        self._made: dict[int, tuple[int, Any]] = {}
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero"):
            raise RuntimeError("operation not permitted when stream is capturing")
        # Its schema does not say that it changes the running statistics.
        if func._schema.is_mutable or func._schema.name == "aten::native_batch_norm":
            for tensor in _tensors((args, kwargs)):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._made and storage._cdata not in self._before:
                    self._before[storage._cdata] = (storage, storage.clone())
        recorded = (self._recorded(args), self._recorded(kwargs))
        result = func(*args, **kwargs)
        known = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = []
        for place, tensor in enumerate(_tensors(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage._cdata not in self._made:
                self._made[storage._cdata] = (len(self._made), storage)
                made.append((place, self._made[storage._cdata][0]))
        self.tape.calls.append((func, *recorded, made))
        return result

    def undo(self) -> None:
        for storage, before in self._before.values():
            storage.copy_(before)

    def _recorded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            found = self._made.get(value.untyped_storage()._cdata)
            if found is None:
                # The memory counts, not the object: a parameter may refer to other memory later.
                return value.detach()
            return Made(found[0], value.dtype, tuple(value.shape), value.stride(), value.storage_offset())
        if isinstance(value, dict):
            return {key: self._recorded(one) for key, one in value.items()}
        return type(value)(map(self._recorded, value)) if type(value) in (tuple, list) else value


def _mapped(value: Any, memory: dict[int, Any]) -> Any:
    if isinstance(value, Made):
        return value.of(memory)
    if isinstance(value, dict):
        return {key: _mapped(one, memory) for key, one in value.items()}
    return type(value)(_mapped(one, memory) for one in value) if type(value) in (tuple, list) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple | list) else []
