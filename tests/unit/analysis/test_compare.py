"""Compared runs: what is left out, and the tables and figures of the groups."""

import csv
import io
import re
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
import scipy.stats
from helpers.compared_runs import write

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import compare as comparing
from fedh2l_mpi.analysis import comparison_tables, tables
from fedh2l_mpi.analysis.compare import compare
from fedh2l_mpi.analysis.comparison_tables import render
from fedh2l_mpi.analysis.figures import overlay
from fedh2l_mpi.analysis.run import find
from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.world import World

# Three seeds each; the paired differences of two of them are worked out by hand below.
ACCURACIES = {
    "independent": [0.50, 0.60, 0.55],
    "seed_supervised": [0.70, 0.80, 0.69],
    "fedh2l": [0.72, 0.83, 0.70],
}


@pytest.fixture(scope="module")
def three_methods(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        write(root / f"{method}-{seed}", f"method.name={method}", seed=seed, accuracy=value, sent=10 * (i == 2))
        for i, (method, values) in enumerate(ACCURACIES.items())
        for seed, value in enumerate(values)
    ]


def lines(comparison) -> dict[str, dict[str, str]]:
    return {line["group"]: line for line in csv.DictReader(io.StringIO(render(comparison, "csv")))}


def test_of_the_same_group_and_seed_the_newest_stays(tmp_path):
    write(tmp_path / "new", accuracy=0.8, started="2026-02-01T00:00:00+00:00")
    write(tmp_path / "old", accuracy=0.4)
    found = compare([tmp_path / "old", tmp_path / "new", tmp_path / "new" / "metrics.h5"])
    assert [outcome.values["accuracy_all"] for outcome in found.groups[0].outcomes] == pytest.approx([0.8])
    assert found.notes == [
        f"left out: {tmp_path}/old has the group and seed of {tmp_path}/new, started later",
    ]


def test_runs_without_an_end_result_are_left_out_with_a_note_each(tmp_path):
    sound = write(tmp_path / "sound")
    bad = [
        write(tmp_path / "1", state="stopped", rounds=1),
        write(tmp_path / "2", evaluated=False),
        write(tmp_path / "3"),
        write(tmp_path / "4"),
        write(tmp_path / "5"),
        tmp_path / "6",
    ]
    with h5py.File(bad[2] / "metrics.h5", "r+") as file:
        del file["loss_seed"]
    with h5py.File(bad[3] / "metrics.h5", "r+") as file:
        del file.attrs["config"]
    (bad[4] / "metrics.h5").write_bytes(b"nothing of the kind")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare([sound, *bad])
    assert len(found.groups) == 1
    assert len(found.notes) == 6
    for note, pattern in zip(
        found.notes,
        [
            "1: stopped before round 1: 1 of 2 rounds finished",
            "2: was never evaluated",
            "3: damaged: array 'loss_seed' is missing.*",
            "4: damaged: attribute 'config' is missing or damaged",
            "5/metrics.h5: cannot be read as HDF5.*",
            "6: no such file",
        ],
        strict=True,
    ):
        assert re.fullmatch(f"left out: {re.escape(str(tmp_path))}/{pattern}", note), note
    with pytest.raises(UserError, match="no finished run to compare.\n  left out: .*stopped(.*\n  left out: .*){5}"):
        compare(bad)


