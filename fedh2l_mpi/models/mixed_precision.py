"""Mixed precision: a model computes in bfloat16 where that is safe; weights, losses and updates stay in float32."""

import types

import torch
from torch import Tensor, nn

from fedh2l_mpi.errors import UserError

# The first generation of GPUs that computes in TF32, Ampere, by its compute capability.
FIRST_WITH_TF32 = (8, 0)


def refuse_without_hardware(device: torch.device, precision: str) -> None:
    """Refuse a GPU that has no arithmetic for a number format: it would emulate bfloat16, and leave out TF32.

    CPUs are always accepted: all of them compute bfloat16, and tf32 is float32 there.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        `optimizer.precision`.

    Raises
    ------
    UserError
        If the device is such a GPU.
    """
    if device.type != "cuda" or precision == "float32":
        return
    if precision == "tf32":
        has_it = torch.cuda.get_device_capability(device) >= FIRST_WITH_TF32
    else:
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    if not has_it:
        raise UserError(
            f"optimizer.precision: got {precision!r}, but {device} ({torch.cuda.get_device_name(device)}) has no "
            "arithmetic for it. Use float32."
        )


def mix(model: nn.Module) -> None:
    """Make the model compute products and convolutions in bfloat16, and return its logits in float32.

    bfloat16 has the range of float32, so gradients need no scaling, unlike those in float16. `torch.autocast` keeps
    normalisations and other sums that need more digits in float32.

    Source: Micikevicius et al., "Mixed precision training", 2018; Kalamkar et al., "A study of bfloat16 for deep
    learning training", 2019.
    """
    own = vars(model).get("forward")

    def mixed(self: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = type(self).forward(self, images) if own is None else own(images)
        return logits.float()

    # A module around the model would rename its parameters. The method is bound so that a copy of the model calls
    # the copy, not the original.
    model.forward = types.MethodType(mixed, model)
