"""A round on a cluster, on paper: steps of the busiest rank, bookkeeping, messages, and what rank 0 writes.

A message takes `latency_s`, and each byte 1 / `bandwidth_bytes_s`; the ranks' links do not disturb each other. Ranks
wait for their neighbours in every round, so in the long run the slowest one sets the pace of all.

Shape letters: R ranks.
"""

from dataclasses import dataclass

import numpy as np

from fedh2l_mpi.planning.overhead import EXCHANGE, Counts, Loads, OverheadConstants


@dataclass(frozen=True)
class ClusterModel:
    """What is to be told of a cluster.

    Attributes
    ----------
    latency_s, bandwidth_bytes_s : float
        Of a message between two ranks.
    speedup : float
        How many times faster a rank's device makes the training steps than this machine's core does.
    """

    latency_s: float
    bandwidth_bytes_s: float
    speedup: float

    def messages_s(self, messages: Counts, messages_bytes: Counts) -> Counts:
        """How long messages take, one after another [s]."""
        return self.latency_s * messages + messages_bytes / self.bandwidth_bytes_s


@dataclass(frozen=True)
class Steps:
    """Training and evaluation at every rank in a round, on average over the run, by this machine's core: (R,) each [s].

    Attributes
    ----------
    all : float64 (R,)
        All of it.
    hiding : float64 (R,)
        What runs while messages travel: the local phase, where publishing comes before it; 0 elsewhere.
    """

    all: Counts
    hiding: Counts


@dataclass(frozen=True)
class Rows:
    """What goes to rank 0 at the end of every round."""

    messages: int
    bytes: float


@dataclass(frozen=True)
class Forecast:
    """A round of the rank that takes longest, on average over the run [s].

    Attributes
    ----------
    rank : int
        Which one.
    steps, bookkeeping, write : float
        On its device, on its core, and, at rank 0, into the file.
    messages, exposed : float
        On their way at that rank, and the part of it that no local phase hides.
    rows : float
        On their way to rank 0, beside the next round, which they hold up only where they take longer than that.
    exchange_core_s : float
        The part of the bookkeeping that is for messages and the neighbours' arrays.
    sent_bytes : float
        By the rank that sends most.
    """

    rank: int
    steps: float
    bookkeeping: float
    messages: float
    exposed: float
    write: float
    rows: float
    exchange_core_s: float
    sent_bytes: float

    @property
    def path(self) -> float:
        """What is done one after another."""
        return self.steps + self.bookkeeping + self.exposed + self.write

    @property
    def round(self) -> float:
        """A round."""
        return max(self.path, self.rows)

    @property
    def bottleneck(self) -> tuple[str, float]:
        """What takes most of a round, and its share of it."""
        parts = {
            "training steps": self.steps,
            "bookkeeping": self.bookkeeping,
            "messages": self.exposed,
            "writing rows": self.write,
        }
        if self.rows > self.path:
            return "rows on their way to rank 0", 1.0
        name = max(parts, key=lambda part: parts[part])
        return name, parts[name] / self.path


def forecast(
    cluster: ClusterModel, loads: Loads, steps: Steps, rows: Rows, exchanging: float, constants: OverheadConstants
) -> Forecast:
    """A round on the cluster.

    Parameters
    ----------
    exchanging : float
        The share of the rounds that exchange something.
    """
    core = constants.seconds(loads)
    exchange_R = exchanging * np.sum([core[part] for part in EXCHANGE], axis=0)
    bookkeeping_R = exchange_R + core["rest"]
    steps_R, hiding_R = steps.all / cluster.speedup, steps.hiding / cluster.speedup
    # Both ways at once: the larger one counts.
    one_way = np.maximum(loads.sent_bytes, loads.received_bytes)
    messages_R = cluster.messages_s(loads.messages, one_way)
    exposed_R = exchanging * np.maximum(0.0, messages_R - hiding_R)
    path_R = steps_R + bookkeeping_R + exposed_R + core["write"]
    rank = int(path_R.argmax())
    return Forecast(
        rank,
        steps=float(steps_R[rank]),
        bookkeeping=float(bookkeeping_R[rank]),
        messages=float(exchanging * messages_R[rank]),
        exposed=float(exposed_R[rank]),
        write=float(core["write"][rank]),
        rows=float(cluster.messages_s(np.array(float(rows.messages)), np.array(rows.bytes))),
        exchange_core_s=float(exchange_R[rank]),
        sent_bytes=float(loads.sent_bytes.max()),
    )
