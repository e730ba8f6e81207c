"""Configuration: what is accepted, what is refused, and how clearly."""

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from helpers.launching import ROOT
from pydantic import ValidationError

from fedh2l_mpi.config import (
    Config,
    DataConfig,
    ExchangeConfig,
    MethodConfig,
    PartitionConfig,
    Section,
    SeedSetConfig,
    TopologyConfig,
    loading,
)
from fedh2l_mpi.config.keys import describe_keys
from fedh2l_mpi.config.method import FedProxOptions
from fedh2l_mpi.config.section import all_fields, is_section, users
from fedh2l_mpi.config.topology import SmallWorld
from fedh2l_mpi.errors import UserError

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("topology.kind=rign", "topology.kind: got 'rign'; known: complete, .*did you mean 'ring'"),
        ("topology.degre=3", "topology.degre: unknown key; known here: kind, .*did you mean 'degree'"),
        ("temperature=2", "temperature: unknown key; .*did you mean 'method.temperature'"),
        ("method.temperature=0", r"method.temperature: got 0, must be >= 0.01"),
        ("method.temperature=.nan", "method.temperature: got nan; input should be a finite number"),
        ("rounds=0", "rounds: got 0, must be >= 1"),
        ("rounds=many", "rounds: got 'many'; input should be a valid integer"),
        ("rounds=true", "rounds: got True; input should be a valid integer"),
        ("rounds='7'", "rounds: got '7'; input should be a valid integer"),
        ("rounds=99999999999999999999", "rounds: got 99999999999999999999, must be <= 2147483648"),
        ("seed_set.labelled=1", "seed_set.labelled: got 1; input should be a valid boolean"),
        ("seed_set={views: none, views_per_sample: 2}", "seed_set.views_per_sample: got 2, must be 1 for views 'none'"),
        ("seed_set.views_per_sample=1001", "seed_set.views_per_sample: got 1001, must be <= 1000"),
        ("optimizer.lr=1e300", "optimizer.lr: got 1e\\+300, must be <= 1000000"),
        ("data.root=/data", "data.root: got '/data', but digits ship with scikit-learn"),
        ("data.root=2024-13-45", "data.root: got '2024-13-45', but digits ship with scikit-learn"),
        ("rounds=1:30", "rounds: got '1:30'; input should be a valid integer"),
        ("rounds=1_000", "rounds: got '1_000'; input should be a valid integer"),
        ("seed=0x" + "f" * 20_000, "the number in line 1 has 20002 characters. At most 100 are read"),
        ("data.name=" + "x" * 10**6, r"^data.name: got 'x{99} \[999802 characters\] x{99}'; known: .*digits"),
        ("participants=2.5", "participants: got 2.5; input should be a valid integer"),
        ("seed=-1", "seed: got -1, must be >= 0"),
        ("seed_set.share=1.0", r"seed_set.share: got 1.0, must be < 1"),
        ("models=[]", "models: got .*; must be a list of architectures, or a map"),
        ("models=lenet5", "models: got 'lenet5'; must be a list of architectures, or a map"),
        ("models={a: mlp}", "models: got .*; must be a list of architectures, or a map"),
        ("topology=rign", r"topology.kind: got 'rign'; known: .* \(did you mean 'ring'\?\)"),
        ("data.partition=ring", "data.partition.kind: got 'ring'; known: dirichlet, "),
        ("optimizer=adam", "optimizer: got 'adam', must be a section of keys and values$"),
        ("method.name=FedH2L", "method.name: got 'FedH2L'; known: .*did you mean 'fedh2l'"),
        ("seed_set.views=off", r"seed_set.views: got False; known: .* \(did you mean 'none'\?\)"),
        ("evaluation.calibration=off", r"evaluation.calibration: got False; known: .* \(did you mean 'none'\?\)"),
        ("devices={kind: cpu, graphs: auto}", "devices.graphs: got 'auto', but kind 'cpu' has no graphs"),
        ("devices.map=0", r"devices.map: got 0, must be a list, such as \[1, 2\]"),
        ("weights=a.pt", "weights: got 'a.pt', must be a map, such as {name: value}"),
        (
            "exchange.top_k=3",
            "exchange.top_k: got 3, but codec 'uint8' does not use it .*remove it or set it to null",
        ),
        ("exchange.codec=top_k", "exchange.top_k: must be given for codec 'top_k'"),
        ("topology.degree=3", "topology.degree: got 3, but kind 'ring' does not use it .*remove it or set it to null"),
        ("topology.redraw_every=2", "topology.redraw_every: got 2, but kind 'ring' is not random"),
        ("topology.kind=edge_list", "topology.path: must be given for kind 'edge_list'"),
        ("data.partition.alpha=1", "data.partition.alpha: got 1, but kind 'domains' does not use it"),
        ("data.partition.domains=10", "data.partition.rotation_step_deg: .* must be under 180"),
        ("optimizer.momentum=0.9", "optimizer.momentum: got 0.9, but adam does not use it"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        (
            "optimizer={average: none, average_decay: 0.9}",
            "optimizer.average_decay: got 0.9, but optimizer.average is none. Fix: remove",
        ),
        ("optimizer={average: ema, average_decay: 1}", "optimizer.average_decay: got 1, must be < 1"),
        ("optimizer.schedule_rounds=9", "optimizer.schedule_rounds: got 9, but optimizer.schedule is constant. Fix: "),
        (
            "optimizer.step_rounds=9",
            "optimizer.step_rounds: got 9, but optimizer.schedule is constant. Fix: .* to step",
        ),
        (
            "optimizer={schedule: cosine, step_factor: 0.5}",
            "optimizer.step_factor: got 0.5, but optimizer.schedule is ",
        ),
        ("optimizer.clip_norm=0", "optimizer.clip_norm: got 0, must be > 0"),
        ("optimizer.label_smoothing=1", "optimizer.label_smoothing: got 1, must be < 1"),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps: got -1, must be >= 0"),
        ("optimizer.schedule=exponential", "optimizer.schedule: got 'exponential'; known: constant, cosine, linear, "),
        ("optimizer.per_model=[mlp]", r"optimizer.per_model: got \['mlp'\], must be a map"),
        ("optimizer.per_model.mlp=0.1", "optimizer.per_model.mlp: got 0.1, must be a section of keys and values"),
        ("optimizer.per_model.mpl.lr=0.1", "optimizer.per_model.mpl: no participant .*did you mean 'mlp'"),
        ("optimizer.per_model.mlp.rl=0.1", "optimizer.per_model.mlp.rl: unknown key; known here: name, lr, .*'lr'"),
        ("optimizer.per_model.mlp.batch_size=4", "optimizer.per_model.mlp.batch_size: unknown key; known here: name, "),
        ("optimizer.per_model.mlp.per_model={}", "optimizer.per_model.mlp.per_model: unknown key; known here: name, "),
        ("optimizer.per_model.mlp.lr=0", "optimizer.per_model.mlp.lr: got 0, must be > 0"),
        ("optimizer.per_model.mlp.momentum=0.9", "optimizer.per_model.mlp.momentum: got 0.9, but adam does not use it"),
        (
            "optimizer.per_model.mlp.step_rounds=2",
            "optimizer.per_model.mlp.step_rounds: got 2, but optimizer.per_model.mlp.schedule is constant. Fix: ",
        ),
        ("evaluation.local_test_share=0", "evaluation.local_test_share: got 0, must be > 0"),
        ("evaluation.local_test_share=1", "evaluation.local_test_share: got 1, must be < 1"),
        ("evaluation.metrics=nll", r"evaluation.metrics: .*must be a list, such as \[macro_f1, my_metrics:top5\]"),
        ("evaluation.metrics=[f1]", r"evaluation.metrics: .*'f1' is no metric.* Known: balanced_accuracy, macro_f1"),
        ("evaluation.metrics=[nll, nll]", "evaluation.metrics: .*'nll' is given twice"),
        ("evaluation.every=0", "evaluation.every: got 0, must be >= 1"),
        ("evaluation.calibration=test", "evaluation.calibration: got 'test'; known: none, seed_set"),
        ("devices.kind=gpu", "devices.kind: got 'gpu'; known: auto, cpu, cuda"),
        ("devices.map=[x]", "devices.map.0: got 'x'"),
        ("rounds", "^--set 'rounds': must look like .*: --set takes KEY=VALUE, such as rounds=5$"),
        ("=3", "must look like section.key=value"),
        ("rounds=[", "the value is not valid YAML"),
        ("rounds.more=3", "rounds: got .*input should be a valid integer"),
        ("rounds=!!int ''", "the value is not valid YAML: got '' in line 1, must be a value of !!int"),
        ("foo[1]=3", r"foo\[1\]: unknown key; known here: recipe, participants, "),
        *((f"run.max_wall={wrong}", "^run.max_wall: got .*; must be a time") for wrong in ("[1]", "true", ".inf", "0")),
        ("weights={1: x.pt}", "^weights.1: got 1; input should be a valid string"),
    ],
)
def test_a_wrong_value_is_refused_by_its_dotted_name(override, says):
    with pytest.raises(UserError, match=says) as error:
        loading.load(None, [override])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any, list[str]]]:
    """Dotted key and annotation of everything in the config that is no section, and what makes a config have it."""
    for name, field in all_fields(section).items():
        if is_section(field.annotation):
            yield from fields(field.annotation, f"{prefix}{name}.")
            continue
        kinds = list(users(section, name)) or (["mine:Mine"] if name not in section.model_fields else [])
        yield f"{prefix}{name}", field.annotation, [f"{prefix}{section.kind_key}={kinds[0]}"] if kinds else []


