"""Models of linear layers computed as one: a layer of all models is one batched product.

Only chains of Flatten, Linear and ReLU are batched. Their steps are many small products, and starting a product costs
more than computing it. On a CPU, every model gets exactly the bits that its own products would give it; a test checks
this. `stacked` computes any other model, where the bits may differ: convolutions on a CPU are slower together.

Shape letters: G models, B minibatch, I, O inputs and outputs of a layer, W weights of a model.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedh2l_mpi import losses
from fedh2l_mpi.models.memory_format import other_hooks
from fedh2l_mpi.models.zoo import Mlp

# Numbers of float32 in 64 bytes.
ALIGNED = 16
# Below this number of multiplications, PyTorch's batched product on a CPU is a separate loop, whose last bits differ
# from those of a single product. Source: bmm_out_or_baddbmm_ in aten/src/ATen/native/LinearAlgebra.cpp.
SMALL = 400


def chain(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a model that can be batched, in their order, or None for any other model."""
    layers = _layers(model)
    if layers is None or not all(map(_is_plain, model.parameters())):
        return None
    # Without a Flatten first, a Linear layer would multiply rows of pixels instead of whole images.
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    fits = isinstance(layers[0], nn.Flatten) and all(
        one.out_features == two.in_features for one, two in pairwise(linears)
    )
    # A shared layer, or a parameter outside the layers, would be missing from the batched weights.
    theirs = [id(parameter) for layer in linears for parameter in layer.parameters()]
    return layers if fits and linears and theirs == [id(parameter) for parameter in model.parameters()] else None


def _is_plain(parameter: nn.Parameter) -> bool:
    """Return True if the parameter has a gradient, and no hook observes it."""
    return parameter.requires_grad and not parameter._backward_hooks and not parameter._post_accumulate_grad_hooks


def _layers(module: nn.Module) -> list[nn.Module] | None:
    # Hooks and a replaced forward do something that the layers do not show.
    hooks = (module._forward_hooks, other_hooks(module), module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in vars(module):
        return None
    if type(module) is Mlp:
        return _layers(module.layers)
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        parts = [_layers(part) for part in module]
        return [layer for part in parts for layer in part or []] if parts and None not in parts else None
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return [module]
    return [module] if type(module) in (nn.Linear, nn.ReLU) else None


def join_columns(parts: Sequence[Tensor]) -> Tensor:
    """Join the columns of several matrices into a new matrix, whose rows begin at multiples of 64 bytes.

    Vectors begin there too, and the last bit of a dot product depends on where in memory its operands begin.
    """
    width = sum(part.shape[1] for part in parts)
    filling = parts[0].new_zeros((len(parts[0]), -width % ALIGNED))
    return torch.cat([*parts, filling], dim=1)[:, :width]


def _is_one_by_one(values_GBI: Tensor, weight_GOI: Tensor) -> bool:
    """Return True if a batched product would differ from single ones in its last bits, forwards or backwards.

    A layer with one input or one output multiplies a matrix by a vector, and only single products have a kernel for it.
    """
    if not losses.needs_single_rows(values_GBI):
        return False
    _, outputs, inputs = weight_GOI.shape
    return min(inputs, outputs) == 1 or values_GBI.shape[1] * inputs * outputs < SMALL


def _products(left: Tensor, right: Tensor, one_by_one: bool) -> Tensor:
    return torch.stack(list(map(torch.mm, left, right))) if one_by_one else torch.bmm(left, right)


class _Linear(torch.autograd.Function):
    """x W^T + b of every model.

    The gradient of W is g^T x, as in PyTorch's single layer. Autograd would compute (x^T g)^T for a batch, with
    different last bits.
    """

    @staticmethod
    def forward(ctx: Any, values_GBI: Tensor, weight_GOI: Tensor, bias_GO: Tensor | None) -> Tensor:
        ctx.save_for_backward(values_GBI, weight_GOI)
        one_by_one, weight_GIO = _is_one_by_one(values_GBI, weight_GOI), weight_GOI.transpose(1, 2)
        if bias_GO is None:
            return _products(values_GBI, weight_GIO, one_by_one)
        if one_by_one:
            return torch.stack(list(map(torch.addmm, bias_GO, values_GBI, weight_GIO)))
        return torch.baddbmm(bias_GO.unsqueeze(1), values_GBI, weight_GIO)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        values_GBI, weight_GOI = ctx.saved_tensors
        gradient_GBO, one_by_one = gradients[0], _is_one_by_one(values_GBI, weight_GOI)
        return (
            _products(gradient_GBO, weight_GOI, one_by_one) if ctx.needs_input_grad[0] else None,
            _products(gradient_GBO.transpose(1, 2), values_GBI, one_by_one),
            gradient_GBO.sum(dim=1) if ctx.needs_input_grad[2] else None,
        )


class BatchedModel(nn.Module):
    """Map the images (G, B, channels, side, side) of G models to their logits (G, B, classes).

    Parameters
    ----------
    model : nn.Module
        One of the models, for its layers; `chain` must accept it.
    parameters_GW : float tensor (G, W)
        A row for each model, in the order of its `FlatParameters`. The caller may change it in place between passes.

    Attributes
    ----------
    weights : list of Tensor
        Views of `parameters_GW` that require gradients, each (G, ...), in the order of the columns.
    """

    def __init__(self, model: nn.Module, parameters_GW: Tensor) -> None:
        super().__init__()
        layers = chain(model)
        if layers is None:
            raise ValueError(f"{type(model).__name__} is not a chain of Flatten, Linear and ReLU")
        self._chain = layers
        self.weights: list[Tensor] = []
        first = 0
        for parameter in model.parameters():
            columns = parameters_GW[:, first : first + parameter.numel()].detach()
            self.weights.append(columns.view(len(parameters_GW), *parameter.shape).requires_grad_())
            first += parameter.numel()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (G, B, classes) of each model on its own images."""
        weights = iter(self.weights)
        values = images
        for layer in self._chain:
            if isinstance(layer, nn.Linear):
                weight = next(weights)
                values = _Linear.apply(values, weight, None if layer.bias is None else next(weights))
            elif isinstance(layer, nn.ReLU):
                values = values.relu()
            elif values.dim() > 3:
                values = values.flatten(2)
        return values

    def gradient(self, losses_G: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters of each model as a new matrix (G, W).

        `again` keeps what another gradient through the same forward pass needs.
        """
        gradients = torch.autograd.grad(
            losses_G.sum(), self.weights, retain_graph=again or None, materialize_grads=True
        )
        return join_columns([gradient.flatten(1) for gradient in gradients])
