"""A run in numbers and as text: against numbers worked out by hand, and with whatever can be missing."""

import csv
import io
import json
import os
import re
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import compared_runs, written_runs
from helpers.four_rounds import THREE, write
from helpers.launching import launch
from rich.console import Console

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import compare as comparing
from fedh2l_mpi.analysis import html, report, summary, watch
from fedh2l_mpi.analysis import run as runs
from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.world import World

NAN = np.nan


def summarised(folder, baseline=None):
    return summary.summarise(runs.load_run(folder), runs.load_run(baseline) if baseline else None)


def shown(summaries, width=80):
    text = io.StringIO()
    Console(width=width, file=text).print(report.terminal(summaries))
    return text.getvalue()


def test_a_summary_has_the_numbers_of_the_file(tmp_path):
    told = summarised(write(tmp_path / "run", THREE))
    assert (told.state, told.after, told.warnings, told.problems) == ("complete, 4 rounds", 4, [], [])
    named = told.participants
    assert named["accuracy_own"].tolist() == [0.9, 0.8, 0.7]
    assert named["accuracy_worst"].tolist() == [0.5, 0.6, 0.5]
    assert told.mean("accuracy_all") == pytest.approx((0.7 + 0.7 + 0.6) / 3)
    # Validation chooses the second round, in which everything was half as good.
    assert named["accuracy_all_at_best_validation"] == pytest.approx([0.35, 0.35, 0.3])
    assert named["bytes_sent"].tolist() == [400, 400, 400]
    # Four rounds, two neighbours, 4,000 bytes a copy.
    assert named["bytes_as_parameters"].tolist() == [32_000] * 3
    assert named["conflict_rate"].tolist() == [0.0, 0.25, 0.0]
    # Five phases of a second in four rounds; rank 0 hosts two participants.
    assert told.seconds == 40.0
    assert told.waiting_share == pytest.approx(0.2)
    assert told.facts["revision"] == "0123456789ab-dirty"
    assert told.facts["hardware"] == "1 rank on here, cpu, 1 thread each"
    assert np.isnan(named["gain"]).all()
    with h5py.File(tmp_path / "run" / "metrics.h5", "r+") as file:
        file.attrs["gpus"] = np.bytes_("NVIDIA A100, NVIDIA H100")
    assert summarised(tmp_path / "run").facts["hardware"] == (
        "1 rank on here, cpu (NVIDIA A100, NVIDIA H100), 1 thread each"
    )


def test_a_summary_says_what_the_optimiser_does_more_than_steps(tmp_path):
    usual = write(tmp_path / "usual", THREE, overrides=["recipe=classic"])
    assert summarised(usual).facts["optimizer"] == "adam, lr 0.001, minibatch 32"
    tf32 = write(tmp_path / "tf32", THREE, overrides=["recipe=classic", "optimizer.precision=tf32"])
    assert summarised(tf32).facts["optimizer"] == "adam, lr 0.001, minibatch 32, tf32"
    keys = ["optimizer={schedule: cosine, schedule_rounds: 1, average: ema, average_decay: 0.980952}"]
    assert summarised(write(tmp_path / "more", THREE, overrides=keys)).facts["optimizer"] == (
        "adam, lr 0.001, cosine over 1 round, minibatch 32, weights averaged with decay 0.981"
    )


def test_the_round_that_validation_chooses_is_the_best_or_the_latest_of_equals():
    validation = np.array([[NAN] * 3, [0.9, 0.5, NAN], [NAN] * 3, [0.8, 0.5, NAN]])
    everywhere = np.array([[NAN] * 3, [0.8, 0.5, 0.5], [NAN] * 3, [0.7, 0.6, 0.5]])
    chosen = summary.accuracy_at_best_validation(validation, everywhere)
    assert chosen[:2].tolist() == [0.8, 0.6]
    assert np.isnan(chosen[2]), "without validation data no round is chosen"


