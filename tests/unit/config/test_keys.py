"""The keys of the config file: found by section or word, and as a JSON Schema for editors."""

import re
from typing import Any

import pytest
import yaml
from helpers.launching import ROOT
from jsonschema import Draft202012Validator

from fedh2l_mpi.config import Config, classic, recipes
from fedh2l_mpi.config.keys import json_schema, select_keys
from fedh2l_mpi.config.loading import validate
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.sweep import sweep_file

SCHEMA = json_schema()


CODEC = recipes.STANDARD["exchange.codec"]


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
        ({"topology": "rign"}, "topology: 'rign' is not valid"),
        ({"topology": {"kind": "rign"}}, "topology.kind: 'rign' is not one of"),
        ({"method": {"temperature": 0}}, "method.temperature: 0 is less than the minimum of 0.01"),
        ({"method": {"combine": "gme"}}, "method.combine: 'gme' is not one of"),
        ({"method": {"name": "fedhl2"}}, "method.name: 'fedhl2' is not valid"),
        ({"method": {"name": "fedavg", "temperature": 2.0}}, "method.temperature: 2.0 is not of type 'null'"),
        ({"method": {"proximal": 0.1}}, "method.proximal: 0.1 is not of type 'null'"),
        ({"topology": {"degree": 3}}, "topology.degree: 3 is not of type 'null'"),
        ({"exchange": {"codec": "top_k"}}, "exchange: 'top_k' is a required property"),
        ({"seed_set": {"share": 1.0}}, "seed_set.share: 1.0 is greater than or equal to the maximum of 1"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr: 0 is less than or equal to the minimum of 0"),
        ({"optimizer": {"per_model": {"mlp": {"rl": 0.1}}}}, "optimizer.per_model.mlp: 'rl' is not one of"),
        ({"rounds": 0}, "rounds: 0 is less than the minimum of 1"),
        ({"rounds": "many"}, "rounds: 'many' is not of type 'integer'"),
        ({"optimizer": {"betas": [0.9, 0.99, 0.999]}}, "optimizer.betas: .*too long"),
    ],
)
def test_the_schema_refuses_a_wrong_config_by_its_key(config, says):
    (found,) = problems(config)
    assert re.search(says, found), found


@pytest.mark.parametrize(
    "config",
    [
        {"method": {"name": "fedavg", "temperature": None}},
        {"method": {"name": "d_psgd", "publish": "start"}},
        {"method": "dml", "topology": "star", "seed_set": "mixup", "data": "mnist", "exchange": "float16"},
        {"data": {"partition": "iid"}},
        {"topology": {"kind": "small_world", "degree": None, "redraw_every": 3}},
        {"topology": {"kind": "edge_list", "path": "edges.txt"}},
        {"exchange": {"codec": "top_k", "top_k": 3, "skip_below": 0.0}},
        {"models": {0: "mlp", 1: "torchvision:resnet18"}, "weights": {"mlp": "mlp.pt"}},
        {"run": {"early_stop": None}, "optimizer": {"per_model": {"mlp": {"lr": 0.1, "name": "sgd"}}}},
        {"run": {"max_wall": "1:30:00"}, "devices": {"map": [0, 0]}},
    ],
)
def test_the_schema_accepts_what_loads(config):
    text = yaml.safe_dump(config)
    assert problems(yaml.safe_load(text)) == []
    validate(Config, yaml.safe_load(text))


@pytest.mark.parametrize(
    ("name", "default", "allowed", "used_by"),
    [
        (
            "method.temperature",
            "4.0 for fedh2l with seed labels, 2.0 under dirichlet without min_per_class; else 1.0",
            *("number from 0.01 to 1000", ("fedh2l", "dml", "distributed_distillation")),
        ),
        ("method.warmup_rounds", "0; fedmd: 5", "whole number >= 0", ("fedh2l", "fedmd")),
        (
            "method.publish",
            '"after_local"; fedh2l: "start"; dml: "start"; distributed_distillation: "start"',
            *("start, after_local", None),
        ),
        ("method.weight_kd", 1.0, "number from 0 to 1000000", None),
        ("method.options", {}, "map", ("package.module:Class",)),
        ("data.partition.alpha", "0.5; quantity: 1.0", "number > 0 and <= 1000000", ("dirichlet", "quantity")),
        ("topology.path", "must be given", "text", ("edge_list",)),
        ("topology.kind", "ring", None, ()),
        ("optimizer.seed_batch_size", 64, "whole number >= 1", ()),
        ("seed_set.share", 0.2, "number >= 0 and < 1", ()),
        ("optimizer.betas", [0.9, 0.999], "list of 2, each number >= 0 and < 1", ()),
        ("exchange.skip_below", None, "number >= 0 or null", ()),
        ("participants", None, "whole number >= 1 or null", ()),
        ("seed", 0, "whole number >= 0", ()),
        ("devices.batching", "off", "off, like", ()),
        ("devices.graphs", "off", "off, auto", ()),
    ],
)
def test_a_key_has_its_default_its_range_and_its_kinds(name, default, allowed, used_by):
    (key,) = (key for key in select_keys() if key.name == name)
    assert key.default == default
    assert allowed in (None, key.allowed)
    assert used_by in (None, key.used_by)


def test_a_key_says_where_the_classic_recipe_differs(monkeypatch):
    monkeypatch.setattr(recipes, "STANDARD", {"exchange.codec": CODEC})
    monkeypatch.setitem(classic.OF_KINDS, "topology.degree", {"random_regular": 2, "small_world": 4})
    monkeypatch.setitem(classic.CONFIG, "models", ("mlp",))
    differ = {key.name: (key.default, key.classic) for key in select_keys() if key.classic}
    assert (
        differ.items()
        >= {
            "exchange.codec": (CODEC.text, '"float32"'),
            "topology.degree": ("3; small_world: 4", "2; small_world: 4"),
            "models": (["lenet5", "mlp", "cnn"], '["mlp"]'),
        }.items()
    )
    assert "recipe" not in differ
    assert "data.name" not in differ
    (codec,) = select_keys("exchange.codec")
    assert str(codec).startswith(f'exchange.codec: {CODEC.text} (classic: "float32")\n')
    schema = json_schema()["properties"]
    assert schema["models"]["description"].endswith(' (classic: ["mlp"])')
    assert schema["exchange"]["properties"]["codec"]["description"].endswith(
        f' (default {CODEC.text}) (classic: "float32")'
    )


def test_keys_are_selected_by_section_key_or_word():
    assert {key.name.split(".")[0] for key in select_keys("topology")} == {"topology"}
    assert all(key.name.startswith("data.partition.") for key in select_keys("data.partition"))
    assert [key.name for key in select_keys("method.temperature")] == ["method.temperature"]
    assert "exchange.codec" in [key.name for key in select_keys("bfloat16")]
    assert len(select_keys()) > 40
    with pytest.raises(UserError, match="no key contains 'topologie'.*did you mean 'topology'"):
        select_keys("topologie")
