"""A user's own metrics: what they get, and what is refused before the first round."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedh2l_mpi.config import EvaluationConfig, OptimizerConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.evaluation import chosen_metrics, columns_of, evaluate
from fedh2l_mpi.participant import Participant

COUNT = itertools.count()


def top2(logits, labels):
    """The share of samples whose label has one of the two highest logits."""
    return (logits.topk(2).indices == labels[:, None]).any(dim=1).double().mean()


def mean_label(logits, labels):
    logits.zero_()
    return np.float32(labels.numpy().mean())


def vector(logits, labels):
    return logits.mean(dim=0)


def word(logits, labels):
    return "0.5"


def nothing(logits, labels):
    return None


def unknown(logits, labels):
    return math.nan


def infinite(logits, labels):
    return math.inf


def counting(logits, labels):
    return next(COUNT)


def raises(logits, labels):
    raise ZeroDivisionError("no")


def accuracy_all(logits, labels):
    return 0.0


def nll(logits, labels):
    return 0.0


NUMBER = 3


class NoFunction:
    def __init__(self, logits, labels):
        pass


def chosen(*names):
    given = [name if ":" in name or name == "macro_f1" else f"{__name__}:{name}" for name in names]
    return chosen_metrics(EvaluationConfig(metrics=given), 3)


class Scores(nn.Module):
    """The pixels of an image are its logits."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.weight * images.flatten(1)


def test_every_metric_is_a_number_for_each_domain_and_moves_no_other_number():
    images = torch.randn(60, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    whole = Labelled(images, torch.arange(60) % 3)
    halves = [Labelled(images[rows], whole.labels[rows]) for rows in (slice(0, 20), slice(20, 60))]
    one = Participant(0, "scores", Scores(), whole, whole, OptimizerConfig(average="none"), EvaluationConfig(), seed=0)
    metrics = chosen("macro_f1", "top2", "mean_label")
    plain, row = evaluate(one, halves, 0), evaluate(one, halves, 0, metrics=metrics)
    assert set(row) - set(plain) == {"macro_f1", "top2", "mean_label"}
    assert {name: np.array(row[name]).tobytes() for name in plain} == {
        name: np.array(value).tobytes() for name, value in plain.items()
    }
    for domain, half in enumerate(halves):
        logits_NC = half.inputs().flatten(1)
        assert row["top2"][domain] == float(top2(logits_NC, half.labels))
        assert row["mean_label"][domain] == pytest.approx(half.labels.double().mean())
    assert [field.name for field in columns_of("fedh2l", {}, False, metrics).by_domain] == [
        "macro_f1",
        "top2",
        "mean_label",
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vector", r"returned an array of shape \(3,\), must return one number\.$"),
        ("word", r"returned a str, must return one number\.$"),
        ("nothing", r"returned a NoneType, must return one number\.$"),
        ("unknown", r"returned nan in a trial, must return a finite number\.$"),
        ("infinite", r"returned inf, must return a finite number \(NaN: unknown\)\.$"),
        ("counting", r"returned \d+\.0 and then \d+\.0 for the same samples"),
        ("raises", r"fails when it is evaluated: ZeroDivisionError in test_chosen_metrics\.py, line \d+: no\.$"),
        ("NUMBER", r"got 3, must be a function of logits and labels\.$"),
        ("NoFunction", r"must be a function of logits and labels\.$"),
        ("absent", r"module .* has no absent$"),
        ("no_such_module:f", r"cannot import no_such_module: .* Run from its folder, or set PYTHONPATH\.$"),
    ],
)
def test_a_function_that_is_no_metric_is_refused_in_one_line(name, says):
    where = name if ":" in name else f"{__name__}:{name}"
    with pytest.raises(UserError, match=rf"^evaluation\.metrics: '{where}'.*{says}"):
        chosen(name)


@pytest.mark.parametrize(
    ("notes", "metrics", "says"),
    [
        (
            {},
            ["accuracy_all"],
            "evaluation.metrics: .* gives an array 'accuracy_all', which is the name of an",
        ),
        ({}, ["nll"], "evaluation.metrics: .* gives an array 'nll', which is kept for a metric of this program"),
        ({"top2": "x"}, ["top2"], "evaluation.metrics: .* 'top2', which is the name of another array of this run"),
        ({"accuracy_local": "x"}, [], "method.name: 'my:M' declares the note 'accuracy_local', which is kept for"),
        (
            {"loss_seed": "x"},
            [],
            "method.name: 'my:M' declares the note 'loss_seed', which is the name of an array",
        ),
        ({"F 1": "x"}, [], "method.name: 'my:M' declares the note 'F 1', which is not a name of an array"),
        ({f"note_{i}": "x" * 900 for i in range(99)}, [], "99 arrays are too many, or their descriptions are too long"),
    ],
)
def test_a_name_that_is_taken_is_refused_in_one_line(notes, metrics, says):
    with pytest.raises(UserError, match=says):
        columns_of("my:M", notes, False, chosen(*metrics))


def test_a_note_has_the_unit_at_the_end_of_its_meaning():
    columns = columns_of("my:M", {"gap": "distance of two losses [nats]", "trust": "share of trusted teachers"}, True)
    assert [(one.name, one.units, one.long_name) for one in columns.by_participant[:2]] == [
        ("gap", "nats", "distance of two losses"),
        ("trust", "1", "share of trusted teachers"),
    ]
    assert columns.by_participant[2].name == "accuracy_local"
