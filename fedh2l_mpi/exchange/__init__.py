"""Arrays between neighbours: one message per pair of ranks and round, started at publish, completed when needed.

The method decides what the array holds (posteriors, logits, parameters); the exchange knows its name and shape.
`methods`, `metrics` and every room above them may import it.
"""

from fedh2l_mpi.exchange.array_spec import ArraySpec
from fedh2l_mpi.exchange.exchange import Exchange, Ledger, NoExchange, Received

__all__ = ["ArraySpec", "Exchange", "Ledger", "NoExchange", "Received"]
