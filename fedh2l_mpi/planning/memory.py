"""Compute the memory that every rank needs.

Shape letters: P participants, R ranks, A architectures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config, OptimizerConfig
from fedh2l_mpi.config.method import CombineOptions, LocalLabelOptions
from fedh2l_mpi.metrics import NO_COLUMNS, Columns, row_width
from fedh2l_mpi.planning.traffic import Links, MessageSize, first_participants
from fedh2l_mpi.runtime.hosting import Hosting

# Number of temporary vectors of the trainable parameters' length in an update: Adam's two, or the parts of a gradient
# before they are joined. Measured with every method. Participants that step together need them once per member; moving
# their vectors into shared matrices at first needs no more than their steps.
UPDATE_VECTORS = {"adam": 2, "adamw": 2, "sgd": 1}
# Number of float32 arrays that exist while one participant's array is compared with its neighbours' copy, to skip
# unchanged rows. The difference in float64 counts as two, the sent rows are one, the others are the codec's. Measured.
CHANGES_ARRAYS = {"float32": 3, "float16": 4, "bfloat16": 6, "uint8": 6, "top_k": 8}
# Memory on every rank per participant of the run (its share as Python objects, its neighbours, its line in the metrics
# file), per sample (its row and domain) and per edge. Measured with 1,000 to 10,000 participants.
PARTICIPANT_BYTES, SAMPLE_BYTES, EDGE_BYTES = 1_850, 16, 85


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


@dataclass(frozen=True)
class RankMemory:
    """Memory of every rank by kind [bytes]. Python and PyTorch themselves come in addition.

    Attributes
    ----------
    data, models, optimisers, step : int64 (R,)
        On the device: the stored samples; parameters, buffers, their averages and what a method keeps; the optimisers'
        state; and the largest step. A step needs gradients, activations, and the neighbours' arrays that are on the
        device at once.
    messages, records, checkpoint, bookkeeping : int64 (R,)
        In host memory: published, sent and received arrays, and a view of them unless `step` includes it; metrics rows
        in transit to the file; a checkpoint's copy of the state and its file content while it is written; and
        information about all participants that every rank stores.
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
        """Memory that must fit on the device if that is a GPU [bytes]."""
        return self.data + self.models + self.optimisers + self.step

    @property
    def total(self) -> NDArray[np.int64]:
        """Sum of all kinds [bytes]."""
        return self.on_device + self.messages + self.records + self.checkpoint + self.bookkeeping

    def parts(self, rank: int) -> dict[str, int]:
        """Return the bytes of each kind on one rank."""
        return {field.name: int(getattr(self, field.name)[rank]) for field in fields(self)}


def optimiser_vectors(config: OptimizerConfig) -> int:
    """Return how many vectors of the parameters' length an optimiser keeps: two for Adam, at most one for SGD."""
    return int(config.momentum > 0) if config.name == "sgd" else 2


def average_bytes(config: OptimizerConfig, size: ModelSize) -> int:
    """Return the size of a participant's averaged weights [bytes]."""
    return 0 if config.average == "none" else size.shared_bytes


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
    drops_published: bool = False,
    columns: Columns = NO_COLUMNS,
) -> RankMemory:
    """Compute the memory of every rank of a run.

    Parameters
    ----------
    sizes : mapping
        From every architecture of the config to its size.
    message : MessageSize or None
        None: nothing is exchanged.
    pooled : bool
        True if all participants train on all private data, of which each rank then stores one copy.
    keeps_published : bool
        True if every participant keeps a copy of its published array.
    members : int
        Largest number of participants that step together, if their models allow it.
    takes_theirs_one_by_one : bool
        True if a method moves the neighbours' arrays to the device one at a time.
    on_host : bool
        True if the device is the host. Then the arrays in host memory and those on the device are the same.
    drops_published : bool
        True if the kept copy of the published array is dropped before the round ends, so that no checkpoint has it.
    columns : Columns
        The run's own arrays by round.
    """
    first_R = first_participants(hosting)
    architectures = list(sizes)
    of_P = np.array([architectures.index(config.architecture(index)) for index in range(hosting.participants)])

    def summed(values_P: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.add.reduceat(values_P, first_R).astype(np.int64)

    def by_architecture(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)[of_P]

    own_P = counts.held_out_P + (0 if pooled else counts.private_P)
    everyones = counts.seed + sum(counts.tests) + (int(counts.private_P.sum()) if pooled else 0)
    data_R = counts.stored_bytes * (summed(own_P) + everyones) + _round_bytes(config, counts)
    published = message.held_bytes if message is not None and keeps_published else 0
    copies = [size.state_bytes + average_bytes(config.optimizer, size) + published for size in sizes.values()]
    hosted_R = summed(np.ones(hosting.participants, dtype=np.int64))
    hosted_RA = np.stack([summed(of_P == number) for number in range(len(sizes))], axis=1)
    # Participants with minibatches of different sizes do not step together either; then this is an upper bound.
    together_RA = np.minimum(hosted_RA, [members if size.stacks or not on_host else 1 for size in sizes.values()])
    records_R = 2 * 8 * row_width(counts.domains, columns) * hosted_R
    # Rank 0 stores the rows of all participants, of two rounds because other ranks may be a round ahead.
    records_R[0] = 2 * 8 * row_width(counts.domains, columns) * hosting.participants
    samples = int(counts.private_P.sum() + counts.held_out_P.sum()) + counts.seed + sum(counts.tests)
    bookkeeping = PARTICIPANT_BYTES * hosting.participants + SAMPLE_BYTES * samples + int(EDGE_BYTES * links.edges)
    models_R = summed(by_architecture(copies))
    optimisers_R = summed(
        by_architecture(
            [optimiser_vectors(config.optimizer.for_model(name)) * size.trainable_bytes for name, size in sizes.items()]
        )
    )
    # If unchanged rows are skipped, the neighbours' copies (counted as messages) are part of the checkpointed state.
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
        checkpoint=2 * (models_R + optimisers_R + (held - drops_published * published) * hosted_R),
        bookkeeping=np.full(hosting.ranks, bookkeeping),
    )