def test_an_old_file_without_calibration_is_compared_and_what_is_not_known_is_said(tmp_path):
    paths = [
        write(tmp_path / "old", "recipe=classic"),
        write(tmp_path / "new", "recipe=classic", "method.name=independent"),
    ]
    with h5py.File(paths[0] / "metrics.h5", "r+") as file:
        for name in ("calibration_error", *(field.name for field in metrics.BIN_FIELDS)):
            del file[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(paths, measures=["calibration_error", "accuracy_all"])
        shown = render(found, "terminal")
    assert found.notes == ["calibration_error is unknown for some runs of fedh2l; independent"]
    assert re.search(r"^fedh2l +- +0\.500$", shown, re.MULTILINE)


def test_a_file_of_a_newer_schema_is_compared_with_a_note(tmp_path):
    paths = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    with h5py.File(paths[1] / "metrics.h5", "r+") as file:
        file.attrs["schema_version"] = 2
    found = compare(paths)
    assert len(found.groups[0].outcomes) == 2
    assert found.notes == ["the runs come from 2 schemas of the file (1, 2), so their numbers may differ"]


def test_the_csv_has_all_numbers_in_full(three_methods):
    found = lines(compare(three_methods))
    assert list(found) == ["independent", "seed_supervised", "fedh2l"]
    ours = found["fedh2l"]
    assert (ours["method.name"], ours["baseline"], ours["seeds"]) == ("fedh2l", "independent", "0+1+2")
    # 0.72, 0.83, 0.70: mean 0.75; squares of -0.03, 0.08, -0.05 are 0.0098, over 2 is 0.07 squared.
    assert float(ours["accuracy_all_mean"]) == pytest.approx(0.75)
    assert float(ours["accuracy_all_std"]) == pytest.approx(0.07)
    # Less 0.50, 0.60, 0.55: 0.22, 0.23, 0.15, of mean 0.2.
    assert float(ours["accuracy_all_diff"]) == pytest.approx(0.2)
    expected = scipy.stats.ttest_rel(ACCURACIES["fedh2l"], ACCURACIES["independent"]).confidence_interval(0.95)
    assert (float(ours["accuracy_all_low"]), float(ours["accuracy_all_high"])) == pytest.approx(tuple(expected))
    # Two rounds of 10 bytes for each participant.
    assert [ours[f"bytes_sent_{name}"] for name in ("mean", "std", "n", "pairs")] == ["20.0", "0.0", "3", "3"]
    assert [found["independent"][f"accuracy_all_{name}"] for name in ("diff", "low", "pairs")] == ["", "", ""]
    assert [found["seed_supervised"][f"{name}_best"] for name in ("accuracy_all", "bytes_sent")] == ["0", "0"]


def test_only_what_is_clear_of_every_other_group_is_bold(three_methods, tmp_path):
    # 0.02, 0.03, 0.01 above seed_supervised: 0.02 +- 6.2053 * 0.01 / 1.732 (97.5 %) is not clear of 0; at 80 % it is.
    doubtful, clear = compare(three_methods), compare(three_methods, confidence=0.8)
    assert doubtful.best("accuracy_all") is None
    assert "No group is." in render(doubtful, "markdown")
    assert clear.best("accuracy_all").label == "fedh2l"
    # Two send nothing at all: neither is the better one.
    assert clear.best("bytes_sent") is None
    assert clear.best("accuracy_own") is None
    # Of two that send, the one that sends less is better; one that sends nothing saves no bytes of an exchange.
    silent = compare([path for path in three_methods if "seed_sup" not in path.name], confidence=0.8)
    assert silent.best("bytes_sent") is None
    assert "A group that sends nothing is not compared by its bytes." in render(silent, "markdown")
    costly = [
        write(tmp_path / f"{seed}", "method.name=fedavg", seed=seed, accuracy=0.5 + seed / 100, sent=1000)
        for seed in range(3)
    ]
    assert compare([*three_methods, *costly], confidence=0.8).best("bytes_sent").label == "fedh2l"
    assert re.search(r"\| fedh2l \| 0.900 ± 0.000 \| \*\*0.750 ± 0.070\*\* \|", render(clear, "markdown"))
    assert re.search(r"^fedh2l +0\.900 ± 0\.000 +0\.750 ± 0\.070\*", render(clear, "terminal"), re.MULTILINE)
    assert r"\textbf{0.750 $\pm$ 0.070}" in render(clear, "latex")
    assert lines(clear)["fedh2l"]["accuracy_all_best"] == "1"
    # A gradient's cosine is neither good nor bad.
    assert compare(three_methods, measures=["degree"], confidence=0.5).best("degree") is None


def test_the_terminals_table_says_what_it_shows_and_fits(three_methods, monkeypatch):
    found = compare(three_methods)
    text = render(found, "terminal")
    assert "mean ± sample standard deviation over 3 seeds" in text
    assert "Differences to independent" in text
    # By hand above; t of 2 degrees is 4.30265, the deviation of 0.22, 0.23, 0.15 is 0.043589: +- 0.10828.
    assert re.search(r"^fedh2l .*\+0\.200 \[\+0\.092, \+0\.308\].*\+20 B$", text, re.MULTILINE)
    monkeypatch.setattr(comparison_tables, "is_terminal", lambda: True)
    for width in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        narrow = render(found, "terminal")
        assert max(map(len, narrow.splitlines())) <= width
        assert narrow.count("±") >= 9
        assert narrow.count("[") == 6


def test_a_single_group_is_still_a_table(tmp_path):
    found = compare([write(tmp_path / "a")])
    text = render(found, "terminal")
    assert "one seed" in text
    assert "Differences" not in text
    assert lines(found)["fedh2l"]["accuracy_all_std"] == ""
    assert render(found, "markdown").count("| fedh2l |") == 1


def test_groups_with_unlike_seeds_say_how_many_pairs_there_are(tmp_path):
    for method, seeds in {"independent": [0, 1, 2], "fedh2l": [1, 2, 3], "dml": [2, 7]}.items():
        for seed in seeds:
            write(tmp_path / f"{method}{seed}", f"method.name={method}", seed=seed, accuracy=0.5 + seed / 100)
    text = render(compare(sorted(tmp_path.iterdir()), measures=["accuracy_all"]), "terminal")
    differences = text[text.index("Differences") :]
    assert re.search(r"^dml +1 +\+0\.000 \[-\]$", differences, re.MULTILINE)
    assert re.search(r"^fedh2l +2 +\+0\.000 \[\+0\.000, \+0\.000\]$", differences, re.MULTILINE)
    assert "[-]: fewer than 2 pairs" in differences


def test_the_baseline_is_the_one_asked_for_or_independent_or_the_first(three_methods, tmp_path):
    assert compare(three_methods).baseline.label == "independent"
    assert compare(three_methods, baseline="fedh2l").baseline.label == "fedh2l"
    assert compare(three_methods[3:]).baseline.label == "seed_supervised"
    with pytest.raises(UserError, match="--baseline: got 'fedhl'. Groups: .*; .*did you mean 'fedh2l'"):
        compare(three_methods, baseline="fedhl")


def test_a_group_closes_a_share_of_the_gap_between_two_others(three_methods):
    found = compare([*three_methods], gap=("independent", "seed_supervised"), measures=["accuracy_all", "bytes_sent"])
    ours = lines(found)["fedh2l"]
    # Gains 0.22, 0.23, 0.15 of mean 0.2; gaps 0.2, 0.2, 0.14 of mean 0.18, so the gap is clear of 0.
    assert float(ours["accuracy_all_share"]) == pytest.approx(0.2 / 0.18)
    assert float(ours["accuracy_all_gap"]) == pytest.approx(0.18)
    bounds = [float(ours[f"accuracy_all_share_{name}"]) for name in ("low", "high")]
    gains_minus = [[0.22 - 0.2 * bound, 0.23 - 0.2 * bound, 0.15 - 0.14 * bound] for bound in bounds]
    assert [scipy.stats.ttest_1samp(values, 0.0).pvalue for values in gains_minus] == pytest.approx([0.05, 0.05])
    assert (ours["gap_low"], ours["gap_high"]) == ("independent", "seed_supervised")
    assert "bytes_sent_share" not in ours
    for format in ("terminal", "markdown", "latex"):
        text = render(found, format)
        assert "Share of the gap from independent to seed" in text
        assert f"1.11 [{bounds[0]:.2f}, {bounds[1]:.2f}]" in text
        assert re.search(r"gap .*0\.180 \[", text)
        assert "Fieller" in text
    assert "share" not in render(compare(three_methods), "csv")


def test_controls_of_a_gap_are_matched_within_the_other_keys(tmp_path):
    accuracies = {"independent": 0.5, "fedh2l": 0.6, "pooled": 0.9}
    for size, scale in ((0.1, 1.0), (0.2, 0.5)):
        for method, accuracy in accuracies.items():
            for seed in range(3):
                overrides = ("recipe=classic", f"method.name={method}", f"seed_set.share={size}")
                write(tmp_path / f"{size}{method}{seed}", *overrides, seed=seed, accuracy=accuracy * scale)
    paths = sorted(tmp_path.iterdir())
    found = compare([path for path in paths if "0.2pooled" not in path.name], gap=("independent", "pooled"))
    assert found.notes == []
    shares = {group.label: found.share_of_gap(group, "accuracy_all").share for group in found.groups}
    # With a single pooled group, its size does not count: (0.3 - 0.25) / (0.9 - 0.25).
    assert sorted(shares.values()) == pytest.approx(sorted([0, 0.25, 1, 0, 0.05 / 0.65]))
    matched = compare(paths, gap=("independent", "pooled"))
    shares = [matched.share_of_gap(group, "accuracy_all").share for group in matched.groups]
    assert sorted(shares) == pytest.approx([0, 0, 0.25, 0.25, 1, 1])
    third = write(tmp_path / "third", "recipe=classic", "seed_set.share=0.3")
    assert compare([*paths, third], gap=("independent", "pooled")).notes == [
        "no group of independent belongs to fedh2l, seed_set.share=0.3",
        "no group of pooled belongs to fedh2l, seed_set.share=0.3",
    ]


def test_other_mistakes_are_told(three_methods):
    with pytest.raises(UserError, match="--measure: got 'accuracy'. Known: accuracy_own.*did you mean"):
        compare(three_methods, measures=["accuracy"])
    with pytest.raises(UserError, match="--confidence: got 95, must be between 0 and 1"):
        compare(three_methods, confidence=95)
    with pytest.raises(UserError, match="--format: got 'tex'. Known: terminal"):
        render(compare(three_methods), "tex")
    with pytest.raises(UserError, match="--gap: got 'poled'. Known: independent; .*"):
        compare(three_methods, gap=("independent", "poled"))
    with pytest.raises(UserError, match="--gap: a gap is one of accuracies. Give --measure accuracy_all"):
        compare(three_methods, gap=("independent", "fedh2l"), measures=["bytes_sent"])
    with pytest.raises(UserError, match="no run was named"):
        compare([])


AWKWARD = tables.Table(
    "50 % & more",
    ["", "all\ndomains", "a_b"],
    [["[x] é_1 <b> {c} #~^$\\", "0.5 ± 0.1", "-0.004 [-0.01, +0.1]"], ["*star|", "1", "+1 B"]],
    "A caption_of\ntwo lines.",
    {(0, 1)},
)


def test_latex_escapes_whatever_stands_in_a_name():
    text = tables.latex(AWKWARD)
    rows = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    assert rows == [
        r"{}[x] é\_1 \textless{}b\textgreater{} \{c\} \#\textasciitilde{}\textasciicircum{}\$\textbackslash{}"
        r" & \textbf{0.5 $\pm$ 0.1} & $-$0.004 [$-$0.01, +0.1] \\",
        r"{}*star\textbar{} & 1 & +1 B \\",
    ]
    assert r"\begin{tabular}{lrr}" in text
    assert r"\caption{50 \% \& more. A caption\_of two lines.}" in text
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 1
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1


def test_latex_has_as_many_cells_as_columns_and_names_its_package(three_methods, tmp_path):
    text = render(compare(three_methods), "latex")
    assert text.startswith("% needs \\usepackage{booktabs}")
    for part in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(l[r]+)\}", part).group(1))
        rows = [line for line in part.split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 3
        assert {line.count(" & ") + line.startswith("& ") for line in rows} == {columns - 1}
    if shutil.which("pdflatex"):
        file = tmp_path / "table.tex"
        file.write_text(
            "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
            + text + tables.latex(AWKWARD) + "\\end{document}\n", encoding="utf-8",
        )  # fmt: skip
        command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", file.name]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0


def test_a_table_that_is_too_wide_goes_on_below_with_the_names_of_its_rows():
    table = tables.Table("T", ["", "a", "b", "c"], [["row", "12345678"] + ["1"] * 2], "caption", {(0, 3)})
    parts = tables.folded(table, 13)
    assert [list(part.headings) for part in parts] == [["", "a"], ["", "b", "c"]]
    assert [list(part.rows[0]) for part in parts] == [["row", "12345678"], ["row", "1", "1"]]
    assert [(part.title, part.caption, set(part.bold)) for part in parts] == [
        ("T", "", set()),
        ("", "caption", {(0, 2)}),
    ]
    assert len(tables.folded(table, 80)) == 1


def test_the_groups_are_drawn_also_where_not_all_runs_were_evaluated_in_the_same_rounds(three_methods, tmp_path):
    longer = write(tmp_path / "longer", "method.name=independent", seed=9, rounds=3)
    comparing.plot(compare([*three_methods[:4], longer], ignore=["rounds"]), tmp_path / "groups.png")
    assert (tmp_path / "groups.png").stat().st_size > 10_000


def test_a_group_that_cannot_be_drawn_is_told_and_none_at_all_is_refused(tmp_path):
    for rounds in (3, 4):
        write(tmp_path / f"{rounds}", rounds=rounds, seed=rounds, evaluated="once")
    write(tmp_path / "other", "method.name=independent", rounds=3)
    with pytest.raises(UserError, match="there is nothing to draw, because no group"):
        comparing.plot(compare([tmp_path / "3", tmp_path / "4"], ignore=["rounds"]), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    notes = comparing.plot(compare(sorted(tmp_path.iterdir()), ignore=["rounds"]), tmp_path / "one.png")
    assert list(notes) == ["not drawn: fedh2l has no round in which all of its runs were evaluated"]


def test_groups_are_ordered_and_named_as_a_paper_has_them(three_methods, tmp_path):
    found = compare(
        three_methods, order=["fedh2l"], names=["fedh2l=FedH2L", "independent=On its own"], baseline="fedh2l"
    )
    assert [group.label for group in found.groups] == ["FedH2L", "On its own", "seed_supervised"]
    assert found.baseline.label == "FedH2L"
    assert list(lines(found)) == ["FedH2L", "On its own", "seed_supervised"]
    assert lines(found)["FedH2L"]["method.name"] == "fedh2l"
    # A value of an axis stands for all groups that have it, and a name for the part of every label.
    for method in ("independent", "fedh2l"):
        for share in (0.1, 0.2, 0.3):
            write(tmp_path / f"{method}{share}", "recipe=classic", f"method.name={method}", f"seed_set.share={share}")
    paths = sorted(tmp_path.iterdir())
    asked = ["independent, seed_set.share=0.2", "0.3,fedh2l"]
    found = compare(
        paths, order=asked, names=["fedh2l=FedH2L", "seed_set.share=0.3=30 %"], gap=("independent", "fedh2l")
    )
    assert [group.label for group in found.groups] == [
        "independent, seed_set.share=0.2",
        "FedH2L, 30 %",
        "independent, 30 %",
        "FedH2L, seed_set.share=0.1",
        "FedH2L, seed_set.share=0.2",
        "independent, seed_set.share=0.1",
    ]
    assert found.gap[1].by_label["independent, 30 %"] == "FedH2L, 30 %"
    assert [found.share_of_gap(group, "accuracy_all").gap.pairs for group in found.groups] == [1] * 6


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"order": ["fedhl"]}, "--order: got 'fedhl'. Known: .*did you mean 'fedh2l'"),
        ({"names": ["fedhl=X"]}, "--names: got 'fedhl'. Known: independent; .*did you mean 'fedh2l'"),
        ({"names": ["fedh2l"]}, "--names: got 'fedh2l', must be OLD=NEW, such as fedh2l=FedH2L"),
        ({"names": ["fedh2l=A", "independent=A"]}, "--names: two groups would be called 'A'. Fix: give each a name"),
    ],
)
def test_a_wrong_order_or_name_is_told(three_methods, given, told):
    with pytest.raises(UserError, match=told):
        compare(three_methods, **given)


