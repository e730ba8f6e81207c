"""Values of YAML text: the numbers of YAML 1.2, and text that every reader understands alike."""

import math

import pytest
import yaml

from fedh2l_mpi.config import loading, yaml_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Source: YAML 1.2.2, example 10.9, "Core Tag Resolution", and the table above it.
        *(("010", 10), ("0100", 100), ("08", 8), ("-019", -19), ("0o10", 8), ("0x3A", 58), ("+12", 12)),
        *(("1e-4", 1e-4), ("12e03", 12000.0), ("-2E+05", -2e5), (".5", 0.5), ("0.", 0.0), ("-.INF", -math.inf)),
        # Numbers of YAML 1.1 only.
        *((text, text) for text in ("1:30", "1:30:00", "1_000", "0b11", "2024-01-01", "=", "1.5.2", "-0o7")),
        *(("off", False), ("yes", True), ("On", True), ("NO", False), ("y", "y"), ("~", None), ("", None)),
        *(("'010'", "010"), ("!!str 010", "010"), ("!!float 1", 1.0)),
    ],
)
def test_a_plain_text_has_the_value_of_yaml_1_2_and_a_switch_that_of_yaml_1_1(text, value):
    found = yaml_text.read(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["0o10", "1e5", "12E3", "010", "1:30", "1_000", "off", "2024-01-01", "=", "<<", ""])
def test_text_that_any_version_takes_for_something_else_is_written_in_quotes(text):
    written = yaml_text.write({"key": text})
    assert yaml_text.read(written) == yaml.safe_load(written) == {"key": text}


def test_a_time_with_colons_has_its_meaning_still():
    for text, seconds in (("1:30:00", 5400), ("1:30", 90), ("1-12:00", 129_600), ("0090", 90)):
        assert loading.load(None, [f"run.max_wall={text}"]).run.max_wall_s == seconds


BASE = "a: &a {key: a, x: a, from_a: a}\nb: &b {<<: *a, key: b, y: b}\nc: &c {key: c, x: c, from_c: c}\n"


@pytest.mark.parametrize("merge_of_pyyaml", ["as installed", "never used"])
@pytest.mark.parametrize(
    ("mapping", "value"),
    [
        # Source: YAML 1.1, "Merge Key Language-Independent Type". Own keys win, then the mapping that comes first.
        ("{<<: *b}", {"key": "b", "x": "a", "from_a": "a", "y": "b"}),
        ("{x: own, <<: *b}", {"key": "b", "x": "own", "from_a": "a", "y": "b"}),
        ("{<<: [*a, *c]}", {"key": "a", "x": "a", "from_c": "c", "from_a": "a"}),
        ("{<<: [*c, *a], y: own}", {"key": "c", "x": "c", "from_a": "a", "from_c": "c", "y": "own"}),
        # Merges within what is merged; `a` is there by two ways.
        ("{<<: [*b, *c]}", {"key": "b", "x": "a", "from_c": "c", "from_a": "a", "y": "b"}),
        ("{<<: [*c, *b], y: own}", {"key": "c", "x": "c", "from_a": "a", "y": "own", "from_c": "c"}),
        ("{<<: [*a, *b]}", {"key": "a", "x": "a", "from_a": "a", "y": "b"}),
        ("{<<: {<<: {<<: *c, key: 1}, x: 2}, from_c: 3}", {"key": 1, "x": 2, "from_c": 3}),
        ("{<<: [{<<: [*a, *c], y: 1}, {<<: *b, z: 2}]}", {"key": "a", "x": "a", "from_a": "a", "y": 1, "z": 2}
         | {"from_c": "c"}),
    ],
)  # fmt: skip
def test_a_merge_has_one_result_under_every_version_of_pyyaml(monkeypatch, merge_of_pyyaml, mapping, value):
    if merge_of_pyyaml == "never used":
        # PyYAML 6.0.4 lets another mapping win than the versions before, for keys of one character and shared nodes.
        monkeypatch.delattr(yaml.constructor.SafeConstructor, "flatten_mapping")
    assert yaml_text.read(f"{BASE}merged: {mapping}\n")["merged"] == value
