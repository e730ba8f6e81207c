"""Sizes that the memory estimate begins with: those of a model, and the numbers of samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ModelSize:
    """Size of one model of an architecture.

    Attributes
    ----------
    parameters : int
        Number of trainable and frozen parameters.
    trainable_bytes, state_bytes : int
        Size of the trainable parameters; size of all parameters and buffers.
    shared_bytes : int
        Size of one copy in a message, and of averaged weights: trainable parameters and floating-point buffers.
    kept_bytes : int
        Activations of one sample that a forward pass keeps for the backward pass.
    largest_bytes : int
        Largest tensor of one sample in a forward pass.
    forward_bytes : int
        Activations of one sample that exist at once in a forward pass without gradients.
    tensors : int
        Number of entries of its state dict.
    stacks : bool
        True if similar participants with this model step together on a CPU, too.
    """

    parameters: int
    trainable_bytes: int
    state_bytes: int
    shared_bytes: int
    kept_bytes: int
    largest_bytes: int
    forward_bytes: int
    tensors: int = 0
    stacks: bool = False

    def training_bytes(self, samples: int) -> int:
        """Return the activations of a forward and backward pass of a minibatch [bytes].

        The backward pass begins with all kept tensors, and needs one more of the size of the largest.
        """
        return samples * (self.kept_bytes + self.largest_bytes)

    def inference_bytes(self, samples: int) -> int:
        """Return the activations of a forward pass without gradients [bytes]."""
        return samples * self.forward_bytes


@dataclass(frozen=True)
class SampleCounts:
    """Number of samples of every participant, and the size of a sample.

    Attributes
    ----------
    private_P, validation_P : int64 (P,)
        Number of private and validation samples of each participant.
    local_test_P : int64 (P,) or int
        Number of samples of each participant's local test; 0: there is none.
    seed, seed_rows_per_round : int
        Number of samples in the seed set, and of rows of a round: the samples that it uses times the views of each.
    tests : sequence of int
        Number of test samples in each domain.
    stored_bytes, input_bytes : int
        Size of an image with its label as stored, and of an image as a model's input.
    draws : int
        Number of draws of the partition until every class had enough samples.
    """

    private_P: NDArray[np.int64]
    validation_P: NDArray[np.int64]
    seed: int
    seed_rows_per_round: int
    tests: Sequence[int]
    classes: int
    stored_bytes: int
    input_bytes: int
    draws: int = 1
    local_test_P: NDArray[np.int64] | int = 0

    @property
    def held_out_P(self) -> NDArray[np.int64]:
        """Number of samples of each participant that only it is evaluated on: validation and local test, int64 (P,)."""
        return self.validation_P + self.local_test_P

    @property
    def domains(self) -> int:
        return len(self.tests)
