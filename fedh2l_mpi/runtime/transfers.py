"""Copies from host memory to a device that the host does not wait for."""

import torch
from torch import Tensor

# Largest size of what goes to the device at once for the steps of a phase. The part of one step may be larger.
PHASE_BYTES = 4 << 20


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of host memory on a device; itself if the device is the CPU.

    The host waits before it copies from ordinary memory, until a GPU has finished what is queued. It does not wait if
    the memory is page-locked. That it does not has not been verified on a GPU yet.
    """
    return tensor.to(device) if device.type != "cuda" else tensor.pin_memory().to(device, non_blocking=True)
