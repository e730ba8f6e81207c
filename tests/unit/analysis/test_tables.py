"""Tables of many runs: every number worked out by hand."""

import csv
import io
import math
import subprocess
import sys

import numpy as np
import pytest

from fedh2l_mpi.analysis import tables
from fedh2l_mpi.analysis.controls import Gap, find_control
from fedh2l_mpi.analysis.outcome import Outcome, read_outcome, spread, until
from fedh2l_mpi.metrics import ROW_FIELDS, SIMULATED_SECONDS, Columns, RunMetrics


def run_of(**given: list[list[float]]) -> RunMetrics:
    """A run of 3 rounds and 2 participants on one rank; what is not given is 0."""
    arrays = {field.name: np.zeros((3, 2)) for field in ROW_FIELDS}
    arrays |= {name: np.array(values, dtype=float) for name, values in given.items()}
    arrays |= {"round": np.arange(3), "rank": np.array([0, 0])}
    return RunMetrics({"seed": 7, "git_revision": "0123abc"}, arrays, True)


def outcome(seed: int, accuracy: list[float], sent: list[float] | None = None) -> Outcome:
    """A run evaluated in every round."""
    values = {field.name: 0.0 for field in ROW_FIELDS} | {"accuracy_all": accuracy[-1]}
    sent_R = np.array(sent or [0.0] * len(accuracy))
    values["bytes_sent"] = float(sent_R.sum())
    rounds = np.arange(len(accuracy)) + 1
    return Outcome(seed, values, rounds, np.array(accuracy), sent_R.cumsum(), 0.25 * rounds, 1.5)


def control(name: str, rows) -> tables.Control:
    return find_control("table", name, {row: {"element": row} for row in rows})


def test_a_run_comes_to_its_last_round_and_its_bytes_to_their_sum():
    unknown = [math.nan, math.nan]
    found = read_outcome(
        run_of(
            accuracy_all=[[0.3, 0.5], unknown, [0.6, 0.4]],
            accuracy_own=[[0.9, 0.9], unknown, [0.8, 0.6]],
            bytes_sent=[[10, 30], [10, 30], [10, 30]],
            seconds_local=[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]],
            seconds_mutual=[[0.0, 1.0], unknown, [0.0, 1.0]],
            seconds_wait=[[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]],
            seconds_evaluate=[[5.0, 5.0], unknown, [5.0, 5.0]],
        )
    )
    assert found.seed == 7
    # The last round, though the first was better for the own domain; 3 rounds of 10 and 30 bytes are 30 and 90.
    assert found.values["accuracy_own"] == pytest.approx(0.7)
    assert found.values["accuracy_all"] == pytest.approx(0.5)
    assert found.values["bytes_sent"] == pytest.approx(60)
    assert found.rounds_E.tolist() == [1, 3]
    assert found.accuracy_E.tolist() == pytest.approx([0.4, 0.5])
    assert found.bytes_E.tolist() == pytest.approx([20, 60])
    # 1 and 3 seconds in the first round, 1 and 2 in the second, 1 and 3 in the third; no waiting, no evaluation.
    assert found.training_s_E.tolist() == pytest.approx([2.0, 5.5])
    # Both participants took turns on one rank: 9 of local phases, 2 of mutual ones, 54 of waiting, 20 of evaluation.
    assert found.seconds == pytest.approx(85.0)


def test_simulated_time_is_that_of_the_last_participant():
    unknown = [math.nan, math.nan]
    run = run_of(accuracy_all=[[0.3, 0.5], unknown, [0.6, 0.8]], simulated_seconds=[[1, 2], [5, 3], [6, 90]])
    assert read_outcome(run).simulated_s_E is None
    with_clock = RunMetrics(run.attributes, run.arrays, True, columns=Columns((SIMULATED_SECONDS,)))
    found = read_outcome(with_clock, ["simulated_seconds"])
    assert found.simulated_s_E.tolist() == found.curve("simulated_seconds").tolist() == [2, 90]
    assert found.values["simulated_seconds"] == 90
    shown = tables.table({"a": [found]}, ["simulated_seconds"], [0.6, 0.9], costs=["simulated"])
    assert list(shown.rows[0]) == ["a", "90.0", "90 s", "never"]
    lacking = tables.table({"a": [read_outcome(run)]}, [], [0.4], costs=["simulated"])
    assert lacking.rows[0][1] == "never"


