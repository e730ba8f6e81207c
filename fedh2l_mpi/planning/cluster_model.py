"""Model of a round on a cluster: training steps, bookkeeping, messages, and the rows that rank 0 writes.

A message takes `latency_s` plus its bytes / `bandwidth_bytes_s`. The links of different ranks do not disturb each
other. Ranks wait for their neighbours in every round, so in the long run the slowest rank determines the pace.

Shape letters: R ranks.
"""

from dataclasses import dataclass

import numpy as np

from fedh2l_mpi.planning.overhead import EXCHANGE, Counts, Loads, OverheadConstants


@dataclass(frozen=True)
class ClusterModel:
    """Cluster parameters that the user supplies.

    Attributes
    ----------
    latency_s, bandwidth_bytes_s : float
        Latency [s] and bandwidth [byte/s] of a message between two ranks.
    speedup : float
        Speed of the training steps on a rank's device, divided by their speed on this machine's core.
    """

    latency_s: float
    bandwidth_bytes_s: float
    speedup: float

    def messages_s(self, messages: Counts, messages_bytes: Counts) -> Counts:
        """Return the time of messages that are sent one after another [s]."""
        return self.latency_s * messages + messages_bytes / self.bandwidth_bytes_s


@dataclass(frozen=True)
class Steps:
    """Time of training and evaluation on every rank per round, averaged over the run, on this machine's core [s].

    Attributes
    ----------
    all : float64 (R,)
        Total time.
    hiding : float64 (R,)
        Time during which messages travel: the local phase if publishing comes before it, otherwise 0.
    """

    all: Counts
    hiding: Counts


@dataclass(frozen=True)
class Rows:
    """Messages and bytes of metrics rows that go to rank 0 at the end of every round."""

    messages: int
    bytes: float


@dataclass(frozen=True)
class Forecast:
    """Times of a round on the slowest rank, averaged over the run [s].

    Attributes
    ----------
    rank : int
        The slowest rank.
    steps, bookkeeping, write : float
        Time on its device, time on its core, and time to write the file (rank 0 only).
    messages, exposed : float
        Time of its messages in transit, and the part of it that no local phase hides.
    rows : float
        Time of the rows in transit to rank 0. They travel during the next round, and delay it only if they take longer.
    exchange_core_s : float
        The part of the bookkeeping for messages and the neighbours' arrays.
    sent_bytes : float
        Bytes sent by the rank that sends most.
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
        """Time of the parts that run one after another [s]."""
        return self.steps + self.bookkeeping + self.exposed + self.write

    @property
    def round(self) -> float:
        """Time of a round [s]."""
        return max(self.path, self.rows)

    @property
    def bottleneck(self) -> tuple[str, float]:
        """Name of the longest part of a round, and its share of the round."""
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
    """Compute the times of a round on the cluster.

    Parameters
    ----------
    exchanging : float
        Share of the rounds with an exchange.
    """
    core = constants.seconds(loads)
    exchange_R = exchanging * np.sum([core[part] for part in EXCHANGE], axis=0)
    bookkeeping_R = exchange_R + core["rest"]
    steps_R, hiding_R = steps.all / cluster.speedup, steps.hiding / cluster.speedup
    # Both directions work at the same time, so the larger one counts.
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
