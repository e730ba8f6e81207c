"""Sweep files: what they expand to, and what is refused before anything runs."""

from pathlib import Path

import pytest
from helpers.launching import ROOT

from fedh2l_mpi.config import Config
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.sweep.sweep_file import Sweep, load

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """Write a sweep file, next to a base config with its own method."""
    (tmp_path / "base.yaml").write_text(
        "rounds: 7\nmethod: {name: fedh2l, local_steps: 3, mutual_steps: 4, combine: sum}\n"
    )

    def _write(text: str) -> Path:
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return path

    return _write


def labels(sweep: Sweep) -> list[str]:
    return [element.label for element in sweep.elements]


def test_axes_give_every_combination_the_last_axis_fastest(write):
    sweep = load(write("axes: {topology.kind: [ring, star], rounds: [1, 2], seed: [0, 5]}"))
    assert labels(sweep) == [
        f"topology.kind={kind},rounds={rounds},seed={seed}"
        for kind in ("ring", "star")
        for rounds in (1, 2)
        for seed in (0, 5)
    ]
    assert sweep.rows == [f"topology.kind={kind}, rounds={rounds}" for kind in ("ring", "star") for rounds in (1, 2)]
    last = sweep.elements[-1].config
    assert (last.topology.kind, last.rounds, last.seed, last.participants) == ("star", 2, 5, 4)
    assert sweep.elements[-1].settings == {"topology.kind": "star", "rounds": "2"}


def test_named_elements_are_crossed_with_the_axes(write):
    sweep = load(
        write(
            "elements:\n  - {name: as it is}\n  - {name: far/away: 2, topology: {kind: random_regular, degree: 2}}\n"
            "axes: {seed: [0, 1]}\n".replace("far/away: 2", "'far/away: 2'")
        )
    )
    assert labels(sweep) == ["as_it_is,seed=0", "as_it_is,seed=1", "far_away_2,seed=0", "far_away_2,seed=1"]
    assert sweep.rows == ["as it is", "far/away: 2"]
    assert sweep.elements[0].config == Config(seed=0, participants=4).resolved(1, launched=False)
    assert sweep.elements[2].config.topology.degree == 2
    assert sweep.elements[2].settings == {"element": "far/away: 2"}


def test_several_lists_of_named_elements_are_crossed_and_their_names_are_axes(write):
    text = (
        "elements:\n  size: [{name: 1 %, seed_set.share: 0.01}, {name: 2 %, seed_set.share: 0.02}]\n"
        "  method: [{name: low, method: seed_supervised}, {name: 'ours, unlabelled', method: fedh2l, "
        "seed_set.labelled: false}, {name: high, method: pooled}]\naxes: {seed: [0, 1]}\n"
        "table: {compare_to: low, gap: {low: low, high: high}}"
    )
    sweep = load(write(text))
    assert sweep.rows == [
        f"{size}, {method}" for size in ("1 %", "2 %") for method in ("low", "ours, unlabelled", "high")
    ]
    assert labels(sweep)[:2] == ["1_,low,seed=0", "1_,low,seed=1"]
    assert sweep.elements[2].settings == {"size": "1 %", "method": "ours, unlabelled"}
    config = sweep.elements[8].config
    assert (config.seed_set.share, config.seed_set.labelled, config.method.name) == (0.02, False, "fedh2l")
    assert sweep.compare_to.by_label["2 %, ours, unlabelled"] == "2 %, low"
    assert sweep.gap.high.by_label["1 %, ours, unlabelled"] == "1 %, high"
    assert sweep.gap.measure == "accuracy_all"


def test_naming_a_method_leaves_the_bases_method_behind_but_not_its_steps(write):
    sweep = load(
        write("base: base.yaml\naxes: {method: [fedh2l, dml, {name: fedmd, warmup_rounds: 2, local_steps: 9}]}")
    )
    methods = [element.config.method for element in sweep.elements]
    assert labels(sweep) == ["fedh2l", "dml", "fedmd,warmup_rounds=2,local_steps=9"]
    assert [method.model_dump()["combine"] for method in methods] == ["joint", None, None]
    assert [(method.local_steps, method.mutual_steps) for method in methods] == [(3, 4), (3, 4), (9, 4)]
    assert all(element.config.rounds == 7 for element in sweep.elements)


def test_a_text_for_a_section_is_its_kind_in_the_base_and_in_an_axis(write):
    elements = load(write("base: base.yaml\nset: {topology: star}\naxes: {data.partition: [iid, shards]}")).elements
    assert [element.config.topology.kind for element in elements] == ["star", "star"]
    assert [element.config.data.partition.kind for element in elements] == ["iid", "shards"]


