"""Count the memory of the tensors that exist at once, as the allocator of a GPU would, but for its rounding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Context that counts the tensors that are created within it, in forward and backward passes, until they are freed.

    Memory that a kernel needs inside and frees again is not counted.

    Attributes
    ----------
    peak_bytes : int
        Largest sum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # A view, or the result of an operation in place, is in the memory of an argument.
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.add([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and _address(leaf) not in given])
        return result

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Count new tensors."""
        if not tensors:
            return
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    @property
    def live_bytes(self) -> int:
        """Sum of the tensors that exist now."""
        self._alive = {at: entry for at, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def counted() -> Iterator[LiveTensors]:
    """Count the tensors that a GPU would hold within the context.

    What `Tensor.to` moves to the device, such as random numbers, is in the memory of the CPU already. It is copied and
    counted here, because a GPU gets a copy.
    """
    to = Tensor.to
    with LiveTensors() as live, pytest.MonkeyPatch.context() as patch:

        def moving(tensor: Tensor, where: Any, *more: Any, **options: Any) -> Tensor:
            moved: Tensor = to(tensor, where, *more, **options)
            return moved.clone() if moved is tensor and isinstance(where, torch.device | Tensor) else moved

        patch.setattr(Tensor, "to", moving)
        yield live


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the largest sum of the tensors that exist at once of those that `action` creates."""
    with counted() as live:
        # The result must exist until the end, because a caller would keep it.
        _ = action()
    return live.peak_bytes
