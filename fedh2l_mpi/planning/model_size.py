"""Measure a model's size: parameters, buffers, and the activations of a training step and a forward pass."""

import copy

import torch
from torch import Tensor, nn

from fedh2l_mpi import losses
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.models import batched_linear
from fedh2l_mpi.models.flat_parameters import shared_bytes
from fedh2l_mpi.planning.allocations import Allocations
from fedh2l_mpi.planning.sizes import ModelSize
from fedh2l_mpi.rng import restored_global_generators


def measure_model(model: nn.Module, source: Source) -> ModelSize:
    """Measure the size of a model and of its activations per sample, in a few small passes on the CPU.

    All tensors that autograd keeps for the backward pass are counted, except parameters and buffers. Workspaces inside
    a convolution or a matrix product, such as cuDNN's, are not counted.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept, largest, forward = _activations(model, source)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_bytes=sum(parameter.nbytes for parameter in trainable),
        state_bytes=sum(value.nbytes for value in [*model.parameters(), *model.buffers()]),
        shared_bytes=shared_bytes(model),
        kept_bytes=kept,
        largest_bytes=largest,
        forward_bytes=forward,
        tensors=len(model.state_dict()),
        stacks=batched_linear.chain(model) is not None,
    )


def _activations(model: nn.Module, source: Source) -> tuple[int, int, int]:
    """Return the bytes kept for a backward pass, of the largest tensor and of a forward pass alone, per sample."""
    # Use a copy, because a training pass changes running statistics. Take the difference of two passes, because
    # some memory does not grow with the number of samples.
    with restored_global_generators():
        scratch = copy.deepcopy(model).train()
        few, more = ((*measure_pass(scratch, source, n), _forward_bytes(scratch, source, n)) for n in (2, 4))
    kept, largest, forward = ((b - a) // 2 for a, b in zip(few, more, strict=True))
    return kept, largest, forward


@torch.no_grad()
def _forward_bytes(model: nn.Module, source: Source, samples: int) -> int:
    """Return the activations that exist at once in a forward pass in eval mode, without gradients [bytes]."""
    inputs = _zeros(source, samples)
    model.eval()
    with Allocations([*model.parameters(), *model.buffers(), inputs]) as allocations:
        model(inputs)
    model.train()
    # Photographs are stored in bytes, so an evaluation makes the input as well.
    return allocations.peak_bytes + (inputs.nbytes if source.is_compact else 0)


def _zeros(source: Source, samples: int) -> Tensor:
    """Return a model's input of zeros, which are token ids as well."""
    dtype = torch.int64 if source.form.kind == "tokens" else torch.float32
    return torch.zeros(samples, *source.form.shape, dtype=dtype)


def measure_pass(model: nn.Module, source: Source, samples: int) -> tuple[int, int]:
    """Return the bytes kept for the backward pass and those of the largest tensor, in one pass of `samples` samples."""
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    # Keep the tensors until the end; otherwise a new tensor at the address of a freed one would not be counted.
    kept: dict[int, Tensor] = {}
    largest = 0

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    def see(module: nn.Module, given: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    hooks = [module.register_forward_hook(see) for module in model.modules()]
    inputs = _zeros(source, samples)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        losses.cross_entropy(model(inputs), torch.zeros(samples, dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    sizes = {address: value.untyped_storage().nbytes() for address, value in kept.items()}
    # The input is kept, but has no gradient.
    largest = max(largest, *(size for address, size in sizes.items() if address != inputs.untyped_storage().data_ptr()))
    return sum(sizes.values()), largest
