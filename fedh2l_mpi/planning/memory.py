"""Bytes of memory on every rank.

Shape letters: P participants, R ranks, A architectures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config, OptimizerConfig
from fedh2l_mpi.config.method import CombineOptions
from fedh2l_mpi.metrics import row_width
from fedh2l_mpi.planning.traffic import Links, MessageSize, first_participants
from fedh2l_mpi.runtime.hosting import Hosting

# Vectors as long as the trainable parameters that live at once in a step: two gradients, their combination or the parts
# of one before they are joined, and what the optimiser computes on the way. Measured with every method. A cohort has
# that of all its members; before its first step it needs less, when their vectors move into its matrices.
STEP_VECTORS = 4
# A float32 tensor as large as the largest one of a forward pass, this many times over: what a layer reads, writes and
# computes on the way, in a forward pass that keeps nothing, and in a backward pass beside what was kept.
FORWARD_TENSORS = 4
BACKWARD_TENSORS = 2
# Where unchanged rows are skipped: so many float32 arrays are there while one participant's is compared with what its
# neighbours hold. Two are the difference in float64, one the rows that are sent, the others the codec's. Measured.
CHANGES_ARRAYS = {"float32": 3, "float16": 4, "bfloat16": 6, "uint8": 6, "top_k": 8}
# What every rank remembers about all participants: their shares as Python objects, their neighbours, their line in the
# metrics file; about every sample, its row and its domain; about every edge. Measured at 1,000 to 10,000 participants.
PARTICIPANT_BYTES, SAMPLE_BYTES, EDGE_BYTES = 1_850, 16, 85


@dataclass(frozen=True)
class ModelSize:
    """One copy of an architecture.

    Attributes
    ----------
    parameters : int
        Trainable and frozen ones.
    trainable_bytes, state_bytes : int
        Of the trainable parameters; of all parameters and buffers.
    shared_bytes : int
        What one copy is on the wire: parameters and floating-point buffers.
    kept_bytes : int
        What a forward pass in training keeps of one sample for the backward pass.
    largest_bytes : int
        The largest tensor of one sample in a forward pass.
    tensors : int
        Entries of its state dict.
    stacks : bool
        Whether like participants with it may step together.
    """

    parameters: int
    trainable_bytes: int
    state_bytes: int
    shared_bytes: int
    kept_bytes: int
    largest_bytes: int
    tensors: int = 0
    stacks: bool = False

    def training_bytes(self, samples: int, passes: int = 1) -> int:
        """Activations of a forward and a backward pass of a minibatch; `passes` forward passes are kept at a time."""
        return samples * (passes * self.kept_bytes + BACKWARD_TENSORS * self.largest_bytes)

    def inference_bytes(self, samples: int) -> int:
        """Activations of a forward pass without gradients."""
        return samples * FORWARD_TENSORS * self.largest_bytes


@dataclass(frozen=True)
class SampleCounts:
    """Samples: how many everyone holds, and how large one is.

    Attributes
    ----------
    private_P, validation_P : int64 (P,)
    seed, seed_per_round : int
        The seed set, and the part of it that a round uses.
    tests : sequence of int
        Test samples in each domain.
    stored_bytes, input_bytes : int
        An image and its label as they are held, and an image as a model sees it.
    """

    private_P: NDArray[np.int64]
    validation_P: NDArray[np.int64]
    seed: int
    seed_per_round: int
    tests: Sequence[int]
    classes: int
    stored_bytes: int
    input_bytes: int

    @property
    def domains(self) -> int:
        return len(self.tests)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of every rank, int64 (R,) each; the base of Python and PyTorch comes on top.

    Attributes
    ----------
    data, models, optimisers, step : int64 (R,)
        On the device: samples held; parameters and buffers, and what a method keeps; the optimisers' state; gradients
        and activations of the largest step of one participant or cohort, with those of its neighbours' arrays that a
        method moves there at a time.
    messages, records, checkpoint, bookkeeping : int64 (R,)
        In host memory: arrays that are published, sent and received, and one learner's view of them, unless it is
        counted in `step`; metrics rows on their way to the file; a checkpoint's copy of the state and its file's
        content, while it is written; what every rank remembers of all participants.
    """

    data: NDArray[np.int64]
    models: NDArray[np.int64]
    optimisers: NDArray[np.int64]
    step: NDArray[np.int64]
    messages: NDArray[np.int64]
    records: NDArray[np.int64]
    checkpoint: NDArray[np.int64]
    bookkeeping: NDArray[np.int64]

    @property
    def on_device(self) -> NDArray[np.int64]:
        """What has to fit on the device, where that is not the host."""
        return self.data + self.models + self.optimisers + self.step

    @property
    def total(self) -> NDArray[np.int64]:
        """All of it."""
        return self.on_device + self.messages + self.records + self.checkpoint + self.bookkeeping

    def parts(self, rank: int) -> dict[str, int]:
        """Each kind's bytes on one rank."""
        return {field.name: int(getattr(self, field.name)[rank]) for field in fields(self)}


