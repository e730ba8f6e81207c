"""Sum up the tensors that exist at once in a piece of code, without running it on the device."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode


class Allocations(TorchFunctionMode):
    """Context that sums up the tensors that exist at once, of those that functions of PyTorch get or create within it.

    A mode of functions, because one of operators (`TorchDispatchMode`) imports `torch._dynamo`, which costs 70 MiB. The
    backward pass of autograd calls no functions, so this context does not see it.

    Parameters
    ----------
    outside : sequence of Tensor
        Tensors that are not counted. Arrays of random numbers in host memory are, because a device gets copies of them.

    Attributes
    ----------
    peak_bytes : int
        Largest sum so far. Memory that a function needs inside and frees again is not part of it.
    """

    def __init__(self, outside: Sequence[Tensor]) -> None:
        super().__init__()
        self._outside = {tensor.untyped_storage().data_ptr() for tensor in outside}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors([*args, result]):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._outside:
                self._alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        # Max-pooling makes indices in int64 as well, which it drops.
        pools = isinstance(result, Tensor) and getattr(function, "__name__", "").startswith("max_pool")
        inside = 8 * result.numel() if pools else 0
        self.peak_bytes = max(self.peak_bytes, inside + self.live_bytes)
        return result

    @property
    def live_bytes(self) -> int:
        """Sum of the tensors that exist now."""
        self._alive = {at: entry for at, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among these values, and in the lists and tuples among them."""
    for value in values:
        for part in value if isinstance(value, tuple | list) else [value]:
            if isinstance(part, Tensor):
                yield part
