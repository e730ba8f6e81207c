"""Models of one architecture computed as one, whatever their layers are: `torch.func.vmap` over stacked parameters.

A layer of all models is one call, where a GPU takes longer to start the calls of single models than to compute them.
Buffers, such as BatchNorm's running statistics, are stacked as well. Sums are taken in another order than those of a
single model, so the last digits differ. `batched_linear` computes chains of linear layers without that difference.

Shape letters: G models, B minibatch, X the axes of one sample, C classes, W weights of a model.
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedh2l_mpi.models.batched_linear import join_columns
from fedh2l_mpi.models.flat_parameters import FlatParameters
from fedh2l_mpi.models.memory_format import other_hooks
from fedh2l_mpi.rng import global_states, restored_global_generators

# Samples of a trial; BatchNorm needs two.
TRIAL_SAMPLES = 2
# A trial in float64 shows the rounding of float32 logits at most. Models that mix dtypes are tried in float32, whose
# products may have 10 bits (TF32).
TRIALS = ((torch.float64, 1e-6), (torch.float32, 1e-2))

DRAWS = "it draws random numbers"
DIFFERS = "together, its participants get other numbers than alone"


class StackedModel(nn.Module):
    """Map the samples (G, B, X) of G models to their logits (G, B, C), in train mode.

    The models' buffers and frozen parameters become rows of stacked tensors, so that a model alone sees every step.

    Parameters
    ----------
    models : sequence of nn.Module
        Models that `refusal` accepts.
    parameters : FlatParameters
        The parameters of the first model.
    parameters_GW : float tensor (G, W)
        A row for each model, in the order of its `FlatParameters`. The caller may change it in place between passes.

    Attributes
    ----------
    weights : list of Tensor
        Views of `parameters_GW` that require gradients, each (G, ...), in the order of the columns.
    """

    def __init__(self, models: Sequence[nn.Module], parameters: FlatParameters, parameters_GW: Tensor) -> None:
        super().__init__()
        self._flat = parameters
        self.weights = parameters.in_rows(parameters_GW)
        of_first = {id(one): weight for one, weight in zip(parameters.trainable, self.weights, strict=True)}
        named = [dict(_tensors(model)) for model in models]
        self._state: dict[str, Tensor] = {}
        for name, value in named[0].items():
            if id(value) not in of_first:
                of_first[id(value)] = torch.stack([tensors[name].detach() for tensors in named])
                for tensors, row in zip(named, of_first[id(value)], strict=True):
                    tensors[name].data = row
            self._state[name] = of_first[id(value)]
        self._compute = _computed(copy.deepcopy(models[0]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (G, B, C) of each model on its own samples."""
        return self._compute(self._state, inputs)

    def gradient(self, losses_G: Tensor, again: bool = False) -> Tensor:
        """Return d loss / d parameters of each model as a new matrix (G, W).

        `again` keeps what another gradient through the same forward pass needs.
        """
        gradients = torch.autograd.grad(
            losses_G.sum(), self.weights, retain_graph=again or None, materialize_grads=True
        )
        return join_columns(self._flat.flat_rows(gradients))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _computed(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return the function from stacked parameters and buffers, and samples (G, B, X), to logits (G, B, C).

    Only the code of `model` is used, so its own tensors lose their memory.
    """
    model.train().to("meta")

    def alone(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, state, (inputs,), tie_weights=False)
        return logits

    together: Callable[[dict[str, Tensor], Tensor], Tensor] = vmap(alone)
    return together


class _Refused(Exception):
    """A model cannot be stacked, for the reason in the message."""


def refusal(models: Sequence[nn.Module], inputs: Sequence[Tensor]) -> str:
    """Return the reason why models cannot be computed together; an empty text if they can.

    The first two are tried together, on copies, and logits, gradients and buffers are compared with those of each
    alone. The models and the generators of random numbers are unchanged afterwards. A model that draws random numbers
    is refused, because its draws would depend on the participants that are hosted with it.

    Parameters
    ----------
    models : sequence of nn.Module
        Two or more models of one architecture, on their device.
    inputs : sequence of tensor (B, X)
        A few samples for each; at most `TRIAL_SAMPLES` of them are used.
    """
    try:
        for model in models:
            _check_code(model)
        for other in models[1:]:
            _check_alike(models[0], other)
        samples = [own[:TRIAL_SAMPLES] for own in inputs]
        _try((models[0], models[1]), torch.stack(samples[:2]))
        for other, own in zip(models[2:], samples[2:], strict=True):
            _check_attributes(models[0], other, own)
    except _Refused as reason:
        return str(reason)
    return ""


def _check_code(model: nn.Module) -> None:
    """Refuse hooks, which would see all models at once, and state that is in no tensor."""
    for module in model.modules():
        hooks = (module._forward_hooks, other_hooks(module), module._backward_hooks, module._backward_pre_hooks)
        if any(hooks):
            raise _Refused("a hook observes its passes")
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise _Refused(f"{type(module).__name__} has a state that is in no tensor")
    for parameter in model.parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise _Refused("a hook observes a gradient")


def _check_alike(first: nn.Module, other: nn.Module) -> None:
    """Refuse models whose tensors have other names, shapes or kinds, and models that have a tensor in common."""
    ours, theirs = dict(_tensors(first)), dict(_tensors(other))
    if _kinds(ours) != _kinds(theirs):
        raise _Refused("its participants have tensors of different names, shapes or kinds")
    if {id(value) for value in ours.values()} & {id(value) for value in theirs.values()}:
        raise _Refused("its participants have a tensor in common")


@torch.no_grad()
def _check_attributes(first: nn.Module, other: nn.Module, inputs_BX: Tensor) -> None:
    """Refuse models that have the same tensors but compute something else, such as one with a random attribute."""
    own, code = (copy.deepcopy(model).train() for model in (other, first))
    by_first = functional_call(code, dict(_tensors(copy.deepcopy(other))), (inputs_BX,), tie_weights=False)
    if not _is_close(by_first, own(inputs_BX), TRIALS[1][1]):
        raise _Refused(DIFFERS)


def _kinds(tensors: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    places = {id(value): place for place, value in reversed(list(enumerate(tensors.values())))}
    return [(name, places[id(value)], value.shape, value.dtype, value.requires_grad) for name, value in tensors.items()]


def _try(pair: tuple[nn.Module, nn.Module], inputs_2BX: Tensor) -> None:
    """Compare two models computed together with each alone."""
    failure = ""
    for dtype, tolerance in TRIALS:
        devices = [inputs_2BX.device.index or 0] if inputs_2BX.device.type == "cuda" else []
        try:
            with restored_global_generators(devices), warnings.catch_warnings():
                # Without a rule for an operation, vmap takes one model after the other, which is no faster. For
                # as_strided_ that does not matter: global pooling calls it on its few results.
                warnings.filterwarnings("error", message=r".*performance drop(?!.*as_strided_)")
                _compare(pair, inputs_2BX, dtype, tolerance)
                return
        except _Refused:
            raise
        # A user's own model may raise whatever it likes when it is copied, converted or given several models' tensors.
        except Exception as error:
            failure = _reason(error)
    raise _Refused(failure)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "random" in text and "vmap" in text:
        return DRAWS
    without_rule = re.search(r"[Bb]atching rule (?:not implemented )?for (\w+::\w+(?:\.\w+)?)", text)
    return f"vmap has no rule for {without_rule[1]}" if without_rule else f"{type(error).__name__}: {text[:200]}"


def _compare(pair: tuple[nn.Module, nn.Module], inputs_2BX: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    alone, joined = ([copy.deepcopy(model).to(dtype).train() for model in pair] for _ in range(2))
    flat, rows = ([FlatParameters(model) for model in models] for models in (alone, joined))
    together = StackedModel(joined, rows[0], join_columns([torch.stack([row.vector for row in rows])]))
    inputs_2BX = inputs_2BX.to(dtype) if inputs_2BX.is_floating_point() else inputs_2BX
    before = global_states()
    logits_2BC = together(inputs_2BX)
    if global_states() != before:
        raise _Refused(DRAWS)
    gradients_2W = together.gradient(_loss(logits_2BC))
    for number, (model, own) in enumerate(zip(alone, flat, strict=True)):
        bound = _bound(model)
        logits_BC = model(inputs_2BX[number])
        if any(value is not bound.get(place) for place, value in _bound(model).items()):
            raise _Refused("a pass replaces a buffer or an attribute of the model")
        sizes = [parameter.numel() for parameter in own.trainable]
        pairs = [(logits_2BC[number], logits_BC)]
        pairs += zip(gradients_2W[number].split(sizes), own.gradient(_loss(logits_BC)).split(sizes), strict=True)
        pairs += zip(joined[number].buffers(), model.buffers(), strict=True)
        for ours, theirs in pairs:
            if ours.shape != theirs.shape or not _is_close(ours.double(), theirs.double(), tolerance):
                raise _Refused(DIFFERS)


def _loss(logits: Tensor) -> Tensor:
    # Zeroed last layers give logits of 0; the gradient of this sum is not zero there, unlike that of their squares.
    return logits.logsumexp(dim=-1).sum(dim=-1)


def _is_close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Return True if the values differ by little, relative to the largest; not-a-numbers differ."""
    apart, size = (ours - theirs).abs(), theirs.abs()
    return not apart.numel() or bool(apart.max() <= tolerance * (size.max() + tolerance))


def _bound(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Return the buffers and the attributes of all modules, by their places."""
    places: dict[tuple[str, str], Any] = {}
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers")}
        places |= {(name, key): value for key, value in {**attributes, **module._buffers}.items()}
    return places
