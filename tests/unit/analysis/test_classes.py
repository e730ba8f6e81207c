"""Results by class: means and shares by hand, the table of the report and the heat maps of a page."""

import h5py
import numpy as np
import pytest
from helpers import written_runs

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import report
from fedh2l_mpi.analysis.classes import ByClass, by_class
from fedh2l_mpi.analysis.export import export
from fedh2l_mpi.analysis.html import classes as heat_maps
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.analysis.summary import summarise
from fedh2l_mpi.analysis.validation import validate
from fedh2l_mpi.metrics.columns import Columns

P, C = 3, 10


def confusion() -> np.ndarray:
    """Class 0 has no sample; participant p takes p + 1 of 10 samples of class 3 for class 8."""
    matrix_PCC = np.zeros((P, C, C), np.int32)
    matrix_PCC[:, np.arange(1, C), np.arange(1, C)] = 10
    for participant in range(P):
        matrix_PCC[participant, 3, [3, 8]] = [9 - participant, 1 + participant]
    return matrix_PCC


@pytest.fixture
def run(tmp_path):
    head = written_runs.header()
    at_end = Columns(at_end=("accuracy_class", "confusion"))
    writer = metrics.MetricsWriter(
        tmp_path / "metrics.h5",
        metrics.RunHeader(head.attributes, head.participants, head.label_histogram, head.domain_names, at_end),
    )
    writer.add_graph(0, [(0, 1), (1, 2), (0, 2)])
    for round_index in range(12):
        writer.append(round_index, written_runs.table(round_index))
    for participant, matrix_CC in enumerate(confusion()):
        samples_C = matrix_CC.sum(axis=1)
        accuracy_C = np.where(samples_C > 0, matrix_CC.diagonal() / np.maximum(samples_C, 1), np.nan)
        writer.write_end(participant, {"confusion": matrix_CC, "accuracy_class": accuracy_C})
    writer.close("complete")
    return load_run(tmp_path / "metrics.h5")


def test_means_and_shares_are_those_worked_out_by_hand(run):
    found = by_class(run)
    assert np.isnan(found.mean_C[0])
    assert found.mean_C[3] == pytest.approx(0.8)
    assert found.mean_C[[1, 2, 4, 9]].tolist() == [1.0] * 4
    assert np.isnan(found.share_CC[0]).all()
    # 1 + 2 + 3 of 30 samples.
    assert list(found.pairs()) == [(3, 8, pytest.approx(0.2))]


def test_the_report_and_the_page_show_them(run):
    summary = summarise(run)
    table = report.class_table(summary)
    assert table.headings == ["class", *map(str, range(C))]
    assert [row[4] for row in table.rows] == ["0.90", "0.80", "0.70", "0.80"]
    assert [row[1] for row in table.rows] == ["-"] * 4
    assert table.caption.endswith("share of a class's samples: 3 as 8 (20%).")
    accuracy, taken = heat_maps.section(summary.classes, ["a", "b", "c"])["maps"]
    assert [name for name, _ in accuracy["lines"]] == ["a", "b", "c"]
    assert accuracy["lines"][2][1][3] == ("0.700", heat_maps.SCALE.level(np.array([700], np.int16))[0])
    assert taken["lines"][3][1][8][0] == "0.200"
    assert taken["lines"][0][1][0][0] == "–"


def test_of_many_classes_the_least_accurate_have_a_table_and_all_a_picture():
    accuracy_PC = np.linspace(1.0, 0.0, 100)[None, :]
    found = ByClass(accuracy_PC, np.eye(100, dtype=np.int64))
    assert found.shown() == list(range(90, 100))
    maps = heat_maps.section(found, ["0 mlp"])["maps"]
    assert [one["picture"][:22] for one in maps] == ["data:image/png;base64,"] * 2


def test_the_export_has_a_row_for_each_known_cell(run, tmp_path):
    export({"a": run}, "csv", tmp_path / "tables")
    _, *classes = (tmp_path / "tables" / "classes.csv").read_text().splitlines()
    assert len(classes) == P * (C - 1)
    assert "2,3,0.7" in classes
    head, *cells = (tmp_path / "tables" / "confusion.csv").read_text().splitlines()
    assert head == "participant,class,predicted,samples"
    assert len(cells) == P * C * C
    assert {"2,3,7,0", "2,3,8,3"} <= set(cells)


def test_runs_with_and_without_an_end_have_one_table(run, tmp_path):
    older = load_run(written_runs.write(tmp_path / "older", rounds=4))
    for pair in ({"a": older, "b": run}, {"b": run, "a": older}):
        out = tmp_path / "-".join(pair)
        export(pair, "csv", out)
        _, *classes = (out / "classes.csv").read_text().splitlines()
        assert len(classes) == P * (C - 1)
        assert {line.split(",")[0] for line in classes} == {"b"}
        assert {line.split(",")[0] for line in (out / "rounds.csv").read_text().splitlines()[1:]} == {"a", "b"}


def test_a_wrong_accuracy_of_a_class_is_an_error(run):
    assert not [one for one in validate(run.file, programs=False) if "of participant 1, class 3" in one.what]
    with h5py.File(run.file, "r+") as file:
        file["accuracy_class"][1, 3] = 0.9
    wrong = [one.what for one in validate(run.file, programs=False) if one.level == "error"]
    assert "accuracy_class of participant 1, class 3: got 0.9, must be 0.8" in wrong


def test_a_run_without_an_end_has_none(tmp_path):
    run = load_run(written_runs.write(tmp_path / "run", rounds=4))
    assert by_class(run) is None
    assert report.class_table(summarise(run)) is None
    assert heat_maps.section(None, []) is None
