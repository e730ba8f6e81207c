"""Measure the memory of a round's seed rows: what their views need while they are drawn, and what the round keeps."""

from dataclasses import dataclass

import numpy as np

from fedh2l_mpi.config import SeedSetConfig
from fedh2l_mpi.data.augmentation import Augmentation
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.planning.allocations import Allocations


@dataclass(frozen=True)
class ViewSize:
    """Memory of a seed sample in all of its views, and of a sample of a private minibatch.

    Attributes
    ----------
    held_bytes : int
        What a round keeps of a seed sample until its end: inputs, labels and targets of its views. 0 if they are a
        part of the seed set.
    drawn_bytes : int
        Largest sum while the round's rows are drawn, including what it keeps.
    minibatch_bytes : int
        Largest sum while a private minibatch is drawn.
    ahead_bytes : int
        Part of it that is sent to the device for several minibatches at once: row and random numbers of each sample.
    """

    held_bytes: int
    drawn_bytes: int
    minibatch_bytes: int
    ahead_bytes: int = 0


def measure_views(
    config: SeedSetConfig, augment: Augmentation | None, few: Labelled, more: Labelled, classes: int, is_subset: bool
) -> ViewSize:
    """Measure the memory of each sample, in two draws of small rounds on the CPU.

    It is the difference of the two, because some memory does not grow with the number of samples.

    Parameters
    ----------
    few, more : Labelled
        Samples of the run's kind; the second has more.
    is_subset : bool
        True if a round uses a subset of the seed set. The whole set is not copied, unless it has views.
    """
    (held_few, drawn_few), (held_more, drawn_more) = (
        _round_bytes(config, samples, classes, is_subset) for samples in (few, more)
    )
    added = len(more) - len(few)
    minibatch = _minibatch_bytes(augment, more) - _minibatch_bytes(augment, few)
    draws = augment.draw(more.stored.shape, np.random.default_rng(0)) if augment is not None else []
    ahead = more.labels.itemsize + sum(values.nbytes for values in draws) // len(more)
    return ViewSize((held_more - held_few) // added, (drawn_more - drawn_few) // added, minibatch // added, ahead)


def _outside(samples: Labelled) -> Allocations:
    """Return a context that counts tensors except those of the samples."""
    scales = vars(samples.normalisation).values() if samples.normalisation is not None else ()
    return Allocations([samples.stored, samples.labels, *scales])


def _round_bytes(config: SeedSetConfig, samples: Labelled, classes: int, is_subset: bool) -> tuple[int, int]:
    """Return what a round of all but one of the samples keeps, or of all, and the largest sum while it is drawn."""
    seed_set = SeedSet(samples, len(samples) - is_subset, classes, config, 0)
    with _outside(samples) as allocations:
        drawn = seed_set.of_round(0)
        # Views of a round that are gone by now are not counted any more.
        held = allocations.live_bytes
    del drawn
    return held, allocations.peak_bytes


def _minibatch_bytes(augment: Augmentation | None, samples: Labelled) -> int:
    """Return the largest sum while a minibatch of all samples is drawn."""
    rows = samples.labels.new_tensor(range(len(samples)))
    with _outside(samples) as allocations:
        inputs = samples.inputs(rows)
        if augment is not None:
            augment(inputs, np.random.default_rng(0))
    return allocations.peak_bytes