def _message_bytes(
    links: Links, message: MessageSize | None, hosted_R: NDArray[np.int64], views_R: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the size of the send and receive buffers, of published arrays, and of views of neighbours' arrays.

    Parameters
    ----------
    views_R : int64 (R,)
        Number of participants' views that exist at once. Participants that step together combine their views.
    """
    if message is None:
        return np.zeros_like(hosted_R)
    sent_R, held_R = links.sent_R + links.received_R, hosted_R + views_R * links.degree_max_R
    if message.is_coded:
        # A published array also exists encoded, for sending, and decoded, for neighbours on this rank. Received arrays
        # are decoded, too, or stored if unchanged rows are skipped.
        sent_R, held_R = sent_R + hosted_R, held_R + hosted_R + links.received_R
    total_R = sent_R * message.array_bytes + held_R * message.held_bytes + 2 * links.messages_R * message.fixed_bytes
    return np.ceil(total_R).astype(np.int64)


def _round_bytes(config: Config, counts: SampleCounts) -> int:
    """Return the size of a round's seed rows [bytes]. Drawing augmented views needs two more copies.

    An evaluation with `evaluation.calibration` draws the next round's rows as well, and has four arrays of their logits
    in float64.
    """
    drawn = counts.input_bytes * (1 if config.seed_set.views == "none" else 3)
    if config.evaluation.calibration == "seed_set":
        drawn += counts.input_bytes + 4 * 8 * counts.classes
    return counts.seed_rows_per_round * drawn


def _step_bytes(
    config: Config,
    sizes: Mapping[str, ModelSize],
    links: Links,
    message: MessageSize | None,
    together_RA: NDArray[np.int64],
    takes_theirs_one_by_one: bool,
) -> NDArray[np.int64]:
    """Return the size of gradients, activations and neighbours' arrays in every rank's largest step [bytes].

    Parameters
    ----------
    together_RA : int64 (R, A)
        Number of participants of an architecture that step together; 0 if the rank hosts none.
    """
    degree_R = np.ceil(links.degree_max_R).astype(np.int64)
    if config.topology.changes_every is not None:
        # In a later graph, any participant may have the most neighbours.
        degree_R[:] = degree_R.max()
    combine = config.method.combine if isinstance(config.method, CombineOptions) else None
    # A joint step makes one gradient; any other method may hold the private one while it makes the seed gradient.
    gradients = 1 if combine == "joint" else 2
    # During a pass, there are also the gradients of the layers that the backward pass has left. In the update, the
    # activations are gone.
    passing_R = np.full_like(degree_R, gradients)
    update_A = np.array([UPDATE_VECTORS[config.optimizer.for_model(name).name] for name in sizes])
    updating_RA = passing_R[:, None] + update_A
    if combine == "gem_neighbours":
        # There is one gradient per neighbour, one for the seed labels and one for the private data, and a stacked copy
        # of all, while the seed minibatch's activations are kept.
        passing_R = 2 * (degree_R + 2) + 3
    arrays_R = np.minimum(degree_R, 1) if takes_theirs_one_by_one else degree_R
    theirs_R = arrays_R * (message.held_bytes if message is not None else 0)
    minibatches = (config.optimizer.batch_size, config.optimizer.seed_batch_size)
    joins = isinstance(config.method, LocalLabelOptions) and config.method.joins_minibatches
    trained = sum(minibatches) if joins else max(minibatches)
    trainable_A = np.array([size.trainable_bytes for size in sizes.values()])
    training_A = np.array([size.training_bytes(trained) for size in sizes.values()])
    # Participants that step together need one vector more, in which their gradients are joined.
    joined_RA = (together_RA > 1) * trainable_A
    passing_RA = passing_R[:, None] * trainable_A + training_A + joined_RA
    trains_RA = together_RA * np.maximum(passing_RA, updating_RA * trainable_A + joined_RA)
    # Participants that step together are evaluated one after another.
    inference_A = np.array([size.inference_bytes(config.evaluation.batch_size) for size in sizes.values()])
    tests_RA = (together_RA > 0) * inference_A
    largest_R: NDArray[np.int64] = (np.maximum(trains_RA, tests_RA) + together_RA * theirs_R[:, None]).max(axis=1)
    return largest_R
