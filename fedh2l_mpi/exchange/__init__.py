"""Arrays between neighbours: one message per pair of ranks and round, started at publish, completed when needed.

What the array is (posteriors, logits, parameters, a user's own) is the method's business: the exchange knows its name
and its shape.
"""

from fedh2l_mpi.exchange.array_spec import ArraySpec
from fedh2l_mpi.exchange.exchange import Exchange, Ledger, Received

__all__ = ["ArraySpec", "Exchange", "Ledger", "Received"]