def inside(annotation: Any) -> list[Any]:
    """The annotation, and all that it is made of."""
    return [annotation, *(part for inner in get_args(annotation) for part in inside(inner))]


def words() -> Iterator[Any]:
    for key, of, settings in fields(Config):
        if literals := [kind for kind in inside(of) if get_origin(kind) is Literal]:
            yield pytest.param(key, get_args(literals[-1]), settings, id=key)
    for section in (TopologyConfig, PartitionConfig, DataConfig, SeedSetConfig, ExchangeConfig):
        name = {PartitionConfig: "data.partition", SeedSetConfig: "seed_set"}.get(
            section, section.__name__.removesuffix("Config").lower()
        )
        yield pytest.param(f"{name}.{section.kind_key}", tuple(section.kinds), [], id=f"{name}.{section.kind_key}")


@pytest.mark.parametrize(("key", "known", "settings"), list(words()))
def test_a_wrong_word_is_refused_with_all_the_words_that_are_known(key, known, settings):
    with pytest.raises(UserError) as error:
        loading.load(None, [*settings, f"{key}=wrong"])
    assert len(known) > 1
    assert str(error.value).startswith(f"{key}: got 'wrong'; known: {', '.join(sorted(known))}")


@pytest.mark.parametrize(
    ("key", "settings"), [(key, settings) for key, of, settings in fields(Config) if float in inside(of)]
)
def test_true_is_no_number(key, settings):
    values = ("[true, 0.9]", "[0.9, true]") if key == "optimizer.betas" else ("true",)
    for value in values:
        with pytest.raises(UserError, match=rf"^{key}\S*: got True[;,] (input should be|must be)"):
            loading.load(None, [*settings, f"{key}={value}"])


