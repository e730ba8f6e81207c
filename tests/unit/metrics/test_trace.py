"""The timeline of a run in one process: everything once, nothing across another, and the seconds that the file has."""

from pathlib import Path

import numpy as np
import pytest
from helpers import trace_events

from fedh2l_mpi import api, metrics
from fedh2l_mpi.cli import commands
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.metrics import trace as timeline
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

SETTINGS = ["rounds=4", "participants=3", "evaluation.every=2", "checkpoint.every=2", "method.local_steps=2"]


def run(folder: Path, trace: Path | None, *more: str) -> metrics.RunMetrics:
    settings = loading.load(None, [*SETTINGS, *more]).resolved(1, launched=False)
    directory = RunDirectory(folder)
    api.assemble(settings, World(None), RunReservation(directory), trace=trace).run()
    return metrics.read(directory.metrics)


@pytest.mark.parametrize("cohort", [[], [0, 2]], ids=["alone", "together"])
def test_every_phase_is_there_once_nests_soundly_and_adds_up_to_the_files_seconds(tmp_path, cohort):
    more = ["models=[mlp, cnn]", "devices.batching=like"] if cohort else []
    # Whose numbers do not depend on who steps together, either.
    plain, traced = run(tmp_path / "plain", None, *more[:1]), run(tmp_path / "traced", tmp_path / "out.json", *more)
    for name, values in plain.arrays.items():
        if name not in metrics.TIMINGS:
            assert values.tobytes() == traced[name].tobytes(), name
    events = trace_events.read(tmp_path / "out.json")
    for phase in ("publish", "local", "wait", "mutual", "evaluate"):
        told = np.zeros((4, 3))
        own = []
        for event in trace_events.spans(events, phase):
            at = event["args"]
            if "participant" in at:
                told[at["round"], at["participant"]] += event["dur"]
                own.append((at["round"], at["participant"]))
            elif "cohort" in at:
                assert (phase in ("local", "mutual"), at["cohort"]) == (True, cohort)
                told[at["round"], cohort] += event["dur"] / len(cohort)
                own += [(at["round"], index) for index in cohort]
            else:
                assert at["participants"] == [0, 2]
                assert phase in ("publish", "wait")
                told[at["round"]] += event["dur"] / 3
        rounds = {"evaluate": [1, 3], "wait": []}.get(phase, range(4))
        assert sorted(own) == [(r, i) for r in rounds for i in range(3)], phase
        # To the file's three places of a microsecond, and the same clock.
        assert told / 1e6 == pytest.approx(np.nan_to_num(traced[f"seconds_{phase}"]), abs=1e-6), phase
    for name, rounds in {"wait": range(4), "write": range(4), "agree": range(4), "checkpoint": [1, 3]}.items():
        assert [event["args"]["round"] for event in trace_events.spans(events, name)] == list(rounds), name
    work = trace_events.spans(events, "checkpoint writer")
    assert [event["name"] for event in work] == ["write checkpoint", "commit checkpoint"] * 2
    assert {event["tid"] for event in work} == {timeline.CHECKPOINT_WRITER}
    # One process sends no messages.
    assert not [event for event in events if event["ph"] == "b"]
    assert not (tmp_path / "traced" / "trace").exists()


def test_a_part_that_was_cut_is_read_up_to_its_last_whole_event(tmp_path):
    part = tmp_path / "rank-0000.json"
    part.write_text('[\n{"name":"a","args":{}},\n{"name":"b","args":{}},\n{"name":"c","ar')
    assert list(timeline.events_of(part)) == ['{"name":"a","args":{}}', '{"name":"b","args":{}}']


def test_a_file_that_exists_or_cannot_be_made_is_refused_before_the_run_has_a_directory(tmp_path):
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    wrong = {
        taken: "already exists",
        tmp_path / "none" / "out.json": "No such file or directory",
        tmp_path / ("a" * 300): "cannot be written: File name too long",
    }
    for out, message in wrong.items():
        words = ["--set", "rounds=1", "--out", str(tmp_path / "run"), "--trace", str(out)]
        with pytest.raises(UserError, match=message):
            commands.execute(commands.parse(words), World(None))
    assert not (tmp_path / "run").exists()
    assert taken.read_text() == "{}"
    # What the parts are joined in, before it gets its name.
    unfinished = tmp_path / "out.json.new"
    unfinished.write_text("somebody's")
    with pytest.raises(UserError, match=r"out\.json is first written as .*out\.json\.new, which already exists"):
        timeline.check(tmp_path / "out.json", RunDirectory(tmp_path / "run"), resumes=False)
    assert unfinished.read_text() == "somebody's"
    with pytest.raises(UserError, match="--trace: --check runs nothing"):
        commands.parse(["--check", "--trace", "out.json"])


def test_only_its_own_timeline_is_replaced_by_a_run_that_is_gone_on_with(tmp_path):
    directory, out, other = RunDirectory(tmp_path / "run"), tmp_path / "out.json", tmp_path / "other.json"
    directory.traces.mkdir(parents=True)
    (directory.traces / "begun.json").write_text(f'{{"begun_s": 0, "out": "{out}"}}')
    for path in (out, other):
        path.write_text("{}")
    left = tmp_path / "out.json.new"
    left.write_text("[")
    timeline.check(out, directory, resumes=True)
    assert not left.exists()
    for path, resumes in ((out, False), (other, True)):
        with pytest.raises(UserError, match="already exists"):
            timeline.check(path, directory, resumes)
