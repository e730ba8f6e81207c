"""Embeddings of a model: what enters its classifier, the last linear layer that gives a logit for each class.

Shape letters: B minibatch, K numbers of an embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def classifier(model: nn.Module, classes: int) -> nn.Linear | None:
    """Return the last linear layer with an output for each class; None if there is none."""
    found = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == classes]
    return found[-1] if found else None


class Captured:
    """Embedding of the newest forward pass.

    Attributes
    ----------
    values : Tensor or None
        Embedding (B, K), through which gradients flow; None before the first pass.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def see(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep what enters the classifier; it is a hook before its forward pass."""
        self.values = inputs[0]


@contextmanager
def capturing(model: nn.Module, classes: int) -> Iterator[Captured]:
    """Return a context in which every forward pass of the model leaves its embedding in the `Captured`.

    Raises
    ------
    ValueError
        If the model has no classifier.
    """
    layer = classifier(model, classes)
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no linear layer with {classes} outputs")
    captured = Captured()
    handle = layer.register_forward_pre_hook(captured.see)
    try:
        yield captured
    finally:
        handle.remove()
        captured.values = None
