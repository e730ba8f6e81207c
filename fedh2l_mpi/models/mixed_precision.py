"""Arithmetic of a model in bfloat16 where that is safe, with weights, losses and updates in float32."""

import types

import torch
from torch import Tensor, nn

from fedh2l_mpi.errors import UserError


def refuse_without_hardware(device: torch.device) -> None:
    """A GPU that would have to imitate bfloat16 is slower with it than without; CPUs are left to the user.

    Raises
    ------
    UserError
        If it is such a GPU.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"optimizer.precision: got 'bfloat16', which {device} ({torch.cuda.get_device_name(device)}) has no "
            "arithmetic for; use float32"
        )


def mix(model: nn.Module) -> None:
    """From now on, the model's products and convolutions are in bfloat16, and its logits in float32.

    bfloat16 has float32's range: unlike float16, gradients need no scaling. Normalisations and other sums that need
    more digits stay in float32; which ones, `torch.autocast` knows.

    Source: Micikevicius et al., "Mixed precision training", 2018; Kalamkar et al., "A study of bfloat16 for deep
    learning training", 2019.
    """
    own = vars(model).get("forward")

    def mixed(self: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = type(self).forward(self, images) if own is None else own(images)
        return logits.float()

    # Not a module around it: parameters keep their names. Bound, so that a copy of the model calls itself.
    model.forward = types.MethodType(mixed, model)
