"""Compute the memory that every rank needs.

Shape letters: P participants, R ranks, A architectures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.config import Config, OptimizerConfig
from fedh2l_mpi.metrics import NO_COLUMNS, Columns, row_width
from fedh2l_mpi.planning.sizes import ModelSize
from fedh2l_mpi.planning.step_memory import PhaseInputs
from fedh2l_mpi.planning.traffic import Links, MessageSize, first_participants
from fedh2l_mpi.runtime.hosting import Hosting

# Number of float32 arrays that exist while one participant's array is compared with its neighbours' copy, to skip
# unchanged rows. The difference in float64 counts as two, the sent rows are one, the others are the codec's. Measured.
CHANGES_ARRAYS = {"float32": 3, "float16": 4, "bfloat16": 6, "uint8": 6, "top_k": 8}
# Memory on every rank per participant of the run (its share as Python objects, its neighbours, its line in the metrics
# file), per sample (its row and domain) and per edge. Measured with 1,000 to 10,000 participants.
PARTICIPANT_BYTES, SAMPLE_BYTES, EDGE_BYTES = 1_850, 16, 85


@dataclass(frozen=True)
class RankMemory:
    """Memory of every rank by kind [bytes]. Python and PyTorch themselves come in addition.

    Attributes
    ----------
    data, models, optimisers, seed_rows, step : int64 (R,)
        On the device: the stored samples; parameters, buffers, their averages and what a method keeps; the optimisers'
        state; a round's seed samples in their views; and the largest phase. It is a step, with gradients, activations
        and the neighbours' arrays that are on the device at once; or drawing the views, an evaluation or an average.
    messages, records, checkpoint, bookkeeping : int64 (R,)
        In host memory: published, sent and received arrays, and a view of them unless `step` includes it; metrics rows
        in transit to the file; a checkpoint's copy of the state and its file content while it is written; and
        information about all participants that every rank stores.
    """

    data: NDArray[np.int64]
    models: NDArray[np.int64]
    optimisers: NDArray[np.int64]
    seed_rows: NDArray[np.int64]
    step: NDArray[np.int64]
    messages: NDArray[np.int64]
    records: NDArray[np.int64]
    checkpoint: NDArray[np.int64]
    bookkeeping: NDArray[np.int64]

    @property
    def on_device(self) -> NDArray[np.int64]:
        """Memory that must fit on the device if that is a GPU [bytes]."""
        return self.data + self.models + self.optimisers + self.seed_rows + self.step

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
    phases: PhaseInputs,
    links: Links,
    keeps_published: bool = False,
    drops_published: bool = False,
    members: int = 1,
    on_host: bool = False,
    columns: Columns = NO_COLUMNS,
) -> RankMemory:
    """Compute the memory of every rank of a run.

    Parameters
    ----------
    phases : PhaseInputs
        Sizes of models, messages and samples, and what the method's phases hold.
    keeps_published : bool
        True if every participant keeps a copy of its published array.
    drops_published : bool
        True if the kept copy of the published array is dropped before the round ends, so that no checkpoint has it.
    members : int
        Largest number of participants that step together, if their models allow it.
    on_host : bool
        True if the device is the host. Then the arrays in host memory and those on the device are the same.
    columns : Columns
        The run's own arrays by round.
    """
    counts, sizes, message = phases.counts, phases.sizes, phases.message
    first_R = first_participants(hosting)
    architectures = list(sizes)
    of_P = np.array([architectures.index(config.architecture(index)) for index in range(hosting.participants)])

    def summed(values_P: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.add.reduceat(values_P, first_R).astype(np.int64)

    def by_architecture(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)[of_P]

    own_P = counts.held_out_P + (0 if phases.pools_private_data else counts.private_P)
    everyones = counts.seed + sum(counts.tests) + (int(counts.private_P.sum()) if phases.pools_private_data else 0)
    data_R = counts.stored_bytes * (summed(own_P) + everyones)
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
    if on_host and not phases.takes_theirs_one_by_one:
        views_R -= together_R
    messages_R = _message_bytes(links, message, hosted_R, views_R)
    if held:
        messages_R += CHANGES_ARRAYS[config.exchange.codec] * held
    return RankMemory(
        data=data_R,
        models=models_R,
        optimisers=optimisers_R,
        seed_rows=np.full(hosting.ranks, phases.held_rows_bytes()),
        step=phases.largest_bytes_R(links, together_RA),
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
