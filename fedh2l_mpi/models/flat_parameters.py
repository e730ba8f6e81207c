"""Storage of a model's trainable parameters in one flat vector: a step takes a few calls for any number of layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedh2l_mpi.models.memory_format import is_kept_contiguous


def channels_last(tensor: Tensor) -> Tensor:
    """Return a view of a four-dimensional tensor with its channels last; any other tensor is returned unchanged.

    Convolutions on a CPU are 1.2 to 2 times faster if images and weights are stored in this order.
    """
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def channels_second(tensor: Tensor) -> Tensor:
    """Undo `channels_last`."""
    return tensor.permute(0, 3, 1, 2) if tensor.dim() == 4 else tensor


class FloatingBuffers:
    """The buffers that are averaged like parameters: BatchNorm's running means and variances, not counters.

    They are looked up by their places, because a module may put a new tensor there, as `self.mean = new_mean` does.
    """

    def __init__(self, model: nn.Module) -> None:
        found: dict[int, tuple[nn.Module, str]] = {}
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    found.setdefault(id(buffer), (module, key))
        self._places = [(module._buffers, key) for module, key in found.values()]

    def tensors(self) -> list[Tensor]:
        """Return the buffers as they are now."""
        return [buffers[key] for buffers, key in self._places]  # type: ignore[misc]


def shared_bytes(model: nn.Module) -> int:
    """Return the size of one copy of the model on the wire [bytes]: trainable parameters and buffers in float32."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return 4 * sum(value.numel() for value in [*trainable, *FloatingBuffers(model).tensors()])


class FlatParameters:
    """Store a model's trainable parameters in one vector; they become views of it, in the model's memory format.

    Parameters
    ----------
    model : nn.Module
        A model on its final device, with parameters of one dtype. Frozen parameters are not moved. A model that
        `keep_contiguous` knows keeps contiguous parameters; those of any other model are stored channels last.

    Attributes
    ----------
    trainable : list of nn.Parameter
        The trainable parameters, in the order of the vector.
    vector : Tensor
        All trainable parameters (W,).
    contiguous : bool
        False if parameters of four dimensions have their channels last in the vector.
    """

    def __init__(self, model: nn.Module) -> None:
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.contiguous = is_kept_contiguous(model)
        self._stored, self._seen = (_same, _same) if self.contiguous else (channels_last, channels_second)
        self.refer_to(self._flatten([parameter.detach() for parameter in self.trainable]))

    @torch.no_grad()
    def move_to(self, vector: Tensor) -> None:
        """Copy the parameters into `vector`, and store them there from now on."""
        vector.copy_(self.vector)
        self.refer_to(vector)

    def share_memory_with(self, tensor: Tensor) -> bool:
        """Return True if a step could change this tensor."""
        return tensor.untyped_storage().data_ptr() == self.vector.untyped_storage().data_ptr()

    def refer_to(self, vector: Tensor) -> None:
        """Make the parameters views of another vector with whatever values it has; the present one is unchanged."""
        self.vector, first = vector, 0
        for parameter in self.trainable:
            stored = self.vector[first : first + parameter.numel()]
            parameter.data = self._seen(stored.view(self._stored(parameter).shape))
            first += parameter.numel()

    def gradient(self, loss: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters as a new flat vector; 0 for parameters that `loss` does not depend on.

        `again` keeps what another gradient through the same forward pass needs.
        """
        return self._flatten(
            torch.autograd.grad(loss, self.trainable, retain_graph=again or None, materialize_grads=True)
        )

    def in_rows(self, matrix_GW: Tensor) -> list[Tensor]:
        """Return views of the parameters of G models, each (G, ...), in the memory format of this model.

        They require gradients.

        Parameters
        ----------
        matrix_GW : float tensor (G, W)
            The vectors of models of this architecture.
        """
        views, first = [], 0
        for parameter in self.trainable:
            columns_GW = matrix_GW.detach()[:, first : first + parameter.numel()]
            stored = columns_GW.view(len(matrix_GW), *self._stored(parameter).shape)
            views.append((stored.movedim(-1, 2) if self._permutes(parameter) else stored).requires_grad_())
            first += parameter.numel()
        return views

    def flat_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the columns of a matrix (G, W) from a tensor (G, ...) for each parameter."""
        return [
            (tensor.movedim(2, -1) if self._permutes(parameter) else tensor).flatten(1)
            for parameter, tensor in zip(self.trainable, tensors, strict=True)
        ]

    def from_channels_last(self, vector: Tensor) -> Tensor:
        """Return a vector (W,) whose parameters have their channels last, in the order of this one."""
        parts = vector.split([parameter.numel() for parameter in self.trainable])
        return self._flatten(
            [
                channels_second(part.view(channels_last(parameter).shape))
                for part, parameter in zip(parts, self.trainable, strict=True)
            ]
        )

    def _flatten(self, tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        # nn.Embedding(sparse=True) has sparse gradients.
        dense = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
        return torch.cat([self._stored(tensor).reshape(-1) for tensor in dense])

    def _permutes(self, parameter: Tensor) -> bool:
        """Return True if the vector has the channels of a parameter last."""
        return parameter.dim() == 4 and not self.contiguous


def _same(tensor: Tensor) -> Tensor:
    return tensor


class SharedState:
    """The part of a model that parameter-sharing methods exchange: trainable parameters and buffers in one vector.

    The buffers are BatchNorm's running means and variances, which are averaged like parameters. Counters stay local.

    Parameters
    ----------
    parameters : FlatParameters
        The parameters of `model`.
    """

    def __init__(self, model: nn.Module, parameters: FlatParameters) -> None:
        self._parameters = parameters
        self._buffers = FloatingBuffers(model)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return len(self._parameters.vector) + sum(buffer.numel() for buffer in self._buffers.tensors())

    @torch.no_grad()
    def read(self) -> Tensor:
        """Return a copy (size,) on the model's device."""
        return torch.cat([self._parameters.vector, *(buffer.reshape(-1) for buffer in self._buffers.tensors())])

    @torch.no_grad()
    def write(self, state: Tensor) -> None:
        """Replace parameters and buffers by the values of a vector (size,)."""
        parts = [self._parameters.vector, *self._buffers.tensors()]
        for part, values in zip(parts, state.split([part.numel() for part in parts]), strict=True):
            part.copy_(values.view_as(part))
