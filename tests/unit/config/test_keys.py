"""The keys of the config file: found by section or word, and as a JSON Schema for editors."""

import re
from typing import Any

import pytest
import yaml
from helpers.launching import ROOT
from jsonschema import Draft202012Validator

from fedh2l_mpi.config.keys import json_schema, select_keys
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.sweep import sweep_file

SCHEMA = json_schema()


def problems(config: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(SCHEMA).iter_errors(config)
    ]


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_accepts_every_shipped_config(path):
    assert problems(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_accepts_every_run_of_a_shipped_sweep(path):
    for element in sweep_file.load(path).elements:
        assert problems(yaml.safe_load(element.config.to_yaml())) == []


def test_the_schema_accepts_a_method_and_a_model_of_the_users_own():
    own = {"method": {"name": "mine:Mine", "options": {"a": [1]}, "weight_kd": 2}, "models": ["mine:Net"]}
    assert problems(own) == []


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"method": {"temprature": 2.0}}, "method: .*'temprature' was unexpected"),
        ({"methods": {}}, "'methods' was unexpected"),
        ({"topology": {"kind": "rign"}}, "topology.kind: 'rign' is not one of"),
        ({"rounds": 0}, "rounds: 0 is less than the minimum of 1"),
        ({"rounds": "many"}, "rounds: 'many' is not of type 'integer'"),
        ({"optimizer": {"betas": [0.9, 0.99, 0.999]}}, "optimizer.betas: .*too long"),
    ],
)
def test_the_schema_refuses_a_wrong_config_by_its_key(config, says):
    (found,) = problems(config)
    assert re.search(says, found), found


def test_keys_are_selected_by_section_key_or_word():
    assert {key.name.split(".")[0] for key in select_keys("topology")} == {"topology"}
    assert all(key.name.startswith("data.partition.") for key in select_keys("data.partition"))
    assert [key.name for key in select_keys("method.temperature")] == ["method.temperature"]
    assert "exchange.codec" in [key.name for key in select_keys("bfloat16")]
    assert len(select_keys()) > 40
    with pytest.raises(UserError, match="no key contains 'topologie'.*did you mean 'topology'"):
        select_keys("topologie")
