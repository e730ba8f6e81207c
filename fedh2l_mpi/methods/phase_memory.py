"""Tensors that the phases of a method hold on the device next to a participant's model, for the memory estimate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseMemory:
    """Tensors that the phases of a method hold at once. A phase that needs less than this is estimated too high.

    Attributes
    ----------
    gradients : int
        Number of gradients that a step holds.
    vectors : int
        Number of other vectors with the length of the trainable parameters that all steps hold.
    choosing : float
        Size of what a mutual phase makes of the neighbours' arrays before its first step, as a multiple of their size.
    averaging : int
        Number of arrays that are averaged in a mutual phase without steps, next to those of the neighbours; 0 if the
        mutual phase has steps.
    """

    gradients: int = 1
    vectors: int = 0
    choosing: float = 0.0
    averaging: int = 0
