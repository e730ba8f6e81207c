"""Overhead of a round on a rank, outside the training steps: Python, checksums, copies and the metrics file.

The constants are CPU seconds of one core (of an AMD EPYC, with Python 3.11 and MPICH). They were fitted by least
squares to real runs with 4 to 1,000 participants on 1 to 8 ranks. `python -m benchmarks.scaling MNIST_FOLDER` prints
the constants and their errors; benchmarks/results/scaling.csv has those runs.

Shape letters: R ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.planning.traffic import Links, MessageSize, block_sizes, first_participants
from fedh2l_mpi.runtime.hosting import Hosting

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Loads:
    """Work of every rank in a round, as counts.

    Attributes
    ----------
    participants : float64 (R,)
        Number of hosted participants.
    rows_bytes : float64 (R,)
        Size of the written rows: all rows on rank 0, and 0 on other ranks.
    notes : float64 (R,)
        Number of scalars that the hosted participants record. Their rows contain the means.
    neighbours : float64 (R,)
        Sum of the hosted participants' numbers of neighbours.
    messages : float64 (R,)
        Number of messages sent to other ranks, equal to the number received.
    sent_bytes, received_bytes : float64 (R,)
        Size of these messages.
    published_bytes, stacked_bytes : float64 (R,)
        Size of the published arrays, and of those passed to the mutual phases (one per neighbour).
    """

    participants: Counts
    rows_bytes: Counts
    notes: Counts
    neighbours: Counts
    messages: Counts
    sent_bytes: Counts
    received_bytes: Counts
    published_bytes: Counts
    stacked_bytes: Counts

    @property
    def counts(self) -> Mapping[str, Counts]:
        """All counts by name, with `round` (1 on every rank) and `file` (1 on rank 0 only)."""
        once, file = np.ones_like(self.participants), np.minimum(self.rows_bytes, 1.0)
        return {**vars(self), "round": once, "file": file}


# The parts of a round, each a sum of constants times counts. Only rank 0 has the part `write`.
TERMS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "post": {
            "publish_s": "participants",
            "publish_byte_s": "published_bytes",
            "send_s": "messages",
            "send_byte_s": "sent_bytes",
        },
        "finish": {
            "finish_s": "participants",
            "receive_s": "messages",
            "receive_byte_s": "received_bytes",
        },
        "stack": {"stack_s": "participants", "stack_one_s": "neighbours", "stack_byte_s": "stacked_bytes"},
        "rest": {"round_s": "round", "participant_s": "participants", "note_s": "notes"},
        "write": {"write_s": "file", "write_row_byte_s": "rows_bytes"},
    }
)
EXCHANGE = ("post", "finish", "stack")


@dataclass(frozen=True)
class OverheadConstants:
    """Seconds of a core for each participant, message, neighbour or byte; `TERMS` defines their use.

    Attributes
    ----------
    publish_s, publish_byte_s : float
        Check of a participant's own array.
    send_s, send_byte_s, receive_s, receive_byte_s : float
        Message: packing and checksum when sending; checksum and checks of the content when receiving.
    finish_s : float
        Storing a participant's array and its byte counts.
    stack_s, stack_one_s, stack_byte_s : float
        Passing the neighbours' arrays to a participant: per participant, per neighbour and per byte.
    round_s, participant_s, note_s : float
        The loop and the agreement of the ranks; a participant's row and timers; each recorded scalar.
    write_s, write_row_byte_s : float
        Rank 0: writing a round to the metrics file, and each byte of its rows.
    """

    publish_s: float
    publish_byte_s: float
    send_s: float
    send_byte_s: float
    finish_s: float
    receive_s: float
    receive_byte_s: float
    stack_s: float
    stack_one_s: float
    stack_byte_s: float
    round_s: float
    participant_s: float
    note_s: float
    write_s: float
    write_row_byte_s: float

    def seconds(self, loads: Loads) -> dict[str, Counts]:
        """Return the time of each part of a round on every rank, (R,) each [s]."""
        counts = loads.counts
        return {
            part: np.sum([getattr(self, constant) * counts[of] for constant, of in terms.items()], axis=0)
            for part, terms in TERMS.items()
        }


def count_loads(graph: Links, hosting: Hosting, message: MessageSize | None, notes: float, row_bytes: int) -> Loads:
    """Count the work of every rank in a round.

    Parameters
    ----------
    message : MessageSize or None
        None: nothing is exchanged.
    notes : float
        Number of scalars that a participant records in a round.
    row_bytes : int
        Size of a participant's metrics row.
    """
    hosted_R, none_R = block_sizes(hosting).astype(float), np.zeros(hosting.ranks)
    rows_R = none_R.copy()
    rows_R[0] = hosting.participants * row_bytes
    if message is None:
        return Loads(hosted_R, rows_R, notes * hosted_R, none_R, none_R, none_R, none_R, none_R, none_R)
    neighbours_R = np.add.reduceat(graph.degree_P, first_participants(hosting))
    fixed_R, each = graph.messages_R * message.fixed_bytes, message.array_bytes
    return Loads(
        participants=hosted_R,
        rows_bytes=rows_R,
        notes=notes * hosted_R,
        neighbours=neighbours_R,
        messages=graph.messages_R,
        sent_bytes=fixed_R + graph.sent_R * each,
        received_bytes=fixed_R + graph.received_R * each,
        published_bytes=hosted_R * each,
        stacked_bytes=neighbours_R * each,
    )


FITTED = OverheadConstants(
    publish_s=1.62e-05,
    publish_byte_s=0.0,
    send_s=2.97e-05,
    send_byte_s=1.43e-10,
    finish_s=2.07e-06,
    receive_s=8.69e-05,
    receive_byte_s=2.53e-10,
    stack_s=6.32e-06,
    stack_one_s=2.16e-06,
    stack_byte_s=0.0,
    round_s=0.00046,
    participant_s=2.31e-05,
    note_s=2.04e-06,
    write_s=0.00109,
    write_row_byte_s=1.48e-09,
)
# Relative errors of the CPU seconds of a round of the busiest rank, steps included, for runs left out of the fit:
# median and maximum with one core per rank, and maximum if several ranks shared a core and its caches.
OFF_MEDIAN, OFF_MOST, OFF_SHARED = 0.03, 0.17, 0.20
