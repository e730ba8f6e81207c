"""Ways to record a training step, and the checks that it can be recorded."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Calls by which the host waits for numbers of a device, and calls that may copy between the two.
WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount")
COPYING = ("_to_copy", "copy_")


class NotRepeatableError(Exception):
    """A step cannot be recorded; the text says why."""


class Replayable(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Take the step again."""


class Recorder(Protocol):
    """Way to record a step."""

    def record(self, step: Callable[[], None]) -> Replayable:
        """Return the recorded step; no tensor changes while it is recorded."""


class CudaRecorder:
    """Record steps as CUDA graphs. It was written without a GPU at hand, and has not been verified on one.

    All graphs of a rank share one pool of memory, because they run one after another on one stream, and leave nothing
    there that a later replay needs.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def record(self, step: Callable[[], None]) -> Replayable:
        """Return the step as a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls count: another one may copy a checkpoint from the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        return graph


class Waits(TorchDispatchMode):
    """Context that finds calls by which the host waits for the device, or copies something there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        is_mask = name.startswith("index") and any(one.dtype in (torch.bool, torch.uint8) for one in _flat(args[1:2]))
        is_copy = name in COPYING and len({tensor.device for tensor in _flat((args, result))}) > 1
        if is_mask or is_copy or name in WAITING:
            self.found.append(name)
        return result


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _flat(part)] if isinstance(value, tuple | list) else []


@contextmanager
def host_draws_restored(device: torch.device) -> Iterator[list[str]]:
    """Restore the host's global generators at the end; the list then names those that were drawn from.

    PyTorch's generator of the CPU is left alone if the CPU is the device.
    """
    drawn: list[str] = []
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    torchs = None if device.type == "cpu" else torch.default_generator.get_state()
    try:
        yield drawn
    finally:
        after = np.random.get_state(legacy=False)  # noqa: NPY002
        if random.getstate() != python:
            drawn.append("random")
            random.setstate(python)
        if repr(after) != repr(numpy):
            drawn.append("numpy")
            np.random.set_state(numpy)  # noqa: NPY002
        if torchs is not None and not torch.equal(torchs, torch.default_generator.get_state()):
            drawn.append("torch")
            torch.default_generator.set_state(torchs)