def test_models_with_arguments_and_shifts_have_short_names(write):
    sweep = load(
        write(
            "axes:\n  models: [[{name: mlp, hidden: [16]}, cnn], [mlp]]\n"
            "  data.partition.shift: [null, [{kind: noise, step: 0.1}, {kind: rotation, step: 9}]]"
        )
    )
    assert sweep.rows == [
        f"models={models}, data.partition.shift={shift}"
        for models in ("mlp(hidden=16)+cnn", "mlp")
        for shift in ("null", "noise(step=0.1)+rotation(step=9)")
    ]
    assert sweep.elements[1].config.models == ("mlp(hidden=[16])", "cnn")
    assert [one.kind for one in sweep.elements[1].config.data.partition.shifts] == ["noise", "rotation"]


def test_a_dotted_key_of_the_method_keeps_the_rest_of_it(write):
    sweep = load(write("base: base.yaml\naxes: {method.temperature: [1.0, 2.5]}"))
    assert labels(sweep) == ["method.temperature=1.0", "method.temperature=2.5"]
    assert [element.config.method.combine for element in sweep.elements] == ["sum", "sum"]


def test_the_settings_for_all_go_over_the_base_and_the_command_line_over_both(write):
    path = write("base: base.yaml\nset: {rounds: 8, method.local_steps: 1}\naxes: {seed: [0]}")
    config = load(path, ["rounds=9"]).elements[0].config
    assert (config.rounds, config.method.local_steps, config.method.mutual_steps) == (9, 1, 4)


def test_a_sweep_over_seeds_alone_has_one_row_named_after_the_file(write):
    assert load(write("axes: {seed: [3, 1]}")).rows == ["some"]


def test_the_number_of_ranks_changes_no_config(write):
    path = write("axes: {seed: [0]}")
    assert load(path, ranks=3).elements == load(path).elements
    with pytest.raises(
        UserError, match=r"--ranks: got 5, but there are 4 participants. Use at most that \(in seed=0\)\."
    ):
        load(path, ranks=5)


def test_a_very_long_name_becomes_a_short_directory_of_its_own(write):
    names = ["x" * 300 + end for end in "ab"]
    one, other = labels(load(write(f"elements: [{{name: {names[0]}}}, {{name: {names[1]}}}]")))
    assert one != other
    assert max(len(one), len(other)) < 200


