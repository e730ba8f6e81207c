"""A model's trainable parameters as one flat vector: a step is then a few calls, however many layers there are."""

import torch
from torch import Tensor, nn


def channels_last(tensor: Tensor) -> Tensor:
    """A view with the channels of a four-dimensional tensor last; others as they are.

    Convolutions on a CPU are 1.2 to 2 times faster where images and weights lie in memory in this order.
    """
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def channels_second(tensor: Tensor) -> Tensor:
    """The reverse of `channels_last`."""
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor


def _shared_buffers(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def shared_bytes(model: nn.Module) -> int:
    """What one copy of the model is on the wire: trainable parameters and floating-point buffers in float32 [bytes]."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return 4 * sum(value.numel() for value in [*trainable, *_shared_buffers(model)])


class FlatParameters:
    """Moves a model's trainable parameters into one vector of which they become views, channels last.

    Parameters
    ----------
    model : nn.Module
        On its final device; its parameters must be of one dtype. Frozen parameters stay where they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._keep_in(self._flatten([parameter.detach() for parameter in self._parameters]))

    @torch.no_grad()
    def move_to(self, vector: Tensor) -> None:
        """Keep the parameters in `vector` from now on, which takes over their values."""
        vector.copy_(self.vector)
        self._keep_in(vector)

    def share_memory_with(self, tensor: Tensor) -> bool:
        """Whether a step could change this tensor."""
        return tensor.untyped_storage().data_ptr() == self.vector.untyped_storage().data_ptr()

    def _keep_in(self, vector: Tensor) -> None:
        self.vector, first = vector, 0
        for parameter in self._parameters:
            stored = self.vector[first : first + parameter.numel()]
            parameter.data = channels_second(stored.view(channels_last(parameter).shape))
            first += parameter.numel()

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """d loss / d parameters as a new flat vector; 0 for a parameter that `loss` does not depend on.

        `again` keeps what a further gradient through the same forward pass needs.
        """
        return self._flatten(
            torch.autograd.grad(loss, self._parameters, retain_graph=again or None, materialize_grads=True)
        )

    @staticmethod
    def _flatten(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        return torch.cat([channels_last(tensor).reshape(-1) for tensor in tensors])


class SharedState:
    """What parameter-sharing methods exchange of a model: trainable parameters and floating-point buffers, one vector.

    The buffers are BatchNorm's running means and variances: they are averaged like parameters. Counters stay local.

    Parameters
    ----------
    parameters : FlatParameters
        Of `model`.
    """

    def __init__(self, model: nn.Module, parameters: FlatParameters) -> None:
        self._parameters = parameters
        self._buffers = _shared_buffers(model)

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return len(self._parameters.vector) + sum(buffer.numel() for buffer in self._buffers)

    @torch.no_grad()
    def read(self) -> Tensor:
        """A copy, (size,), on the model's device."""
        return torch.cat([self._parameters.vector, *(buffer.reshape(-1) for buffer in self._buffers)])

    @torch.no_grad()
    def write(self, state: Tensor) -> None:
        """Take over a vector (size,)."""
        parts = [self._parameters.vector, *self._buffers]
        for part, values in zip(parts, state.split([part.numel() for part in parts]), strict=True):
            part.copy_(values.view_as(part))