def test_gain_and_negative_transfer_are_told_participant_by_participant(tmp_path):
    ours = write(tmp_path / "ours", THREE)
    theirs = write(tmp_path / "theirs", [[0.5, 0.5], [0.5, 0.5], [0.9, 0.9]])
    told = summarised(ours, theirs)
    assert told.participants["gain"] == pytest.approx([0.2, 0.2, -0.3])
    assert told.warnings == [
        "negative transfer: participant 2 (all-domain accuracy -0.300) to theirs",
        "negative transfer: participant 2 (own-domain accuracy -0.200) to theirs",
    ]
    unlike = summarised(ours, write(tmp_path / "unlike", [[0.5, 0.5]], seed=1))
    assert unlike.participants["gain"] == pytest.approx([0.2, 0.2, 0.1])
    assert "the baseline unlike differs in seed and models, so gains are not paired" in unlike.warnings
    assert any("has 1 participants, this run 3" in line for line in unlike.warnings)


def test_a_baseline_of_other_rounds_or_without_an_end_is_warned_of(tmp_path):
    ours = written_runs.write(tmp_path / "ours", rounds=4)
    longer = summarised(ours, written_runs.write(tmp_path / "longer", rounds=8))
    assert (
        "the baseline longer was last evaluated after 8 rounds, this run after 4, "
        "so gains compare different amounts of training" in longer.warnings
    )
    stopped = summarised(ours, written_runs.write(tmp_path / "stopped", rounds=8, finished=5, state="stopped"))
    assert [line for line in stopped.warnings if "baseline stopped" in line] == [
        "the baseline stopped is unfinished: stopped before round 5: 5 of 8 rounds finished"
    ]


def test_what_looks_wrong_is_warned_of(tmp_path):
    told = summarised(write(tmp_path / "run", [[0.9, 0.5], [0.1, 0.2], [0.7, 0.5]], state="stopped", planned=9))
    assert told.warnings == [
        "unfinished: stopped before round 4: 4 of 9 rounds finished, 5 missing",
        "at chance level (0.1): participant 1 (all-domain accuracy 0.150)",
    ]
    rising = summarised(write(tmp_path / "rising", THREE, loss_private=[0.9, 0.2, 0.3, [0.3, 0.8, 0.2]]))
    assert rising.warnings == ["diverging: participant 1 (private loss 4.0 times its lowest)"]
    # Rounds without a loss, of a participant that was absent, hide nothing.
    losses = [0.9, [0.9, 0.2, 0.2], [np.nan, np.nan, 0.2], [0.3, 0.8, np.nan]]
    assert summarised(write(tmp_path / "gaps", THREE, loss_private=losses)).warnings == rising.warnings


def test_the_terminal_shows_every_number_in_eighty_columns(tmp_path):
    ours, theirs = write(tmp_path / "ours", THREE), write(tmp_path / "theirs", [[0.5, 0.5]] * 3)
    text = shown([summarised(ours, theirs)])
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for cell in (
        "0 lenet5",
        "1,000",
        "0.900",
        "+0.200",
        "400 B",
        "31.2 KiB",
        "mean of 3",
        "80 times as much",
        "20.0 %",
    ):
        assert cell in text, cell


