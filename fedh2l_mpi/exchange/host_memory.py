"""Host memory that a GPU copies to and from: page-locked ("pinned"), so that the copy needs no second one inside CUDA.

On a CPU nothing is copied. PyTorch keeps page-locked blocks that are no longer used, and hands them out again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def host_buffer(shape: Sequence[int], dtype: torch.dtype = torch.float32, pinned: bool = False) -> Tensor:
    """A contiguous tensor in host memory, its numbers not set; page-locked if `pinned`, which needs CUDA."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor, contiguous in host memory and complete; itself if it is that already.

    From a GPU it comes through page-locked memory.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu().contiguous()
    staged = host_buffer(tensor.shape, tensor.dtype, pinned=True)
    staged.copy_(tensor, non_blocking=True)
    # The copy is only queued so far: a message sent now would carry what was in the buffer before.
    torch.cuda.current_stream(tensor.device).synchronize()
    return staged


def stacked(tensors: Sequence[Tensor], pinned: bool) -> Tensor:
    """Tensors of one shape and type, at least one, in host memory, along a new first axis; page-locked if `pinned`."""
    if not pinned:
        return torch.stack(list(tensors))
    return torch.stack(list(tensors), out=host_buffer((len(tensors), *tensors[0].shape), tensors[0].dtype, pinned=True))