def test_the_slowest_rank_tells_how_long_a_run_took():
    run = run_of(seconds_local=[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    run.arrays["rank"] = np.array([0, 1])
    assert read_outcome(run).seconds == pytest.approx(6.0)


def test_costs_are_counted_until_the_first_evaluation_that_reaches_the_accuracy():
    run = outcome(0, [0.5, 0.8, 0.7, 0.9], sent=[100, 100, 100, 100])
    assert until(run, run.bytes_E, 0.8) == 200
    assert until(run, run.bytes_E, 0.85) == 400
    assert (until(run, run.rounds_E, 0.8), until(run, run.training_s_E, 0.9)) == (2, 1.0)
    assert math.isnan(until(run, run.bytes_E, 0.95))


def test_the_spread_is_that_of_a_sample():
    # Squared distances from 2: 1, 0, 1; divided by n - 1 = 2.
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, deviation = spread([0.5])
    assert (mean, math.isnan(deviation)) == (0.5, True)


def test_differences_are_paired_by_seed_whatever_their_order():
    rows = {
        "ours": [outcome(0, [0.9]), outcome(1, [0.8]), outcome(2, [0.1])],
        "theirs": [outcome(1, [0.6]), outcome(0, [0.8])],
    }
    # Differences 0.1 and 0.2: their standard deviation is 0.0707, and t of one degree is 12.7062, over the root of 2.
    spreads, intervals = (
        tables.table(rows, [], compare_to=control("theirs", rows), confidence=confidence) for confidence in (None, 0.95)
    )
    assert [row[-1] for row in spreads.rows] == ["+0.150 ± 0.071 (2 of 2)", "-"]
    assert [row[-1] for row in intervals.rows] == ["+0.150 [-0.485, +0.785] (2 of 2)", "-"]
    assert "with its Student-t interval of 95%" in intervals.caption
    assert "Student-t" not in spreads.caption


ROWS = {
    "base": [outcome(0, [0.5, 0.80], [512, 512]), outcome(1, [0.5, 0.70], [512, 512])],
    "better": [outcome(0, [0.5, 0.82], [2048, 2048]), outcome(1, [0.7, 0.68], [2048, 2048])],
    "silent": [outcome(1, [0.6, 0.76])],
    "none yet": [],
}


def test_a_table_shows_mean_and_spread_bytes_and_paired_differences():
    table = tables.table(ROWS, ["accuracy_all", "bytes_sent"], [0.7, 0.8, 0.99], control("base", ROWS), "A title")
    assert [heading.replace("\n", " ") for heading in table.headings] == [
        *("", "seeds", "all domains", "sent", "sent until 0.7", "sent until 0.8", "sent until 0.99", "minus base")
    ]
    # Standard deviation of two values a, b: |a - b| / sqrt(2), so 0.071, 0.099 and, of the differences +-0.02, 0.028.
    assert [list(row) for row in table.rows] == [
        ["base", "2", "0.750 ± 0.071", "1 KiB", "1 KiB", "1 KiB (1 of 2)", "never", "-"],
        ["better", "2", "0.750 ± 0.099", "4 KiB", "3 KiB", "4 KiB (1 of 2)", "never", "+0.000 ± 0.028 (1 of 2)"],
        ["silent", "1", "0.760", "0 B", "0 B", "never", "never", "+0.060 (1 of 1)"],
        ["none yet", "0", "-", "-", "-", "-", "-", "-"],
    ]


def test_a_table_shows_several_costs_until_an_accuracy():
    rows = {"a": [outcome(0, [0.5, 0.9], [1024, 1024]), outcome(1, [0.9, 0.9], [1024, 1024])], "b": []}
    table = tables.table(rows, ["calibration_error"], [0.9], costs=["rounds", "seconds", "sent"])
    assert list(table.headings[2:]) == [
        "calibration\nerror",
        "rounds\nuntil 0.9",
        "seconds\nuntil 0.9",
        "sent\nuntil 0.9",
    ]
    assert list(table.rows[0][2:]) == ["0.000 ± 0.000", "1.5", "0.4", "1.5 KiB"]
    assert list(table.rows[1][2:]) == ["-"] * 4
    assert "seconds: time in which a participant published and trained" in table.caption


def test_each_row_closes_a_share_of_the_gap_between_its_own_controls():
    def runs(*accuracies: float) -> list[Outcome]:
        return [outcome(seed, [accuracy]) for seed, accuracy in enumerate(accuracies)]

    rows = {
        "small, low": runs(0.5, 0.6, 0.7),
        "small, ours": runs(0.6, 0.7, 0.8),
        "small, high": runs(0.7, 0.8, 0.9),
        "large, low": runs(0.8, 0.9),
        "large, ours": runs(0.85, 0.95),
        "large, high": runs(0.9, 0.7),
        "other": runs(0.9),
    }
    settings = {row: dict(zip(("size", "method"), row.split(", "), strict=False)) for row in rows}
    gap = Gap(find_control("low", "low", settings), find_control("high", "high", settings))
    table = tables.table(rows, [], gap=gap)
    assert table.headings[-1] == "share of\nthe gap"
    # The first gains are 0.1 and the gaps 0.2, so their interval has no width. The second gaps are 0.1 and -0.2.
    assert {row[0]: row[-1] for row in table.rows} == {
        "small, low": "-",
        "small, ours": "0.50 [0.50, 0.50]",
        "small, high": "gap +0.200 [+0.200, +0.200]",
        "large, low": "-",
        "large, ours": "-",
        "large, high": "gap -0.050 [-1.956, +1.856]",
        "other": "-",
    }
    assert "the part of the gap in accuracy_all from low to high" in table.caption
    assert "0.50 [0.50, 0.50]" in tables.markdown(table)
    assert "gap +0.200 [+0.200, +0.200]" in tables.plain(table)


def test_rows_with_the_same_number_of_seeds_need_no_column_for_it():
    table = tables.table({"one": [outcome(0, [0.5])]}, ["accuracy_all"])
    assert list(table.headings) == ["", "all\ndomains"]
    assert list(table.rows[0]) == ["one", "0.500"]
    assert "one seed" in table.caption


def test_the_plain_table_is_aligned_and_never_cut():
    lines = tables.plain(tables.table(ROWS, ["accuracy_all"], title="A title")).splitlines()
    assert lines[0] == "A title"
    assert {len(line) for line in lines[1:9]} == {len("none yet  seeds  0.750 ± 0.071")}
    assert lines[4] == "base          2  0.750 ± 0.071"


def test_the_markdown_table_is_githubs():
    text = tables.markdown(tables.table({"a|b": [outcome(0, [0.5])]}, ["accuracy_all"], title="T"))
    assert text.startswith("**T**\n\n|  | all domains |\n| --- | ---: |\n| a\\|b | 0.500 |\n\n")


def test_the_long_form_has_a_line_for_each_run_with_all_numbers_in_full():
    run = outcome(3, [0.5, 1 / 3], [512, 512])
    text = tables.long_form([("a,seed=3", {"rounds": "2"}, run)], [0.5, 0.9], ["element", "rounds"])
    (line,) = csv.DictReader(io.StringIO(text.replace("rounds,seed", "axis rounds,seed")))
    assert (line["label"], line["element"], line["axis rounds"], line["seed"]) == ("a,seed=3", "", "2", "3")
    assert float(line["accuracy_all"]) == 1 / 3
    assert (line["bytes_until_0.5"], line["bytes_until_0.9"], line["seconds"]) == ("512.0", "", "1.500")
    assert (line["rounds_until_0.5"], line["training_seconds_until_0.5"]) == ("1.0", "0.25")


def test_tables_need_neither_torch_nor_mpi_nor_matplotlib():
    code = (
        "import sys; from fedh2l_mpi.analysis import tables, figures; from fedh2l_mpi.launch import sweep\n"
        "assert not {'torch', 'mpi4py', 'matplotlib'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
