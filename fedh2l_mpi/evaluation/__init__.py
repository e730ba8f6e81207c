"""Evaluate participants on held-out samples: scores of a round, metrics that the config asks for.

`simulation` and every room above `metrics` may import it.
"""

from fedh2l_mpi.evaluation.chosen_metrics import Metric, chosen_metrics
from fedh2l_mpi.evaluation.own_columns import columns_of
from fedh2l_mpi.evaluation.scores import confusion_of, evaluate, logits_of, score, temperature_on

__all__ = ["Metric", "chosen_metrics", "columns_of", "confusion_of", "evaluate", "logits_of", "score", "temperature_on"]