def test_a_folder_s_groups_are_in_the_order_of_its_sweep(tmp_path):
    for name in ("seed_supervised", "fedh2l", "independent"):
        write(tmp_path / name, f"method.name={name}")
    (tmp_path / "table.csv").write_text("label,seed\nseed_supervised,0\nindependent,0\nfedh2l,0\n")
    for name in ("curves.png", "table.md", "fedh2l.yaml", "dml.log"):
        (tmp_path / name).touch()
    (tmp_path / "dml").mkdir()
    # A folder, a glob of ours, and in the order of the arguments a glob that a shell has resolved.
    for given in ([str(tmp_path)], [str(tmp_path / "*")]):
        groups = compare(find(given)).groups
        assert [group.label for group in groups] == ["seed_supervised", "independent", "fedh2l"]
    resolved = sorted(str(path) for path in tmp_path.iterdir() if path.name != "dml")
    assert [group.label for group in compare(find(resolved)).groups] == ["fedh2l", "independent", "seed_supervised"]
    with pytest.raises(UserError, match="there is no run among what was named"):
        find([str(tmp_path / "table.md"), str(tmp_path / "curves.png")])
    (tmp_path / "table.csv").write_text("something else\nindependent\n")
    assert [group.label for group in compare(find([str(tmp_path)])).groups] == [
        "fedh2l",
        "independent",
        "seed_supervised",
    ]