def test_two_sections_that_yaml_made_one_object_stay_apart(write):
    sweep = load(
        write("elements:\n  - {name: a, topology: &t {kind: star}}\n  - {name: b, topology: *t, topology.tries: 7}\n")
    )
    assert [element.config.topology.tries for element in sweep.elements] == [100, 7]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds: 3", r"some.yaml: this is the config of a run, not the file of a sweep. Fix: write .*base: some.yaml"),
        ("axes: {seed: [0]}\nrounds: 3", r"rounds: unknown key; known here: base, set, axes, elements, table"),
        ("base: some.yaml\naxes: {seed: [0]}", "some.yaml: this is the file of a sweep, not the config of a run"),
        ("axes: {seed: [0]}\ntable: {reach: 0.9}", r"table.reach: got 0.9, must be a list, such as \[1, 2\]"),
        ("axes: {seed: [0]}\ntable: {gap: {low: a}}", "table.gap.high: must be given"),
        (
            "axes: {method: [dml, fedh2l]}\ntable: {gap: {low: dml, high: dml}}",
            "table.gap: low 'dml' and high 'dml' are both 'dml' for 'dml', so there is no gap between them. Fix: name",
        ),
        ("axis: {seed: [0]}", r"axis: unknown key; .*did you mean 'axes'"),
        ("{}", "axes, elements: both are empty, so nothing varies. Give at least one"),
        ("axes: {seed: []}", r"axes.seed: got \[\]; list should have at least 1 item"),
        ("axes: {seed: 3}", r"axes.seed: got 3, must be a list, such as \[1, 2\]"),
        ("axes: {topology.knid: [ring]}", r"axes.topology.knid: unknown key \(did you mean 'topology.kind'"),
        ("axes: {seed: [0], temperature: [1]}", r"axes.temperature: unknown key \(did you mean 'method.temperature'"),
        ("axes: {seed: [0]}\nset: {round: 3}", r"set.round: unknown key \(did you mean 'rounds'"),
        (
            f"axes: {{seed: {list(range(1000))}, rounds: {list(range(1, 1001))}}}\nelements: [{{name: a}}]",
            "axes, elements: 1 x 1000 x 1000 are 1000000 runs, more than the 10000 that a sweep may have. Split it",
        ),
        ("axes: {seed: [0, 1, 0]}", "axes.seed: the value 0 occurs 2 times"),
        ("axes: {seed: [0]}\nset: {seed: 1}", "set seed: an axis or an element sets this key, too"),
        ("axes: {method: [dml]}\nset: {method.temperature: 2}", "set method.temperature: every element names its own"),
        ("axes: {topology: [{kind: ring}], topology.kind: [star]}", "axes: 2 axes set the key topology.kind"),
        ("elements: [{seed: 1}]", "elements.0.name: got None, must be a text that names the element"),
        ("elements: [{name: a}, {name: a}]", "elements: 2 elements have the name 'a'"),
        ("elements: [{name: a, sed: 1}]", r"elements.0.sed: unknown key \(did you mean 'seed'"),
        ("elements: [{name: a, seed: 1}]\naxes: {seed: [0]}", "elements.0.seed: an axis sets this key, too"),
        ("elements: {size: []}", "elements.size: the list is empty"),
        (
            "elements: {a: [{name: x, rounds: 1}], b: [{name: y, rounds: 2}]}",
            "elements: 2 of its lists set the key rounds",
        ),
        ("elements: {a: [{name: x}, {name: x}]}", "elements.a: 2 elements have the name 'x'"),
        ("elements: {a: [{rounds: 1}]}", "elements.a.0.name: got None, must be a text that names the element"),
        ("elements: {seed: [{name: x}]}", "elements.seed: the name 'seed' is that of an axis. Choose another"),
        ("elements: [{name: a b}, {name: A_b}]", "'a b' and 'A_b' would share the directory A_b. Rename one"),
        ("axes: {seed: [0]}\ntable: {colums: []}", r"table.colums: unknown key; .*did you mean 'columns'"),
        ("axes: {seed: [0]}\ntable: {columns: [accuracy]}", r"table.columns: got 'accuracy'; known: accuracy_own, "),
        ("axes: {seed: [0]}\ntable: {reach: [85]}", "table.reach.0: got 85, must be <= 1.0"),
        ("axes: {seed: [0]}\ntable: {reach: [true]}", "table.reach.0: got True"),
        ("axes: {method: [dml]}\ntable: {compare_to: dmm}", r"table.compare_to: got 'dmm'. Known: dml .*mean 'dml'"),
        ("axes: {method: [dml]}\ntable: {gap: {low: dml, high: pool}}", "table.gap.high: got 'pool'. Known: dml"),
        ("axes: {method: [dml]}\ntable: {gap: {low: dml}}", "table.gap.high: "),
        (
            "axes: {seed: [0]}\ntable: {gap: {low: a, high: b, measure: bytes_sent}}",
            "table.gap.measure: got 'bytes_sent'",
        ),
        ("axes: {seed: [0]}\ntable: {costs: [byte]}", "table.costs.0: got 'byte'"),
        ("axes: {seed: [0]}\ntable: {confidence: 95}", "table.confidence: got 95"),
        ("base: nowhere.yaml\naxes: {seed: [0]}", "nowhere.yaml: cannot read the config"),
        ("axes: {seed: [0]}\naxes: {seed: [1]}", "not valid YAML: key 'axes' is given twice"),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_key(write, text, says):
    with pytest.raises(UserError, match=says) as error:
        load(write(text))
    assert "\n" not in str(error.value)


def test_an_override_that_no_element_would_heed_is_refused(write):
    path = write("elements: [{name: a, rounds: 1}, {name: b}]\naxes: {seed: [0]}")
    for override in ("seed=1", "rounds=2"):
        with pytest.raises(UserError, match="--set .*: an axis or an element sets this key, too. Keep one"):
            load(path, [override])
    with pytest.raises(UserError, match=r"--set.sede: unknown key \(did you mean 'seed'"):
        load(path, ["sede=1"])


def test_the_mistakes_of_all_elements_are_told_at_once_each_of_them_once(write):
    with pytest.raises(UserError) as error:
        load(
            write(
                "axes: {topology.degree: [2], rounds: [0, 1], method: [dmm], seed: [0, 1, 2]}\nset: {participants: 0}"
            )
        )
    lines = str(error.value).split("\n  ")[1:]
    assert len(lines) == 4
    assert any(
        line.startswith("rounds: got 0, must be >= 1 (in topology.degree=2,rounds=0,dmm,seed=0") for line in lines
    )
    assert any("did you mean 'dml'" in line and line.endswith("and 3 more)") for line in lines)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_shipped_sweep_is_sound_and_says_what_it_shows(path):
    # The digits of the built-in default lie inside scikit-learn.
    sweep = load(path, [] if "base: null" in path.read_text() else ["data.root=/data"])
    assert {element.config.seed for element in sweep.elements} == {0, 1, 2, 3, 4}
    assert len(sweep.elements) == 5 * len(sweep.rows)
    for word in ("Shows:", "Cost:", "Data:"):
        assert word in path.read_text()
    assert f"{len(sweep.elements)} runs" in path.read_text()


def test_there_are_ready_sweeps():
    assert {path.stem for path in SWEEPS} >= {"methods", "topologies", "label_skew", "small_seed_sets"}