def test_every_section_with_kinds_has_one_class_per_kind_and_its_own_keys_only():
    config = loading.load(None, ["topology.kind=small_world", "method.name=fedprox"])
    assert isinstance(config.topology, SmallWorld)
    assert (config.topology.degree, config.topology.probability) == (4, 0.1)
    assert isinstance(config.method, FedProxOptions)
    assert not hasattr(config.method, "temperature")
    assert config.method == MethodConfig(name="fedprox") == FedProxOptions()
    with pytest.raises(ValidationError, match="must be 'fedprox' for FedProxOptions"):
        FedProxOptions(name="fedh2l")


def test_a_null_is_no_setting():
    # Of a key of another kind it is ignored; of a key of the own kind it means the default.
    nulls = ["method.name=dml", "method.combine=null", "method.temperature=null", "topology.degree=null"]
    assert loading.load(None, nulls) == loading.load(None, ["method.name=dml"])
    assert loading.load(None, ["data.partition.domains=null"]) == Config()
    with pytest.raises(UserError, match="exchange.top_k: must be given for codec 'top_k'"):
        loading.load(None, ["exchange.codec=top_k", "exchange.top_k=null"])


def test_a_copy_keeps_its_kind():
    for section in (MethodConfig(name="mine:Mine"), MethodConfig(name="fedavg"), TopologyConfig(kind="star")):
        assert copy.deepcopy(section) == section == pickle.loads(pickle.dumps(section)) == section.model_copy()


