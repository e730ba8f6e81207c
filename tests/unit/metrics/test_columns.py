"""A run's own arrays: declared, written, read, resumed, stacked with runs that lack them."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import written_runs

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import dataset, export
from fedh2l_mpi.analysis.run import load_run
from fedh2l_mpi.analysis.validation import validate
from fedh2l_mpi.metrics.columns import ATTRIBUTE, Columns
from fedh2l_mpi.metrics.rows import pack_row

TRUST = metrics.Field("trust", "f8", "1", "share of teachers that agree with the label")
F1 = metrics.Field("macro_f1", "f8", "1", "F1, mean over classes")
OWN = Columns((TRUST,), (F1,))
P, D = 3, 2


def table(round_index: int) -> np.ndarray:
    """A round's rows, with own columns that name their round, participant and domain."""
    plain = written_runs.table(round_index)
    own = [[round_index + i / 10, *(round_index + i / 10 + d / 100 for d in range(D))] for i in range(P)]
    return np.hstack([plain, own])


def header() -> metrics.RunHeader:
    return replace(written_runs.header(), columns=OWN)


def write(path, head, rounds, make, kept=None):
    writer = metrics.MetricsWriter(path, head, kept)
    if kept is None:
        writer.add_graph(0, [(0, 1), (1, 2), (0, 2)])
    digests = [writer.append(round_index, make(round_index)) for round_index in range(kept or 0, rounds)]
    writer.close("complete")
    return digests


def test_own_arrays_are_read_under_their_names_and_survive_a_resume(tmp_path):
    path = tmp_path / "metrics.h5"
    digests = write(path, header(), 4, table)
    whole = metrics.read(path)
    assert whole.columns == OWN
    assert whole["trust"][3].tolist() == [3.0, 3.1, 3.2]
    assert whole["macro_f1"][2, 1].tolist() == [2.1, 2.11]
    assert metrics.rows_digest(path, 4) == digests[-1]
    for name, values in metrics.unpack_table(table(3), D, OWN).items():
        assert np.array_equal(values, whole[name][3], equal_nan=True), name

    assert write(path, header(), 4, table, kept=2)[-1] == digests[-1]
    again = metrics.read(path)
    for name in metrics.unpack_table(table(0), D, OWN):
        assert np.array_equal(again[name], whole[name], equal_nan=True), name
    with pytest.raises(ValueError, match=r"has the columns \['trust', 'macro_f1'\], but the run has \[\]"):
        metrics.MetricsWriter(path, written_runs.header(), kept=2)


def test_a_run_without_own_arrays_has_no_trace_of_them(tmp_path):
    path = tmp_path / "metrics.h5"
    write(path, written_runs.header(), 2, written_runs.table)
    run = metrics.read(path)
    assert ATTRIBUTE not in run.attributes
    assert not run.columns
    assert set(run.arrays) == {*(scale.name for scale in metrics.SCALES), *metrics.DIMENSIONS}


def test_a_row_has_own_values_last_and_nan_where_nothing_is_given():
    plain = pack_row({}, [0.5, 0.25], [1.0, 2.0])
    row = pack_row({"trust": 0.75}, [0.5, 0.25], [1.0, 2.0], columns=OWN)
    assert metrics.row_width(D, OWN) == len(row) == len(plain) + 1 + D
    assert np.array_equal(row[: len(plain)], plain, equal_nan=True)
    assert np.array_equal(row[len(plain) :], [0.75, np.nan, np.nan], equal_nan=True)


def test_readers_show_own_arrays(tmp_path):
    pytest.importorskip("xarray")
    own, plain = tmp_path / "own" / "metrics.h5", tmp_path / "plain" / "metrics.h5"
    for path in (own, plain):
        path.parent.mkdir()
    write(own, header(), 3, table)
    write(plain, written_runs.header(), 3, written_runs.table)
    with dataset.open_run(own) as run:
        assert run.trust.dims == ("round", "participant")
        assert run.macro_f1.attrs == {"units": "1", "long_name": "F1, mean over classes"}
        assert run.macro_f1.sel(round=2, participant=1, domain=1).item() == 2.11
    both = dataset.open_runs([own, plain])
    assert both.trust.sel(run="own").values[2].tolist() == [2.0, 2.1, 2.2]
    assert np.isnan(both.trust.sel(run="plain")).all()
    assert both.trust.attrs["long_name"] == TRUST.long_name

    export.export({"own": load_run(own)}, "csv", tmp_path / "tables")
    head, *rows = (tmp_path / "tables" / "rounds.csv").read_text().splitlines()
    assert head.endswith(",trust")
    assert rows[-1].endswith(",2.2")
    assert (tmp_path / "tables" / "domains.csv").read_text().splitlines()[0].endswith(",loss,macro_f1")

    findings = validate(own, programs=True)
    told = [finding.what for finding in findings if finding.group == "arrays"]
    with h5py.File(own) as file:
        assert told[0] == f"{len(file)} arrays with their dimensions and units"
    assert not [finding for finding in findings if "trust" in finding.what]
    # The values here are names of their places, not scores of evaluated rounds.
    wrong = [finding.what for finding in findings if finding.level == "error" and "macro_f1" in finding.what]
    assert [what.partition(", must be ")[2] for what in wrong] == [
        "NaN in a round without evaluation (18 such)",
        "from 0 to 1 (11 such)",
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("F1", "is not a name of an array"),
        ("with space", "is not a name of an array"),
        ("accuracy_all", "is the name of an array that every run has"),
        ("participant", "is the name of an array that every run has"),
        ("rounds_done", "is the name of an array that every run has"),
        ("trust", "is the name of another array of this run"),
    ],
)
def test_a_name_that_an_array_cannot_have_is_refused(name, why):
    with pytest.raises(ValueError, match=why):
        Columns((TRUST,), (metrics.Field(name, "f8", "1", "anything"),))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"by_participant": [["a", 1, "b"]]}', '{"by_domain": [["loss", "1", "x"]]}']
)
def test_a_damaged_description_is_a_problem_of_the_file_and_no_crash(tmp_path, text):
    path = tmp_path / "metrics.h5"
    write(path, header(), 2, table)
    with h5py.File(path, "r+") as file:
        file.attrs[ATTRIBUTE] = np.bytes_(text.encode())
    run = metrics.look(path)
    assert [problem for problem in run.problems if problem.startswith(f"attribute {ATTRIBUTE!r} is damaged")]
    assert run["accuracy_all"].shape == (2, P)
