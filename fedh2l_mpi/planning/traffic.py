"""Compute the messages of a round: over the edges of the graph, and between the ranks.

Shape letters: P participants, R ranks, E edges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedh2l_mpi.runtime.hosting import Hosting

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class MessageSize:
    """Size of a message: with the arrays of n participants, it has `fixed_bytes + n * array_bytes` bytes.

    Attributes
    ----------
    held_bytes : int
        Size of an array in memory, before it is encoded or after it is decoded.
    is_coded : bool
        True if the array in a message differs from that in memory, so that both exist. It is encoded, or unchanged rows
        are left out; `array_bytes` counts all rows.
    """

    fixed_bytes: int
    array_bytes: int
    held_bytes: int
    is_coded: bool = False

    @property
    def edge_bytes(self) -> int:
        """Bytes per edge and direction: a message with one participant's array."""
        return self.fixed_bytes + self.array_bytes


@dataclass(frozen=True)
class Links:
    """Numbers of neighbours and messages in a round. They are whole numbers unless they are expected values.

    Attributes
    ----------
    degree_P : float64 (P,)
        Number of neighbours of each participant.
    messages_R : float64 (R,)
        Number of messages that each rank sends to other ranks, equal to the number it receives.
    sent_R, received_R : float64 (R,)
        Number of participants' arrays in the messages that each rank sends, and in those that it receives.
    degree_max_R : float64 (R,)
        Largest number of neighbours of a hosted participant.
    edges : float
        Number of edges of the graph.
    expected : bool
        True if the numbers are expected values of a random graph that was not drawn.
    """

    degree_P: Counts
    messages_R: Counts
    sent_R: Counts
    received_R: Counts
    degree_max_R: Counts
    edges: float
    expected: bool = False

    def edge_bytes(self, size: MessageSize) -> float:
        """Return the traffic over the edges of the graph in a round, counted like in the metrics file [bytes]."""
        return 2 * self.edges * size.edge_bytes

    def mpi_bytes_R(self, size: MessageSize) -> Counts:
        """Return the bytes that each rank sends by MPI in a round, (R,). Messages within a rank are not included."""
        return self.messages_R * size.fixed_bytes + self.sent_R * size.array_bytes


def block_sizes(hosting: Hosting) -> NDArray[np.int64]:
    """Return the number of participants on each rank, int64 (R,)."""
    base, extra = divmod(hosting.participants, hosting.ranks)
    return base + (np.arange(hosting.ranks) < extra)


def first_participants(hosting: Hosting) -> NDArray[np.int64]:
    """Return the first participant of each rank, int64 (R,)."""
    sizes = block_sizes(hosting)
    return np.cumsum(sizes) - sizes


def links(edges: ArrayLike, hosting: Hosting) -> Links:
    """Count the links of a graph, from its edges (E, 2), each given once."""
    edges_E2 = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    rank_P = np.repeat(np.arange(hosting.ranks), block_sizes(hosting))
    # Both directions of every edge: a sender, and the rank of its neighbour.
    sender = np.concatenate([edges_E2[:, 0], edges_E2[:, 1]])
    to_rank = rank_P[np.concatenate([edges_E2[:, 1], edges_E2[:, 0]])]
    crosses = rank_P[sender] != to_rank
    # A participant's array is sent once to each rank with neighbours, for any number of neighbours there.
    arrays = np.unique(sender[crosses] * hosting.ranks + to_rank[crosses])
    from_rank, at_rank = rank_P[arrays // hosting.ranks], arrays % hosting.ranks
    pairs = np.unique(from_rank * hosting.ranks + at_rank)
    degree_P = np.bincount(sender, minlength=hosting.participants).astype(np.float64)
    return Links(
        degree_P,
        messages_R=_per_rank(pairs // hosting.ranks, hosting),
        sent_R=_per_rank(from_rank, hosting),
        received_R=_per_rank(at_rank, hosting),
        degree_max_R=np.maximum.reduceat(degree_P, first_participants(hosting)),
        edges=float(len(edges_E2)),
    )


def expected_links(probability: float, hosting: Hosting, degree: int | None = None) -> Links:
    """Return the expected links if any two participants are neighbours with this probability, independently.

    Probability 1 gives the exact links of the complete graph.

    Parameters
    ----------
    degree : int, optional
        The known degree of every participant, such as in a regular graph, whose edges are nearly independent.
    """
    participants, sizes_R = hosting.participants, block_sizes(hosting).astype(np.float64)
    none = 1.0 - probability
    mean_degree = probability * (participants - 1) if degree is None else float(degree)
    # There are at most two sizes of blocks, so count the ranks of each size.
    kinds, counts = np.unique(sizes_R, return_counts=True)
    messages_R, sent_R = np.zeros(hosting.ranks), np.zeros(hosting.ranks)
    for size, count in zip(kinds, counts, strict=True):
        # Count the other ranks of this size, because a rank does not send to itself.
        others_R = count - (sizes_R == size)
        messages_R += others_R * (1.0 - none ** (sizes_R * size))
        sent_R += others_R * sizes_R * (1.0 - none**size)
    # A rank receives one array from every participant that has a neighbour on it.
    received_R = np.zeros(hosting.ranks)
    for size, count in zip(kinds, counts, strict=True):
        received_R += (count - (sizes_R == size)) * size * (1.0 - none**sizes_R)
    return Links(
        np.full(participants, mean_degree),
        messages_R,
        sent_R,
        received_R,
        degree_max_R=np.full(hosting.ranks, mean_degree),
        edges=mean_degree * participants / 2,
        expected=probability < 1.0,
    )


def _per_rank(ranks: NDArray[np.int64], hosting: Hosting) -> Counts:
    return np.bincount(ranks, minlength=hosting.ranks).astype(np.float64)