def _doubling(form: str) -> str:
    """Lines in which every value has the value of the line above twice.

    As lists, n lines have 4 * 2**n - 3 values, counting keys; as merged maps 6 * 2**n - 2 * n - 5.
    """
    return "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {form.format(f'*a{n - 1}, *a{n - 1}')}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds: 3\nrounds: 4\n", "not valid YAML: key 'rounds' is given twice, again in line 2"),
        ("rounds: [3\n", "not valid YAML"),
        ("- rounds\n", "got a list, must be a mapping"),
        ("rounds = 3\n", "got a str, must be a mapping of keys to values, one `key: value` in a line, with a blank"),
        (
            "data.partition.kind: iid\n",
            "data.partition.kind: a file has sections .* Fix: write data: {partition: {kind: ...}}",
        ),
        ("data: {partition.kind: iid}\n", "data.partition.kind: a file has sections .*write partition: {kind: ...}"),
        ("axes: {seed: [1]}\n", "this is the file of a sweep, not the config of a run. Fix: use the command `sweep`"),
        ("? [a]\n: 3\n", "not valid YAML"),
        ("!!python/object:os.system {}\n", "not valid YAML"),
        ("rounds: 3\nseed: !!int ''\n", "not valid YAML: got '' in line 2, must be a value of !!int"),
        ("!!bool x\n", "not valid YAML: got 'x' in line 1, must be a value of !!bool"),
        ("!!timestamp x\n", "not valid YAML: got 'x' in line 1, must be a value of !!timestamp"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", "not valid YAML: key '<<' is given twice, again in line 2"),
        ("a: {<<: 1}\n", "not valid YAML: << in line 1 must name mappings"),
        ("seed: !!int 1:30\n", "not valid YAML: got '1:30' in line 1, must be a value of !!int"),
        ("a: &a [*a]\n", r"not valid YAML: \*a in line 1 stands for a value that contains it"),
        ("a: " + "[" * 3000 + "]" * 3000, "not valid YAML: line 1 is nested deeper than 50 levels"),
        (_doubling("[{}]"), "not valid YAML: up to line 14, it has more than 50000 values, aliases expanded"),
        (_doubling("{{<<: [{}]}}"), "not valid YAML: up to line 14, it has more than 50000 values, aliases expanded"),
        ("#" * 10**6 + "\n", "cannot read the config: it has more than 1000000 bytes"),
        ("a: &a {x: 1}\nb: {<<: *a, y: 2, y: 3}\n", "not valid YAML: key 'y' is given twice, again in line 2"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path, text, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"wrong.yaml: {says}"):
        loading.load(path)


def test_a_section_may_be_merged_into_another_and_overruled_there(tmp_path):
    path = tmp_path / "merged.yaml"
    # The inner mapping is merged before it is met where it stands.
    path.write_text("method: {options: {inner: &b {<<: &a {x: 1, y: 1}, x: 2}}, name: a:b}\nweights: {<<: *b, z: 3}\n")
    read = loading.read_yaml(path)
    assert read["method"]["options"]["inner"] == {"x": 2, "y": 1}
    assert read["weights"] == {"x": 2, "y": 1, "z": 3}
    # YAML 1.1, "Merge Key Language-Independent Type": of several mappings, the first that has a key gives its value.
    path.write_text("a: &a {key: 1, x: 1}\nb: &b {y: 2, key: 2}\nboth: {<<: [*a, *b], x: 3}\n")
    assert loading.read_yaml(path)["both"] == {"key": 1, "x": 3, "y": 2}


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the config: No such file"):
        loading.load(tmp_path / "nothing.yaml")
    # A shell made two words of one option each.
    with pytest.raises(UserError, match="rounds=4: .* Fix: put --set before each setting, as in --set rounds=4"):
        loading.load("rounds=4")
    with pytest.raises(UserError, match="--set 'method.options={a:': the value is not valid YAML"):
        loading.load("1}", ["method.options={a:"])
    (tmp_path / "rotated.yaml").touch()
    with pytest.raises(UserError, match="did you mean .*/rotated.yaml"):
        loading.load(tmp_path / "rotatd.yaml")
    # Not near, though the suffix is the same.
    with pytest.raises(UserError, match=r"nope.yaml: cannot read the config: No such file or directory$"):
        loading.load(tmp_path / "nope.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        loading.load(tmp_path / "binary.yaml")
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(UserError, match=f"{path}: cannot read the config: it is {kind}, not a file"):
            loading.load(path)


def test_a_message_lists_a_bounded_number_of_mistakes():
    with pytest.raises(UserError) as error:
        loading.load({"weights": {number: "x.pt" for number in range(20_000)}})
    assert len(str(error.value).splitlines()) == 22
    assert str(error.value).endswith("\n  and 19980 mistakes more")


def test_several_mistakes_are_all_told_at_once():
    with pytest.raises(UserError) as error:
        loading.load(None, ["rounds=0", "seed=-1"])
    assert "rounds: got 0" in str(error.value)
    assert "seed: got -1" in str(error.value)


def test_an_override_wins_over_the_file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("rounds: 3\ntopology: {kind: star}\n")
    loaded = loading.load(path, ["rounds=7", "topology.kind=random_regular", "topology.degree=4", "optimizer.lr=1e-4"])
    assert (loaded.rounds, loaded.topology.kind, loaded.topology.degree, loaded.optimizer.lr) == (
        7,
        "random_regular",
        4,
        1e-4,
    )


@pytest.mark.parametrize(
    ("text", "overrides", "topology"),
    [
        ("topology: star\n", [], {"kind": "star"}),
        ("topology: star\n", ["topology.connected=false"], {"kind": "star", "connected": False}),
        ("topology: {kind: star, connected: false}\n", ["topology=ring"], {"kind": "ring", "connected": False}),
        ("topology: star\n", ["topology=random_regular", "topology.degree=2"], {"kind": "random_regular", "degree": 2}),
    ],
)
def test_a_text_for_a_section_is_its_kind_and_the_other_keys_stay(tmp_path, text, overrides, topology):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    assert loading.load(path, overrides).topology == TopologyConfig(**topology)


def test_every_section_with_kinds_takes_a_text_for_its_kind():
    words = {"data.name": "mnist", "data.partition.kind": "iid", "method.name": "dml", "seed_set.views": "mixup"}
    short = [f"{key.rpartition('.')[0]}={word}" for key, word in words.items()]
    assert loading.load(None, short) == loading.load(None, [f"{key}={word}" for key, word in words.items()])


def test_the_resolved_text_loads_back_to_the_same_config(tmp_path):
    original = loading.load(None, ["topology.kind=small_world", "models={0: mlp, 1: cnn}", "participants=2"])
    path = tmp_path / "config.yaml"
    path.write_text(original.to_yaml())
    assert loading.load(path) == original


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().topology.kind = "star"


def test_every_key_has_a_meaning_and_what_is_allowed():
    keys = list(describe_keys())
    assert len(keys) > 40
    assert all(key.meaning and key.allowed for key in keys)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_complete_and_says_what_it_shows(path):
    loading.load(path)
    text = path.read_text()
    assert text.startswith("#")
    for word in ("Shows:", "Cost:", "Expected:"):
        assert word in text
    missing = {
        section: set(fields) - set(yaml.safe_load(text)[section])
        for section, fields in {"topology": ["kind"], "method": ["name"], "data": ["name"]}.items()
    }
    assert not any(missing.values())


def test_the_first_config_is_the_built_in_default():
    assert loading.load(CONFIGS / "digits_ring.yaml") == Config()


@pytest.mark.parametrize(
    ("participants", "ranks", "launched", "expected"),
    [(None, 1, False, 4), (None, 1, True, 1), (None, 16, True, 16), (6, 2, True, 6), (6, 6, True, 6)],
)
def test_participants_follow_the_ranks_unless_given(participants, ranks, launched, expected):
    assert Config(participants=participants).resolved(ranks, launched).size == expected


def test_more_ranks_than_participants_are_refused_with_the_way_out():
    with pytest.raises(UserError, match="the config has 3, but mpirun started 4 ranks. Fix: use -n 3 or fewer"):
        Config(participants=3).resolved(4, launched=True)


def test_a_map_of_models_must_name_every_participant_once():
    with pytest.raises(UserError, match="Missing: 1, unknown: 7"):
        Config(participants=2, models={0: "mlp", 7: "cnn"}).resolved(1, launched=False)
    with pytest.raises(UserError, match="Missing: 1, 2, 3, 4 and 1999999991 more, unknown: none"):
        Config(participants=2 * 10**9, models=dict.fromkeys((0, *range(6, 10)), "mlp")).resolved(1, launched=False)
    resolved = Config(participants=2, models={0: "mlp", 1: "cnn"}).resolved(1, launched=False)
    assert [resolved.architecture(index) for index in range(2)] == ["mlp", "cnn"]
    assert [Config().architecture(index) for index in range(4)] == ["lenet5", "mlp", "cnn", "lenet5"]


@pytest.mark.parametrize(
    ("rounds", "steps", "decay"), [(20, 10, 0.98), (21, 10, 1 - 8 / 420), (40, 10, 0.99), (40, 0, 0.0), (25, 0, 0.0)]
)
def test_the_length_of_the_run_gives_the_decay_of_the_average_and_the_length_of_the_schedule(rounds, steps, decay):
    keys = [f"rounds={rounds}", f"method.local_steps={steps}", f"method.mutual_steps={steps}"]
    averaged = loading.load(None, [*keys, "optimizer.schedule=cosine"])
    resolved = averaged.resolved(1, launched=False).optimizer
    assert (resolved.average_decay, resolved.schedule_rounds) == (pytest.approx(decay), rounds)
    assert loading.load(averaged.resolved(1, launched=False)).resolved(1, launched=False).optimizer == resolved
    usual = loading.load(None, [*keys, "recipe=classic"]).resolved(1, launched=False).optimizer
    assert (usual.average_decay, usual.schedule_rounds) == (None, None)
    own = loading.load(averaged, ["optimizer.average_decay=0.5", "optimizer.schedule_rounds=3"])
    own = own.resolved(1, launched=False).optimizer
    assert (own.average_decay, own.schedule_rounds) == (0.5, 3)


def test_a_temperature_is_fitted_to_labels_so_it_needs_them():
    given = ["evaluation.calibration=seed_set", "method.name=independent"]
    assert loading.load(None, given).evaluation.calibration == "seed_set"
    with pytest.raises(UserError) as error:
        loading.load(None, [*given, "seed_set.labelled=false"])
    assert str(error.value) == (
        "evaluation.calibration: got 'seed_set', but seed_set.labelled is false. Fix: set it to true, or "
        "evaluation.calibration to none."
    )


def test_an_architecture_has_its_own_settings_and_the_others_of_the_section():
    keys = ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.1", "optimizer.schedule=step"]
    own = "optimizer.per_model={mlp: {name: adamw, lr: 1e-2, clip_norm: null}, cnn: {schedule: cosine}, lenet5: {}}"
    config = loading.load(None, [*keys, own, "rounds=10"]).resolved(1, launched=False)
    assert loading.load(config).resolved(1, launched=False) == config
    mlp, cnn, lenet5 = (config.optimizer.for_model(name) for name in ("mlp", "cnn", "lenet5"))
    # Momentum of the section means nothing to adamw; a third of 10 rounds is 4.
    assert (mlp.name, mlp.lr, mlp.momentum, mlp.schedule, mlp.step_rounds) == ("adamw", 0.01, 0.0, "step", 4)
    assert (cnn.name, cnn.momentum, cnn.schedule, cnn.schedule_rounds, cnn.step_rounds) == (
        *("sgd", 0.9),
        *("cosine", 10, None),
    )
    assert lenet5 == config.optimizer.model_copy(update={"per_model": {}})
    assert config.model_dump()["optimizer"]["per_model"] == {
        "mlp": {"name": "adamw", "lr": 0.01},
        "cnn": {"schedule": "cosine"},
        "lenet5": {},
    }


def test_settings_of_a_model_with_arguments_are_found_by_its_label_and_by_its_name():
    models = "models=[{name: my:Net, width: 8, depth: 2}, {name: my:Net, width: 16}]"
    own = "optimizer.per_model={'my:Net(width=8, depth=2)': {lr: 0.5}, 'my:Net': {lr: 0.25}}"
    config = loading.load(None, [models, own])
    assert [config.optimizer.for_model(config.architecture(index)).lr for index in range(2)] == [0.5, 0.25]


def test_a_schedule_of_one_model_has_the_length_of_the_run_that_started_with_it():
    given = ["optimizer.per_model={mlp: {schedule: linear}, cnn: {schedule: step}}", "optimizer.warmup_steps=19"]
    started = loading.load(None, [*given, "rounds=20"]).resolved(1, launched=False).optimizer
    longer = loading.load(None, [*given, "rounds=60"])
    kept = longer.optimizer.as_started(started).resolved(60, 20)
    assert kept == started
    assert (kept.for_model("mlp").schedule_rounds, kept.for_model("cnn").step_rounds) == (20, 7)
    assert longer.optimizer.resolved(60, 20).for_model("mlp").schedule_rounds == 60


@pytest.mark.parametrize("place", ["", "per_model.cnn."])
def test_a_warmup_ends_before_its_schedule(place):
    keys = ["rounds=5", "method.local_steps=3", "method.mutual_steps=1", f"optimizer.{place}schedule=linear"]
    assert loading.load(None, [*keys, f"optimizer.{place}warmup_steps=19"]).resolved(1, launched=False)
    with pytest.raises(UserError) as error:
        loading.load(None, [*keys, f"optimizer.{place}warmup_steps=20"]).resolved(1, launched=False)
    assert str(error.value) == (
        f"optimizer.{place}warmup_steps: got 20, but schedule linear ends after 20 steps (5 rounds of 4). "
        "Fix: use 19 or fewer, or a larger schedule_rounds."
    )
    # A constant rate has no end.
    assert loading.load(None, ["rounds=1", "optimizer.warmup_steps=500"]).resolved(1, launched=False)