def test_a_piped_table_is_as_wide_as_columns_says(tmp_path, capsys, monkeypatch):
    run = write(tmp_path / "run", THREE)
    for columns, width in (("80", 80), ("", 120), ("wide", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = said(capsys, "report", run).out.splitlines()
        said(capsys, "report", run, "--out", tmp_path / "report.txt")
        assert lines == (tmp_path / "report.txt").read_text().splitlines()
        assert 0.8 * width < max(map(len, lines)) <= width
        assert [line for line in lines if line.endswith(" ")] == []


def test_many_participants_are_summed_up_in_quantiles(tmp_path):
    told = summarised(write(tmp_path / "run", np.linspace(0.2, 1.0, 80).reshape(40, 2)))
    rows = report.result_table(told).rows
    assert [row[0] for row in rows] == ["lowest", "10 %", "median", "90 %", "highest", "mean of 40"]
    assert [row[3] for row in rows] == ["0.205", "0.284", "0.600", "0.916", "0.995", "0.600"]


def test_csv_and_json_have_all_numbers_in_full(tmp_path):
    told = summarised(write(tmp_path / "run", [[0.1 + 0.2, 1 / 3], [0.5, 0.5]]))
    rows = list(csv.DictReader(io.StringIO(report.as_csv([told]))))
    assert [row["participant"] for row in rows] == ["0", "1"]
    assert float(rows[0]["accuracy_own"]) == 0.1 + 0.2
    assert rows[0]["gain"] == ""
    (run,) = json.loads(report.as_json([told]))
    assert run["accuracy"][0] == [0.1 + 0.2, 1 / 3]
    assert run["mean"]["gain"] is None
    assert run["units"]["bytes_sent"] == "byte"


def test_times_are_told_before_the_first_evaluation(tmp_path):
    path = written_runs.write(tmp_path / "run", finished=2, state="stopped")
    measured, told = metrics.read(path / "metrics.h5"), summarised(path)
    spent = {phase: np.nansum(measured[f"seconds_{phase}"]) for phase in summary.PHASES}
    assert spent["evaluate"] == 0.0
    assert told.seconds == pytest.approx(sum(spent.values())), "one rank hosts all"
    assert told.waiting_share == pytest.approx(spent["wait"] / told.seconds)
    shares = {row[0]: row[2] for row in report.phase_table(told).rows}
    assert shares["evaluate"] == "-"
    assert shares["local"] == f"{100 * spent['local'] / told.seconds:.1f} %"


def test_an_empty_run_and_a_single_participant_are_reported(tmp_path):
    alone = summarised(write(tmp_path / "alone", [[0.5]]))
    assert "accuracy by domain" not in shown([alone])
    empty = tmp_path / "empty"
    write(empty, [[0.5, 0.5]])

    with h5py.File(empty / "metrics.h5", "r+") as file:
        for name in ("round", *(name for name, dims in metrics.DIMENSIONS.items() if dims[0] == "round")):
            file[name].resize(0, axis=0)
    told = summarised(empty)
    assert told.after == 0
    assert np.isnan(told.seconds)
    assert "no round has been evaluated yet: no accuracies" in told.warnings
    for render in (report.as_markdown, report.as_csv, report.as_json, shown):
        assert render([told, alone])


def test_the_commands_say_where_they_wrote_and_what_is_wrong(tmp_path):
    write(tmp_path / "run", THREE)
    ended = launch(["report", str(tmp_path), "--format", "csv", "--out", str(tmp_path / "all.csv")])
    assert (ended.code, ended.out) == (0, f"report: {tmp_path}/all.csv\n"), ended.err
    assert (tmp_path / "all.csv").read_text().count("\n") == 4
    ended = launch(["report", str(tmp_path / "nothing")])
    assert ended.code == 2
    assert ended.err.startswith(f"fedh2l_mpi: error: {tmp_path}/nothing: there is no run")


def said(capsys, *words):
    """What a command wrote to standard output and to standard error."""
    assert commands.execute(commands.parse(list(map(str, words))), World(None)) == 0
    return capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        *(["report", "--format", name] for name in ("terminal", "markdown", "csv", "json")),
        *(["compare", "--format", name] for name in ("terminal", "markdown", "csv", "latex")),
        ["validate"],
    ],
    ids=" ".join,
)
def test_no_name_in_a_file_is_a_code_for_the_terminal_or_a_formula(tmp_path, capsys, words):
    code = "\x1b]0;TITLE\x07"
    run = write(tmp_path / f"r{code}", THREE, architecture=f"={code}")
    with h5py.File(run / "metrics.h5", "r+") as file:
        config = file.attrs["config"].decode().replace("name: fedh2l", r'name: "=\e]0;TITLE\a"')
        file.attrs["config"] = np.bytes_(config.encode())
        file["domain_name"][...] = f"=\n{code}".encode()
    commands.execute(commands.parse([words[0], str(run), *words[1:]]), World(None))
    printed = "".join(capsys.readouterr())
    assert "TITLE" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed
    if words[-1] == "csv":
        assert not [cell for row in csv.reader(io.StringIO(printed)) for cell in row if cell.startswith("=")]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    for folder in ("A", "B"):
        write(tmp_path / folder / "x", THREE)
    out = said(capsys, "report", tmp_path, "--format", "csv").out
    assert {row["run"] for row in csv.DictReader(io.StringIO(out))} == {"A/x", "B/x"}
    out = said(capsys, "report", tmp_path, "--format", "markdown").out
    assert "\n| A/x |" in out
    assert "\n## B/x" in out


