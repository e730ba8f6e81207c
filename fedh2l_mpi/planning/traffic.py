"""Messages of a round: over the edges of the graph, and between the ranks that host the participants.

Shape letters: P participants, R ranks, E edges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedh2l_mpi.runtime.hosting import Hosting

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class MessageSize:
    """A message with the arrays of n participants is `fixed_bytes + n * array_bytes` long.

    Attributes
    ----------
    held_bytes : int
        An array in memory, as what it was before it was encoded, or what it is decoded to.
    is_coded : bool
        Whether the array in a message is another one than that in memory, so that there are both: encoded, or without
        the rows that hardly changed, of which `array_bytes` then counts all.
    """

    fixed_bytes: int
    array_bytes: int
    held_bytes: int
    is_coded: bool = False

    @property
    def edge_bytes(self) -> int:
        """What an edge is charged in each direction: the message that would carry one participant's array alone."""
        return self.fixed_bytes + self.array_bytes


@dataclass(frozen=True)
class Links:
    """Who exchanges with whom in a round, counted; whole numbers but where they are expected values.

    Attributes
    ----------
    degree_P : float64 (P,)
        Neighbours of each participant.
    messages_R : float64 (R,)
        Messages that each rank sends to other ranks; as many arrive.
    sent_R, received_R : float64 (R,)
        Participants' arrays in the messages that each rank sends, and in those that it receives.
    degree_max_R : float64 (R,)
        Largest number of neighbours of a participant hosted there.
    edges : float
        Of the graph, each counted once.
    expected : bool
        Whether the numbers are expected values of a random graph that was not drawn.
    """

    degree_P: Counts
    messages_R: Counts
    sent_R: Counts
    received_R: Counts
    degree_max_R: Counts
    edges: float
    expected: bool = False

    def edge_bytes(self, size: MessageSize) -> float:
        """What crosses the edges of the graph in a round, as the metrics file counts it [bytes]."""
        return 2 * self.edges * size.edge_bytes

    def mpi_bytes_R(self, size: MessageSize) -> Counts:
        """What each rank gives to MPI in a round, (R,) [bytes]; what is co-hosted never gets there."""
        return self.messages_R * size.fixed_bytes + self.sent_R * size.array_bytes


def block_sizes(hosting: Hosting) -> NDArray[np.int64]:
    """How many participants each rank hosts, int64 (R,)."""
    base, extra = divmod(hosting.participants, hosting.ranks)
    return base + (np.arange(hosting.ranks) < extra)


def first_participants(hosting: Hosting) -> NDArray[np.int64]:
    """The first participant of each rank, int64 (R,)."""
    sizes = block_sizes(hosting)
    return np.cumsum(sizes) - sizes


def links(edges: ArrayLike, hosting: Hosting) -> Links:
    """The links of a graph, from its edges (E, 2), each given once."""
    edges_E2 = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    rank_P = np.repeat(np.arange(hosting.ranks), block_sizes(hosting))
    # Both directions of every edge: a sender, and the rank of its neighbour.
    sender = np.concatenate([edges_E2[:, 0], edges_E2[:, 1]])
    to_rank = rank_P[np.concatenate([edges_E2[:, 1], edges_E2[:, 0]])]
    crosses = rank_P[sender] != to_rank
    # A participant's array goes once to each rank that hosts neighbours, however many.
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
    """The links to expect where any two participants are neighbours with this probability, each pair on its own.

    With probability 1 this is the complete graph, exactly.

    Parameters
    ----------
    degree : int, optional
        What everyone's degree is known to be, such as in a regular graph, whose edges are nearly independent.
    """
    participants, sizes_R = hosting.participants, block_sizes(hosting).astype(np.float64)
    none = 1.0 - probability
    mean_degree = probability * (participants - 1) if degree is None else float(degree)
    # Blocks come in two sizes at most: count the ranks of each.
    kinds, counts = np.unique(sizes_R, return_counts=True)
    messages_R, sent_R = np.zeros(hosting.ranks), np.zeros(hosting.ranks)
    for size, count in zip(kinds, counts, strict=True):
        # Others of this size: a rank does not send to itself.
        others_R = count - (sizes_R == size)
        messages_R += others_R * (1.0 - none ** (sizes_R * size))
        sent_R += others_R * sizes_R * (1.0 - none**size)
    # A participant's array goes once to each rank; a rank gets one from every participant that has a neighbour there.
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