def optimiser_vectors(config: OptimizerConfig) -> int:
    """Vectors as long as the parameters that an optimiser keeps: Adam two moments, SGD at most a velocity."""
    return 2 if config.name == "adam" else int(config.momentum > 0)


def rank_memory(
    config: Config,
    hosting: Hosting,
    counts: SampleCounts,
    sizes: Mapping[str, ModelSize],
    links: Links,
    message: MessageSize | None,
    pooled: bool = False,
    keeps_published: bool = False,
    members: int = 1,
    takes_theirs_one_by_one: bool = False,
    on_host: bool = False,
) -> RankMemory:
    """What every rank of a run needs.

    Parameters
    ----------
    sizes : mapping
        From every architecture of the config to its size.
    message : MessageSize or None
        None: nothing is exchanged.
    pooled : bool
        Whether everyone trains on everybody's private data, which then lie on each rank once.
    keeps_published : bool
        Whether everyone keeps a copy of the array that it published.
    members : int
        How many participants step together at most, where their models allow it.
    takes_theirs_one_by_one : bool
        Whether a learner has one of its neighbours' arrays on the device at a time, and not all.
    on_host : bool
        Whether the device is the host: what a learner views there and what it has on the device is one then.
    """
    first_R = first_participants(hosting)
    architectures = list(sizes)
    of_P = np.array([architectures.index(config.architecture(index)) for index in range(hosting.participants)])

    def summed(values_P: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.add.reduceat(values_P, first_R).astype(np.int64)

    def by_architecture(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)[of_P]

    own_P = counts.validation_P + (0 if pooled else counts.private_P)
    everyones = counts.seed + sum(counts.tests) + (int(counts.private_P.sum()) if pooled else 0)
    data_R = counts.stored_bytes * (summed(own_P) + everyones) + _round_bytes(config, counts)
    trainable = [size.trainable_bytes for size in sizes.values()]
    published = message.held_bytes if message is not None and keeps_published else 0
    copies = [size.state_bytes + published for size in sizes.values()]
    hosted_R = summed(np.ones(hosting.participants, dtype=np.int64))
    hosted_RA = np.stack([summed(of_P == number) for number in range(len(sizes))], axis=1)
    # Minibatches of unlike sizes, too, keep participants apart: then this is more than they need.
    together_RA = np.minimum(hosted_RA, [members if size.stacks else 1 for size in sizes.values()])
    records_R = 2 * 8 * row_width(counts.domains) * hosted_R
    # Rank 0 holds everyone's rows, of two rounds while others run ahead.
    records_R[0] = 2 * 8 * row_width(counts.domains) * hosting.participants
    samples = int(counts.private_P.sum() + counts.validation_P.sum()) + counts.seed + sum(counts.tests)
    bookkeeping = PARTICIPANT_BYTES * hosting.participants + SAMPLE_BYTES * samples + int(EDGE_BYTES * links.edges)
    models_R = summed(by_architecture(copies))
    optimisers_R = optimiser_vectors(config.optimizer) * summed(by_architecture(trainable))
    # What neighbours hold, counted among the messages, is a part of the state where unchanged rows are skipped.
    held = 0 if message is None or config.exchange.skip_below is None else message.held_bytes
    together_R = together_RA.max(axis=1)
    views_R = np.where(together_R > 1, 2 * together_R, 1)
    if on_host and not takes_theirs_one_by_one:
        views_R -= together_R
    messages_R = _message_bytes(links, message, hosted_R, views_R)
    if held:
        messages_R += CHANGES_ARRAYS[config.exchange.codec] * held
    return RankMemory(
        data=data_R,
        models=models_R,
        optimisers=optimisers_R,
        step=_step_bytes(config, sizes, links, message, together_RA, takes_theirs_one_by_one),
        messages=messages_R,
        records=records_R,
        checkpoint=2 * (models_R + optimisers_R + held * hosted_R),
        bookkeeping=np.full(hosting.ranks, bookkeeping),
    )


def _message_bytes(
    links: Links, message: MessageSize | None, hosted_R: NDArray[np.int64], views_R: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Buffers of what is sent and received, what is published, and one learner's view of its neighbours' arrays.

    Parameters
    ----------
    views_R : int64 (R,)
        How many participants' views there are at once: that of a cohort is put together from its members'.
    """
    if message is None:
        return np.zeros_like(hosted_R)
    sent_R, held_R = links.sent_R + links.received_R, hosted_R + views_R * links.degree_max_R
    if message.is_coded:
        # What is published is encoded for all who get it, and decoded for those hosted here; what is received, too. Or,
        # where unchanged rows are skipped, held.
        sent_R, held_R = sent_R + hosted_R, held_R + hosted_R + links.received_R
    total_R = sent_R * message.array_bytes + held_R * message.held_bytes + 2 * links.messages_R * message.fixed_bytes
    return np.ceil(total_R).astype(np.int64)


def _round_bytes(config: Config, counts: SampleCounts) -> int:
    """The round's seed samples as everyone sees them; while views are drawn, twice more."""
    return counts.seed_per_round * counts.input_bytes * (1 if config.seed_set.views == "none" else 3)


def _step_bytes(
    config: Config,
    sizes: Mapping[str, ModelSize],
    links: Links,
    message: MessageSize | None,
    together_RA: NDArray[np.int64],
    takes_theirs_one_by_one: bool,
) -> NDArray[np.int64]:
    """Gradients and activations of every rank's largest step, with what the neighbours sent of it at a time.

    Parameters
    ----------
    together_RA : int64 (R, A)
        How many of an architecture step together; 0 where a rank hosts none.
    """
    degree_R = np.ceil(links.degree_max_R).astype(np.int64)
    if config.topology.redraw_every is not None:
        # Whoever has the most neighbours now, in a later graph it may be anybody.
        degree_R[:] = degree_R.max()
    vectors_R, passes = np.full_like(degree_R, STEP_VECTORS), 1
    if isinstance(config.method, CombineOptions) and config.method.combine == "gem_neighbours":
        # A gradient for every neighbour, for the seed labels and for the private data; all of them stacked besides. The
        # seed minibatch's forward pass, kept for all of these, lives on until the next one's.
        vectors_R, passes = 2 * (degree_R + 2) + 3, 2
    arrays_R = np.minimum(degree_R, 1) if takes_theirs_one_by_one else degree_R
    theirs_R = arrays_R * (message.held_bytes if message is not None else 0)
    trained = max(config.optimizer.batch_size, config.optimizer.seed_batch_size)
    trainable_A = np.array([size.trainable_bytes for size in sizes.values()])
    each_RA = vectors_R[:, None] * trainable_A + theirs_R[:, None]
    training_A = np.array([size.training_bytes(trained, passes) for size in sizes.values()])
    # Whoever steps together is evaluated one by one.
    inference_A = np.array([size.inference_bytes(config.evaluation.batch_size) for size in sizes.values()])
    activations_RA = np.maximum(together_RA * training_A, (together_RA > 0) * inference_A)
    largest_R: NDArray[np.int64] = (together_RA * each_RA + activations_RA).max(axis=1)
    return largest_R
