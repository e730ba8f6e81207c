"""Host memory for copies to and from a GPU. It is page-locked ("pinned"), so that CUDA needs no second copy.

On a CPU nothing is copied. PyTorch keeps page-locked blocks that are no longer used, and uses them again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def host_buffer(shape: Sequence[int], dtype: torch.dtype = torch.float32, pinned: bool = False) -> Tensor:
    """Return a contiguous, uninitialised tensor in host memory. It is page-locked if `pinned`, which needs CUDA."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)


def to_host(tensor: Tensor) -> Tensor:
    """Return the tensor, contiguous in host memory and complete. It is not copied if it is that already.

    A tensor on a GPU is copied through page-locked memory.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu().contiguous()
    staged = host_buffer(tensor.shape, tensor.dtype, pinned=True)
    staged.copy_(tensor, non_blocking=True)
    # Wait, because the copy is only queued so far; otherwise a message would carry the buffer's old content.
    torch.cuda.current_stream(tensor.device).synchronize()
    return staged


def stacked(tensors: Sequence[Tensor], pinned: bool) -> Tensor:
    """Stack tensors of one shape and type along a new first axis in host memory, page-locked if `pinned`.

    There must be at least one.
    """
    if not pinned:
        return torch.stack(list(tensors))
    return torch.stack(list(tensors), out=host_buffer((len(tensors), *tensors[0].shape), tensors[0].dtype, pinned=True))