def test_numbers_are_written_in_per_cent_and_with_as_many_digits_as_asked(three_methods):
    found = compare(three_methods, gap=("independent", "seed_supervised"))
    text = render(found, "terminal", tables.Numbers(percent=True))
    # The numbers of the tests above, times 100.
    assert re.search(r"^fedh2l +90\.0 ± 0\.0 +75\.0 ± 7\.0 .* 20 B$", text, re.MULTILINE)
    assert re.search(r"^fedh2l .*\+20\.0 \[\+9\.2, \+30\.8\].*\+20 B$", text, re.MULTILINE)
    assert "gap +18.0 [" in text
    assert "domains [%]" in text
    assert "75.00 ± 7.00" in render(found, "markdown", tables.Numbers(percent=True, digits=2))
    assert "| 0.75 ± 0.07 |" in render(found, "markdown", tables.Numbers(digits=2))


def test_latex_takes_a_label_and_a_caption_for_its_first_table(three_methods):
    found = compare(three_methods, gap=("independent", "seed_supervised"))
    text = render(found, "latex", None, "tab:methods", "50 % & more")
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:methods", "tab:methods-differences", "tab:methods-gap"]
    assert re.findall(r"\\caption\{(.*)\}", text)[0] == r"50 \% \& more"
    assert text.count("Student") == 2
    assert (
        re.findall(r"\\label\{(.*)\}", render(compare(three_methods), "latex", label="tab:m"))[1] == "tab:m-differences"
    )
    assert "label" not in render(found, "latex")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--label", "tab:a"], "--label: got one, but only --format latex has it"),
        (["--caption", "A", "--format", "markdown"], "--caption: got one, but only --format latex has it"),
        (["--width", "85"], "--width: this is the width of --plot. Fix: add --plot FILE."),
        (["--width", "wide", "--plot", "a.png"], "got 'wide', must be column, page, or a width in mm"),
        (["--width", "20", "--plot", "a.png"], "width of a figure: got 20 mm, must be from 60 to 500"),
        (["--digits", "2", "--format", "csv"], "--digits: csv has all digits"),
        (["--digits", "-1"], "got '-1', must be a whole number from 0 to 9"),
        (["--percent", "--format", "csv"], "--percent: csv has fractions with all digits"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(three_methods, words, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        commands.execute(commands.parse(["compare", str(three_methods[0]), *words]), World(None))


def test_the_figure_has_a_panel_for_each_measure_and_names_whom_it_does_not_show(three_methods, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(overlay, "save", lambda drawn, out: figures.append(drawn))
    found = compare(three_methods, measures=["accuracy_worst", "loss_private"])
    notes = comparing.plot(found, tmp_path / "a.png", ["accuracy_worst"], 85.0, percent=True)
    assert list(notes) == [
        f"not drawn in accuracy_worst against bytes: {name}, sends nothing"
        for name in ("independent", "seed_supervised")
    ]
    (figure,) = figures
    assert figure.get_figwidth() * 25.4 == pytest.approx(85)
    rounds, sent = figure.axes
    assert (rounds.get_xlabel(), rounds.get_ylabel()) == ("rounds done", "worst-domain test accuracy [%]")
    assert [line.get_label() for line in rounds.get_lines()] == ["independent", "seed_supervised", "fedh2l"]
    np.testing.assert_allclose([line.get_ydata() for line in rounds.get_lines()], [[20, 20]] * 3)
    np.testing.assert_allclose(sent.get_lines()[2].get_xdata(), [10, 20])
    assert sent.get_title(loc="right").replace("\n", " ") == "not shown (sends nothing): independent; seed_supervised"
    # A measure that was never recorded has an empty panel with the reason.
    notes = comparing.plot(found, tmp_path / "a.png", ["accuracy_worst", "loss_private"])
    assert [note for note in notes if "fedh2l" in note] == [
        "not drawn in loss_private against rounds: fedh2l, not recorded"
    ]
    assert [axes.get_ylabel() for axes in figures[1].axes] == ["worst-domain test accuracy", "loss private [nats]"]


def test_an_array_of_a_run_s_own_is_a_measure_and_unknown_for_runs_without_it(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(overlay, "save", lambda drawn, out: figures.append(drawn))
    for seed in range(2):
        write(tmp_path / f"mine{seed}", "method.name=dml", seed=seed, trust=0.3 + seed / 10)
        write(tmp_path / f"other{seed}", "method.name=fedmd", seed=seed)
    found = compare(sorted(tmp_path.iterdir()), measures=["trust"])
    assert found.notes == ["trust is unknown for some runs of fedmd"]
    # 0.3 and 0.4 are 0.35 with a deviation of 0.0707.
    assert re.search(r"^dml +0\.350 ± 0\.071$", render(found, "terminal"), re.MULTILINE)
    assert lines(found)["fedmd"]["trust_mean"] == ""
    assert list(comparing.plot(found, tmp_path / "a.png", ["trust"])) == [
        "not drawn in trust against rounds: fedmd, not recorded"
    ]
    np.testing.assert_allclose(figures[0].axes[0].get_lines()[0].get_ydata(), [0.35, 0.35])
    with pytest.raises(UserError, match="--measure: got 'thrust'. Known: .*trust.*did you mean 'trust'"):
        compare(sorted(tmp_path.iterdir()), measures=["thrust"])


def test_comparing_needs_neither_torch_nor_mpi_nor_matplotlib_and_scipy_only_for_intervals():
    code = (
        "import sys; from fedh2l_mpi.analysis import compare\n"
        "assert not {'torch', 'mpi4py', 'matplotlib', 'scipy', 'pandas', 'xarray'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_without_scipy_the_message_says_what_to_install(three_methods, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(
        UserError,
        match=r"intervals: scipy is not installed. Fix: install the extra \[analysis\], as in pip install '.\[analysis",
    ):
        render(compare(three_methods), "terminal")