def test_a_run_whose_name_is_no_utf_8_is_reported(tmp_path, capsys):
    run = write(tmp_path / os.fsdecode(b"\xe9t\xe9"), THREE)
    said(capsys, "report", run, "--format", "csv", "--out", tmp_path / "report.csv")
    assert "\n?t?," in (tmp_path / "report.csv").read_text()


def test_a_text_on_standard_output_has_nothing_else_in_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(html, "build", lambda looked, summaries, out: None)
    monkeypatch.setattr(comparing, "plot", lambda *given: [])
    run = write(tmp_path / "run", THREE)
    told = said(capsys, "report", run, "--html", "p.html", "--format", "json")
    assert (json.loads(told.out)[0]["name"], told.err) == ("run", "page: p.html\n")
    assert said(capsys, "report", run, "--html", "p.html").out == "page: p.html\n"
    told = said(capsys, "compare", run, "--format", "csv", "--plot", "c.png")
    assert (told.out[:6], told.out.count("\n"), told.err) == ("group,", 2, "plot: c.png\n")


@pytest.mark.parametrize("more", [(), ("--html", "page.html"), ("--baseline", "runs/a")], ids=["text", "page", "gain"])
def test_a_report_of_many_runs_has_one_of_them_open_at_a_time(tmp_path, capsys, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(html, "PLOTS", ("bytes",))
    for name in "abc":
        write(tmp_path / "runs" / name, [[0.5]])
    looked, is_open = runs.load_run, []

    def load_run(path):
        is_open.append(h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE))
        return looked(path)

    monkeypatch.setattr(runs, "load_run", load_run)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Python may import more modules on the way, one file at a time.
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, before[1]))
    try:
        said(capsys, "report", "runs", *more)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(is_open) == 3 + ("--baseline" in more)
    assert len(set(is_open)) == 1


def test_folders_of_runs_are_searched_without_what_a_sweep_set_aside(tmp_path):
    for name in ("b", "a", "a.unfinished-1"):
        write(tmp_path / name, [[0.5]])
    assert [path.parent.name for path in runs.find([str(tmp_path)])] == ["a", "b"]
    assert runs.find([str(tmp_path / "[b]"), str(tmp_path)])[0].parent.name == "b"
    # What a sweep writes next to its runs; a damaged file with the ending of a metrics file is still one to report.
    for name in ("curves.png", "table.md", "table.csv", "a.yaml", "copy.h5"):
        (tmp_path / name).touch()
    matched = runs.find([str(tmp_path / "*")])
    assert [file.relative_to(tmp_path).parts[0] for file in matched] == ["a", "b", "copy.h5"]
    with pytest.raises(UserError, match="there is no run. Name run directories"):
        runs.find([str(tmp_path / "x*")])


@pytest.mark.parametrize(
    "of",
    [
        lambda name: runs.find([name]),
        lambda name: runs.load_run(Path(name)),
        lambda name: watch.follow(Path(name), 0.1),
    ],
    ids=["find", "look at", "watch"],
)
def test_what_the_system_refuses_to_look_at_is_told_with_its_reason(of):
    with pytest.raises(UserError, match=r"^n{300}: cannot be read: File name too long.$"):
        of("n" * 300)


def test_metrics_and_notes_are_shown_with_their_last_values(tmp_path):
    text = shown([summarised(compared_runs.write(tmp_path / "run", trust=0.5))])
    assert re.search(r"metrics and notes.*^ trust +0\.5 +0\.4 +0\.6 *$", text, re.MULTILINE | re.DOTALL)
    assert "metrics and notes" not in shown([summarised(compared_runs.write(tmp_path / "plain"))])
