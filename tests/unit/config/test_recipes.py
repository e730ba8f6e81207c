"""Recipes: the defaults under a config's keys, for every kind, under whatever a caller gives."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.launching import ROOT
from pydantic import Field

from fedh2l_mpi import methods
from fedh2l_mpi.config import Config, OptimizerConfig, SeedSetConfig, classic, loading, recipes
from fedh2l_mpi.config.comparison import flat
from fedh2l_mpi.config.section import Count, KindSection, Number, Section, all_fields, is_section
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.errors import UserError

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
METHODS = [*methods.METHODS, "mine:Mine"]
# What a method looks at to know the shape of what it publishes.
IMAGES = Labelled(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
STAND_IN: Any = SimpleNamespace(shared_state=np.zeros(3), private=IMAGES)
# Built-in classes, named like a user's own: what they publish is not known from their name.
USERS_OWN = ["fedh2l_mpi.methods.fedh2l:FedH2L", "fedh2l_mpi.methods.fedmd:FedMD", "fedh2l_mpi.methods.d_psgd:DPsgd"]


def kinds(section: type[Section], prefix: str = "") -> list[list[str]]:
    """Settings of a config for each kind of each section, with the keys that a kind needs."""
    found = []
    for name, field in all_fields(section).items():
        if is_section(field.annotation):
            found += kinds(field.annotation, f"{prefix}{name}.")
    if issubclass(section, KindSection):
        for kind in section.classes():
            needed = [key for key, field in kind.model_fields.items() if field.is_required()]
            word = kind.kind_name if kind.kind_name in section.kinds else "mine:Mine"
            found.append([f"{prefix}{section.kind_key}={word}", *(f"{prefix}{key}=1" for key in needed)])
    return found


# A path is no number.
KINDS = [[setting.replace("path=1", "path=a.txt") for setting in settings] for settings in kinds(Config)]


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings[0])
def test_the_classic_recipe_has_the_frozen_value_of_every_key(settings):
    given = {override.partition("=")[0]: override for override in settings}
    config = loading.load(None, ["recipe=classic", *settings])
    name, _, _ = settings[0].partition("=")[0].rpartition(".")
    section: Any = config
    for part in name.split("."):
        section = getattr(section, part)
    for field in type(section).model_fields:
        dotted = f"{name}.{field}"
        if dotted in given or isinstance(getattr(section, field), Section):
            continue
        assert getattr(section, field) == classic.value(dotted, type(section).kind_name), dotted


def test_every_key_has_a_frozen_value():
    config = flat(Config(recipe="classic").model_dump())
    assert set(config) <= {*classic.CONFIG, *classic.ADDED}, "a new key needs a line in classic.ADDED"
    assert {key: config[key] for key in classic.CONFIG} == classic.CONFIG
    assert all(config[key] in (classic.ADDED[key], None) for key in classic.ADDED if key in config)
    assert not set(classic.CONFIG) & set(classic.ADDED)


class Graph(KindSection):
    """A section whose defaults have moved away from the classic ones."""

    kind: str = "small_world"
    tries: Count = 5


class SmallWorld(Graph, kind="small_world"):
    """A kind with a key of its own."""

    degree: Count = 8


class RandomRegular(Graph, kind="random_regular"):
    """A kind whose key has another classic value."""

    degree: Count = 8


class Ring(Graph, kind="ring"):
    """The classic kind."""


class Optimizer(OptimizerConfig):
    """A plain section of the same sort."""

    lr: Number = 0.5


class Later(Config):
    """A config of a later version."""

    rounds: Count = Field(80)
    topology: Graph = Graph()
    optimizer: Optimizer = Optimizer()


@pytest.mark.parametrize(
    ("raw", "rounds", "topology", "lr"),
    [
        ({}, 80, {"kind": "small_world", "tries": 5, "degree": 8}, 0.5),
        ({"recipe": "standard"}, 80, {"kind": "small_world", "tries": 5, "degree": 8}, 0.5),
        ({"recipe": "classic"}, 40, {"kind": "ring", "tries": 100, "degree": None}, 0.001),
        (
            {"recipe": "classic", "rounds": 3, "topology": {"kind": "small_world", "tries": 7}},
            *(3, {"kind": "small_world", "tries": 7, "degree": 4}, 0.001),
        ),
        (
            {"recipe": "classic", "topology": {"kind": "random_regular", "degree": None}, "optimizer": {"lr": 0.2}},
            *(40, {"kind": "random_regular", "tries": 100, "degree": 3}, 0.2),
        ),
        (
            {"topology": "random_regular"},
            80,
            {"kind": "random_regular", "tries": 5, "degree": 8},
            0.5,
        ),
        (
            {"topology": {"kind": "random_regular", "degree": None}},
            80,
            {"kind": "random_regular", "tries": 5, "degree": 8},
            0.5,
        ),
        # A section that is an object is complete.
        ({"recipe": "classic", "optimizer": Optimizer()}, 40, {"kind": "ring", "tries": 100, "degree": None}, 0.5),
    ],
)
def test_a_recipe_sets_defaults_and_what_is_given_wins(raw, rounds, topology, lr):
    config = Later.model_validate(raw)
    assert (config.rounds, config.topology.model_dump(), config.optimizer.lr) == (rounds, topology, lr)
    # Every key is in the file, so it gives the same config whatever the recipe's defaults are then.
    stored = yaml.safe_load(config.to_yaml())
    assert Later.model_validate({**stored, "recipe": "standard"}) == config.model_copy(update={"recipe": "standard"})


def test_what_a_stored_config_lacks_is_classic_whatever_its_recipe():
    for recipe in ({}, {"recipe": "standard"}, {"recipe": "classic"}):
        raw = recipes.of_stored(Later, {**recipe, "rounds": 3, "topology": {"kind": "random_regular", "tries": 7}})
        config = Later.model_validate(raw)
        assert config.recipe == recipe.get("recipe", "classic")
        assert (config.rounds, config.topology.tries, config.topology.degree, config.optimizer.lr) == (3, 7, 3, 0.001)
    every = recipes.complete(Later, {"topology": {"kind": "random_regular"}, "data": ["damaged"]})
    assert (every["topology"], every["data"]) == ({"kind": "random_regular", "tries": 100, "degree": 3}, ["damaged"])
    assert every["seed_set"]["view_scale"] == 0.1


@pytest.mark.parametrize(
    ("raw", "before", "expected"),
    [
        ({}, {}, ("classic", 40, 0.001)),
        ({}, {"recipe": "standard", "rounds": 3, "optimizer": {"lr": 1.0}}, ("standard", 80, 0.5)),
        # Younger than the stored run: the rate; not younger: the rounds.
        ({}, {"recipe": "standard", "rounds": 3}, ("standard", 80, 0.001)),
        ({"rounds": 7, "optimizer": {"lr": 2.0}}, {}, ("classic", 7, 2.0)),
        ({"recipe": "standard"}, {}, ("standard", 80, 0.5)),
        ({"recipe": "classic"}, {"recipe": "standard", "rounds": 3, "optimizer": {"lr": 1.0}}, ("classic", 40, 0.001)),
    ],
)
def test_a_config_that_names_no_recipe_has_that_of_the_run_that_it_resumes(raw, before, expected):
    config = Later.model_validate(recipes.as_before(Later, raw, before))
    assert (config.recipe, config.rounds, config.optimizer.lr) == expected


@pytest.mark.parametrize("recipe", ["standard", "classic"])
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"method": 3}, "method: got 3, must be a section"),
        ({"method": {"name": [1]}}, r"method.name: got \[1\]; known: "),
        ({"method": {"name": "fedhl2"}}, "method.name: got 'fedhl2'; known: "),
        ({"exchange": None}, "exchange: got None, must be a section"),
        ({"exchange": {"codec": None}}, "exchange.codec: got None; known: "),
        ({"exchange": {"skip_below": "x"}}, "exchange.skip_below: got 'x'"),
        ({"data": {"partition": 3}}, "data.partition: got 3, must be a section"),
        ({"data": {"name": "digits", "root": "x"}}, "data.root: got 'x', but digits ship"),
        ({"rounds": None}, "rounds: got None"),
        ({"rouns": 3}, "rouns: unknown key"),
    ],
)
def test_a_wrong_config_has_one_message_under_every_recipe(raw, says, recipe):
    with pytest.raises(UserError, match=f"^{says}") as error:
        loading.load({"recipe": recipe, **raw})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", [3, None, [1], "clasic"])
def test_an_unknown_recipe_is_refused(recipe):
    with pytest.raises(UserError, match="^recipe: got .*"):
        loading.load({"recipe": recipe})


@pytest.mark.parametrize("name", METHODS)
def test_the_default_codec_encodes_what_the_method_publishes(name):
    config = loading.load({"method": {"name": name}})
    posteriors = ("fedh2l", "dml", "distributed_distillation", "ds_fl", "kt_pfl")
    expected = "uint8" if name in posteriors else "float32"
    assert config.exchange.codec == expected
    assert yaml.safe_load(config.to_yaml())["exchange"]["codec"] == expected
    kind = methods.METHODS.get(name)
    if kind is not None:
        method = kind(config.method, labelled=True)
        array = method.array(STAND_IN, 5, 10)
        assert array is None or array.coded(config.exchange).codec.name == expected


@pytest.mark.parametrize(
    ("raw", "codec"),
    [
        ({"recipe": "classic"}, "float32"),
        ({"exchange": {"codec": "float16"}}, "float16"),
        ({"exchange": {"skip_below": 0.01}}, "float32"),
        ({"exchange": {"skip_below": None, "deadline_s": 5.0}}, "uint8"),
        ({"exchange": {"codec": "top_k", "top_k": 3}}, "top_k"),
        ({"method": Config(method={"name": "d_psgd"}).method}, "float32"),
        ({"method": Config().method}, "uint8"),
    ],
)
def test_a_rule_looks_at_the_keys_that_are_given(raw, codec):
    assert Config(**raw).exchange.codec == codec


def test_a_rule_sees_the_values_of_the_rules_before_it(monkeypatch):
    rules = {
        "method.combine": recipes.Rule("", lambda value: "sum" if value("seed_set.views") == "affine" else "gem"),
        "method.temperature": recipes.Rule("", lambda value: 2.0 if value("method.combine") == "sum" else 1.0),
        "method.proximal": recipes.Rule("", lambda value: 0.5),
    }
    monkeypatch.setattr(recipes, "STANDARD", rules)
    assert [Config(**raw).method.temperature for raw in ({}, {"method": {"combine": "gem"}})] == [2.0, 1.0]
    # A key that the kind does not have is not set.
    assert Config(method={"name": "dml"}).method.temperature == 1.0
    assert Config(method={"name": "fedprox"}).method.proximal == 0.5


@pytest.mark.parametrize(
    ("raw", "views", "teachers", "backoff", "temperature", "labels"),
    [
        ({}, 2, "right", False, 4.0, "private_and_seed"),
        ({"recipe": "classic"}, 1, "each", False, 1.0, "private"),
        ({"seed_set": {"labelled": False}}, 2, "confidence", False, 1.0, "private"),
        ({"seed_set": {"views": "none"}}, 1, "right", False, 4.0, "private_and_seed"),
        ({"seed_set": {"views": "both", "views_per_sample": 3}}, 3, "right", False, 4.0, "private_and_seed"),
        ({"method": {"teachers": "better"}}, 2, "better", False, 4.0, "private_and_seed"),
        ({"method": {"teachers": "mean", "temperature": 3.0}}, 2, "mean", False, 3.0, "private_and_seed"),
        ({"method": {"backoff": True, "local_labels": "private"}}, 2, "right", True, 4.0, "private"),
        ({"data": {"partition": {"kind": "dirichlet"}}}, 2, "right", False, 2.0, "private_and_seed"),
        (
            *({"data": {"partition": {"kind": "dirichlet", "min_per_class": 5}}}, 2, "right", False, 4.0),
            "private_and_seed",
        ),
        ({"method": {"name": "mine:Mine"}}, 2, "right", False, 1.0, "private"),
        ({"method": {"name": "dml"}}, 2, None, None, 1.0, None),
        ({"method": {"name": "pooled"}}, 2, None, None, None, "private_and_seed"),
        ({"method": {"name": "fedavg"}}, 2, None, None, None, "private"),
    ],
)
def test_rules_follow_the_method_the_seed_set_and_the_teachers(raw, views, teachers, backoff, temperature, labels):
    config = Config(**raw)
    dumped = config.method.model_dump()
    assert config.seed_set.views_per_sample == views
    assert (dumped["teachers"], dumped["backoff"]) == (teachers, backoff)
    assert (dumped["temperature"], dumped["local_labels"]) == (temperature, labels)


@pytest.mark.parametrize(
    ("raw", "widths"),
    [
        ({}, (30.0, 0.2, 0.1)),
        ({"rounds": 39}, (15.0, 0.1, 0.05)),
        ({"seed_set": {"views": "both", "view_scale": 0.3}}, (30.0, 0.3, 0.1)),
        ({"recipe": "classic"}, (15.0, 0.1, 0.05)),
        ({"seed_set": {"views": "mixup"}}, (None, None, None)),
    ],
)
def test_views_are_wide_from_forty_rounds_on(raw, widths):
    dumped = Config(**raw).seed_set.model_dump()
    assert tuple(dumped[key] for key in ("view_rotation_deg", "view_scale", "view_shift")) == widths


def test_a_longer_run_keeps_the_views_that_it_began_with():
    before = yaml.safe_load(Config(rounds=30).to_yaml())
    longer = recipes.as_before(Config, {"rounds": 60}, before)
    assert Config.model_validate(longer).seed_set == Config(rounds=30).seed_set
    assert Config(rounds=60).seed_set != Config(rounds=30).seed_set


@pytest.mark.parametrize(
    ("raw", "calibration"),
    [
        ({}, "seed_set"),
        ({"recipe": "classic"}, "none"),
        ({"method": {"name": "pooled"}}, "seed_set"),
        ({"method": {"name": "dml"}}, "seed_set"),
        ({"method": {"name": "independent"}}, "none"),
        ({"method": {"name": "fedavg", "local_labels": "private_and_seed"}}, "seed_set"),
        ({"method": {"name": "fedavg", "local_labels": "private"}}, "none"),
        ({"seed_set": {"labelled": False}}, "none"),
        ({"seed_set": {"views": "none"}}, "none"),
        ({"seed_set": {"share": 0.1}}, "seed_set"),
        ({"seed_set": {"share": 0.05}}, "none"),
        ({"seed_set": {"views": "none"}, "evaluation": {"calibration": "seed_set"}}, "seed_set"),
    ],
)
def test_posteriors_are_calibrated_where_seed_labels_are_learned_in_views(raw, calibration):
    assert Config(**raw).evaluation.calibration == calibration


@pytest.mark.parametrize("name", METHODS)
def test_the_standard_recipe_has_the_ingredients_of_the_highest_accuracy(name):
    config = loading.load({"method": {"name": name}})
    dumped = config.method.model_dump()
    assert (dumped["prior_correction"], dumped["prior_strength"]) == ("balanced", 1.0)
    assert (dumped["local_steps"], dumped["mutual_steps"]) == ((2, 18) if name == "fedh2l" else (10, 10))
    combines = name in ("fedh2l", "seed_supervised", "pooled", "mine:Mine")
    assert dumped["combine"] == ("joint" if combines else None)
    optimizer = config.optimizer
    assert (optimizer.average, optimizer.schedule, optimizer.seed_batch_size) == ("ema", "constant", 64)


def refusal(raw: dict[str, Any], *overrides: str) -> str:
    """The message that a config is refused with, up to the value that it got; empty if it may run."""
    try:
        config = loading.load(raw, overrides).resolved(1, launched=False)
        array = methods.build(config).array(STAND_IN, 5, 10)
        if array is not None:
            array.coded(config.exchange)
    except UserError as error:
        return str(error).partition(": got")[0]
    return ""


# Without labels some methods refuse the seed set, and views refuse skipped rows, whatever the recipe.
GIVEN = [
    *([f"seed_set.views={views}"] for views in SeedSetConfig.kinds),
    *([f"method.combine={rule}"] for rule in ("gem", "project", "sum", "gem_neighbours", "joint")),
    ["seed_set={views: none}", "exchange.skip_below=0.1"],
    ["exchange.codec=top_k", "exchange.top_k=3"],
    ["method.teachers=each"],
    ["method.teachers=better"],
    ["method.warmup_rounds=2"],
    ["method.publish=after_local"],
    ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.schedule=cosine"],
    ["optimizer.average=none", "method.prior_correction=none"],
    ["data.partition.kind=shards", "data.augmentation=affine"],
    ["seed_set.samples_per_round=1", "optimizer.seed_batch_size=1"],
    ["method.mutual_steps=0"],
    ["method.local_steps=0"],
]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", [*METHODS[:-1], *USERS_OWN])
def test_no_default_refuses_what_the_classic_recipe_accepts(name, labelled):
    raw = {"models": ["mlp"], "topology": {"kind": "complete"}, "method": {"name": name}}
    raw["seed_set"] = {"labelled": labelled}
    for given in [[], *GIVEN]:
        overrides = [*given, f"seed_set.labelled={str(labelled).lower()}"]
        assert refusal({**raw, "recipe": "standard"}, *overrides) == refusal({**raw, "recipe": "classic"}, *overrides)
    assert labelled is False or refusal(raw) == ""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("name", [*METHODS[:-1], *USERS_OWN])
def test_no_default_refuses_a_shipped_config_with_any_method(path, name):
    raw = loading.read_yaml(path)
    given = {key: value for key, value in raw["method"].items() if key in ("local_steps", "mutual_steps")}
    raw |= {"models": ["mlp"], "topology": {"kind": "complete"}, "method": {**given, "name": name}}
    assert refusal(raw) == refusal({**raw, "recipe": "classic"}) == ""


# What the two configs of photographs have in common.
PHOTOGRAPHS = {
    "participants": 4,
    "data.name": "pack",
    "data.augmentation": "photo",
    "data.partition.domains": None,
    "data.partition.rotation_step_deg": None,
    "data.test_share": 0.2,
    "seed_set.share": 0.1,
    "seed_set.samples_per_round": 320,
    "seed_set.views": "photo",
    "seed_set.view_rotation_deg": None,
    "seed_set.view_scale": None,
    "seed_set.view_shift": None,
    "models": ("torchvision:resnet18", "torchvision:alexnet", "torchvision:mobilenet_v2"),
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0005,
    "evaluation.every": 10,
    "evaluation.batch_size": 64,
}
# What the shipped configs gave before there were recipes, where it is not the classic value of the key.
BEFORE = {
    "digits_ring.yaml": {},
    "label_skew_mnist.yaml": {
        "participants": 6,
        "data.name": "mnist",
        "data.partition.kind": "dirichlet",
        "data.partition.domains": 1,
        "data.partition.rotation_step_deg": 0.0,
        "data.partition.samples_per_participant": 1000,
        "data.partition.alpha": 0.1,
        "seed_set.share": 0.1,
        "seed_set.samples_per_round": 320,
        "topology.kind": "random_regular",
        "topology.degree": 3,
    },
    "office_home.yaml": {**PHOTOGRAPHS, "rounds": 200},
    "pacs.yaml": {**PHOTOGRAPHS, "rounds": 100},
    "rotated_fashion_mnist.yaml": {
        "participants": 6,
        "data.name": "fashion_mnist",
        "data.partition.domains": 6,
        "data.partition.rotation_step_deg": 15.0,
        "data.partition.samples_per_participant": 1000,
        "seed_set.share": 0.1,
        "seed_set.samples_per_round": 320,
        "seed_set.views": "none",
        "seed_set.view_rotation_deg": None,
        "seed_set.view_scale": None,
        "seed_set.view_shift": None,
        "evaluation.test_samples_per_domain": 1000,
    },
    "rotated_mnist.yaml": {
        "participants": 6,
        "data.name": "mnist",
        "data.partition.domains": 6,
        "data.partition.rotation_step_deg": 15.0,
        "data.partition.samples_per_participant": 1000,
        "seed_set.share": 0.1,
        "seed_set.samples_per_round": 320,
        "evaluation.test_samples_per_domain": 1000,
    },
}


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.name in BEFORE], ids=lambda path: path.name)
def test_the_classic_recipe_gives_what_a_shipped_config_gave_before_there_were_recipes(path):
    config = flat(loading.load(path, ["recipe=classic"]).model_dump())
    theirs = {key: value for key, value in config.items() if key not in classic.ADDED}
    every = classic.CONFIG | BEFORE[path.name]
    assert theirs == {key: every[key] for key in theirs}
    assert set(BEFORE[path.name]) <= set(theirs)
