"""Compute the largest sum of tensors that a phase of a round makes on the device, next to data, models and optimisers.

Shape letters: R ranks, A architectures, B minibatch, S seed rows of a round, C classes, N neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.method import CombineOptions, LocalLabelOptions, OwnMethodOptions
from fedh2l_mpi.data.minibatches import PHASE_BYTES
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.planning.sizes import ModelSize, SampleCounts
from fedh2l_mpi.planning.traffic import Links, MessageSize
from fedh2l_mpi.planning.view_size import ViewSize

# Number of temporary vectors of the trainable parameters' length in an update: Adam's two, or the parts of a gradient
# before they are joined. Measured with every method. Participants that step together need them once per member; moving
# their vectors into shared matrices at first needs no more than their steps.
UPDATE_VECTORS = {"adam": 2, "adamw": 2, "sgd": 1}
# Number of float32 arrays (N, B, C) of a step of distillation: the minibatch's posteriors, and two terms of each
# divergence. Measured with four neighbours.
DISTILLATION_ARRAYS = 3
# Bytes of each class and sample of a set while it is scored: logits, scaled logits and their log-softmax. The second
# number is without classes: a sample's place among the bins of confidence. Measured with 10 to 1,000 classes.
SCORED_BYTES, BINNED_BYTES = 12, 136
# More bytes of each class and sample for metrics, which are computed in float64.
METRICS_BYTES = 16
# Bytes of each class and seed row while a temperature is fitted: logits, and five arrays in float64. Measured.
FITTED_BYTES = 4 + 5 * 8


@dataclass(frozen=True)
class PhaseInputs:
    """Sizes that the largest phase of a round depends on, the same for every rank.

    Attributes
    ----------
    sizes : mapping
        From every architecture of the config to its size.
    message : MessageSize or None
        None: nothing is exchanged.
    held : PhaseMemory
        What the method's phases hold.
    trains_on_seed_rows : bool
        True if steps may use a seed minibatch.
    shares_parameters, takes_theirs_one_by_one : bool
        Attributes of the method.
    """

    config: Config
    counts: SampleCounts
    sizes: Mapping[str, ModelSize]
    views: ViewSize
    message: MessageSize | None
    held: PhaseMemory
    trains_on_seed_rows: bool = True
    shares_parameters: bool = False
    takes_theirs_one_by_one: bool = False
    pools_private_data: bool = False

    def held_rows_bytes(self) -> int:
        """Return the size of a round's seed rows, which exist until its end [bytes]."""
        return self._seed_samples * self.views.held_bytes

    def largest_bytes_R(self, links: Links, together_RA: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the size of every rank's largest phase, next to the round's seed rows, int64 (R,) [bytes].

        Parameters
        ----------
        together_RA : int64 (R, A)
            Number of participants of an architecture that step together; 0 if the rank hosts none.
        """
        degree_R = np.ceil(links.degree_max_R).astype(np.int64)
        if self.config.topology.changes_every is not None:
            # In a later graph, any participant may have the most neighbours.
            degree_R[:] = degree_R.max()
        phases_RA = np.maximum(self._training_RA(degree_R, together_RA), self._alone_RA(degree_R, together_RA))
        largest_R: NDArray[np.int64] = np.maximum(phases_RA.max(axis=1), self._drawing_bytes)
        return largest_R

    @property
    def _seed_samples(self) -> int:
        """Seed samples of a round, without views."""
        return self.counts.seed_rows_per_round // self.config.seed_set.views_per_sample

    @property
    def _drawing_bytes(self) -> int:
        """Memory to draw a round's rows, next to those that the round keeps.

        An evaluation with `evaluation.calibration` draws the rows of the next round while this round's exist.
        """
        drawn = self._seed_samples * self.views.drawn_bytes
        return drawn if self._calibrates else drawn - self.held_rows_bytes()

    @property
    def _calibrates(self) -> bool:
        return self.config.evaluation.calibration == "seed_set"

    def _training_RA(self, degree_R: NDArray[np.int64], together_RA: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest step of participants that step together, with their neighbours' arrays."""
        config, held = self.config, self.held
        combine = config.method.combine if isinstance(config.method, CombineOptions) else None
        # During a pass, there are also the gradients of the layers that the backward pass has left. In the update, the
        # activations are gone.
        passing_R = np.full_like(degree_R, held.gradients + held.vectors)
        update_A = np.array([UPDATE_VECTORS[config.optimizer.for_model(name).name] for name in self.sizes])
        updating_RA = passing_R[:, None] + update_A
        private, seed = self._minibatches
        trainable_A = np.array([size.trainable_bytes for size in self.sizes.values()])
        training_A = np.array([size.training_bytes(self._trained(private, seed)) for size in self.sizes.values()])
        distils = self.message is not None and not self.shares_parameters
        distilled_R = distils * 4 * DISTILLATION_ARRAYS * degree_R * seed * self.counts.classes
        # Participants that step together need one vector more, in which their gradients are joined.
        joined_RA = (together_RA > 1) * trainable_A
        passing_RA = passing_R[:, None] * trainable_A + training_A + joined_RA + distilled_R[:, None]
        if combine == "gem_neighbours":
            passing_RA = self._passing_each_RA(degree_R, trainable_A, seed) + distilled_R[:, None]
        steps_RA = np.maximum(passing_RA, updating_RA * trainable_A + joined_RA)
        drawing = private * (self.views.minibatch_bytes - self.views.ahead_bytes)
        theirs_R = np.zeros_like(degree_R) if held.averaging else self._theirs_R(degree_R)
        chosen_R = (held.choosing * theirs_R).astype(np.int64)
        largest_RA: NDArray[np.int64] = together_RA * (
            np.maximum(np.maximum(steps_RA, drawing), chosen_R[:, None])
            + theirs_R[:, None]
            + self._ahead_bytes(private)
        )
        return largest_RA

    def _passing_each_RA(
        self, degree_R: NDArray[np.int64], trainable_A: NDArray[np.int64], seed: int
    ) -> NDArray[np.int64]:
        """Return the largest sum with a gradient per neighbour, one for the seed labels and one for the private data.

        All terms need the seed minibatch's activations, so a backward pass frees none of them: at first it needs two
        more of the size of the largest. After the last one, there is a stacked copy of all gradients. Measured.
        """
        kept_A = np.array([seed * size.kept_bytes for size in self.sizes.values()])
        largest_A = np.array([seed * size.largest_bytes for size in self.sizes.values()])
        passing_RA = (degree_R[:, None] + 3) * trainable_A + 2 * largest_A
        stacked_RA = (2 * (degree_R[:, None] + 2) + 3) * trainable_A
        larger_RA: NDArray[np.int64] = np.maximum(passing_RA, stacked_RA) + kept_A
        return larger_RA

    def _alone_RA(self, degree_R: NDArray[np.int64], together_RA: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest phase that participants take one after another: they average, publish, are evaluated."""
        inference_A = np.array([self._evaluating(size) for size in self.sizes.values()])
        averaging_R = np.zeros_like(degree_R)
        if self.message is not None and self.held.averaging:
            averaging_R = self.held.averaging * self.message.held_bytes + self._theirs_R(degree_R)
        largest_RA: NDArray[np.int64] = (together_RA > 0) * np.maximum(inference_A, averaging_R[:, None])
        return largest_RA

    def _theirs_R(self, degree_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the size of the neighbours' arrays that are on the device at once."""
        if self.message is None:
            return np.zeros_like(degree_R)
        arrays_R = np.minimum(degree_R, 1) if self.takes_theirs_one_by_one else degree_R
        theirs_R: NDArray[np.int64] = arrays_R * self.message.held_bytes
        return theirs_R

    def _ahead_bytes(self, private: int) -> int:
        """Return the size of rows and random numbers that a phase sends ahead: for all its steps, as far as allowed."""
        method = self.config.method
        minibatch = private * self.views.ahead_bytes
        return max(minibatch, min((method.local_steps + method.mutual_steps) * minibatch, PHASE_BYTES))

    @property
    def _minibatches(self) -> tuple[int, int]:
        """Number of samples of the largest private and of a seed minibatch."""
        optimizer, private_P = self.config.optimizer, self.counts.private_P
        private = int(private_P.sum() if self.pools_private_data else private_P.max())
        return min(optimizer.batch_size, private), min(optimizer.seed_batch_size, self.counts.seed_rows_per_round)

    def _trained(self, private: int, seed: int) -> int:
        """Return the number of samples of the largest forward and backward pass."""
        method = self.config.method
        if not (self.trains_on_seed_rows or isinstance(method, OwnMethodOptions)):
            return private
        joins = isinstance(method, LocalLabelOptions) and method.joins_minibatches
        return private + seed if joins else max(private, seed)

    def _evaluating(self, size: ModelSize) -> int:
        """Return the largest sum while a participant publishes, is calibrated and is evaluated."""
        classes, rows = self.counts.classes, self.counts.seed_rows_per_round
        largest = max([*self.counts.tests, int(np.max(self.counts.held_out_P, initial=0))])
        scored = SCORED_BYTES + (METRICS_BYTES if self.config.evaluation.metrics else 0)
        evaluated = max(
            self._forward(size, largest),
            largest * max(scored * classes, 8 * classes + BINNED_BYTES) + 2 * 8 * classes**2,
        )
        if self._calibrates:
            fitted = max(self._forward(size, rows), rows * FITTED_BYTES * classes)
            evaluated = self.held_rows_bytes() + max(evaluated, fitted)
        if self.message is None:
            return evaluated
        # Logits, scaled logits and posteriors; or a copy of the parameters.
        published = self.message.held_bytes if self.shares_parameters else rows * 3 * 4 * classes
        forward = 0 if self.shares_parameters else self._forward(size, rows)
        return max(evaluated, published, forward)

    def _forward(self, size: ModelSize, samples: int) -> int:
        """Return the largest sum in a forward pass of samples in pieces: activations, and the logits of all."""
        piece = min(samples, self.config.evaluation.batch_size)
        return size.inference_bytes(piece) + 4 * samples * self.counts.classes
