"""Configs that runs of earlier revisions stored: they load, compare equal and resume."""

import json

import pytest
import yaml
from helpers.runs_in_process import ALONE

from fedh2l_mpi.config import Config, classic, comparison, loading, recipes
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import start
from fedh2l_mpi.run_directory import RunDirectory

# Written by a revision that kept null for every key of another kind, with the settings of its checkpoints' manifest.
FEDPROX = """\
participants: 4
seed: 0
rounds: 40
data:
  name: digits
  root: null
  test_share: null
  augmentation: none
  partition:
    kind: dirichlet
    domains: 4
    rotation_step_deg: 20.0
    samples_per_participant: null
    alpha: 0.5
    shards_per_participant: null
seed_set:
  share: 0.2
  max_samples: 2000
  samples_per_round: null
  labelled: true
  views: none
  view_rotation_deg: null
  view_scale: null
  view_shift: null
  mixup_alpha: null
models:
- mlp
weights: {}
topology:
  kind: complete
  redraw_every: null
  degree: null
  probability: null
  path: null
  connected: true
  tries: 100
method:
  name: fedprox
  local_steps: 10
  mutual_steps: 10
  publish: null
  temperature: null
  weight_ce: null
  weight_kd: null
  combine: null
  divergence: null
  teachers: null
  warmup_rounds: null
  ramp_rounds: null
  proximal: 0.01
  options: null
optimizer:
  name: adam
  lr: 0.001
  momentum: 0.0
  weight_decay: 0.0
  betas:
  - 0.9
  - 0.999
  eps: 1.0e-08
  batch_size: 32
  seed_batch_size: 32
  precision: float32
evaluation:
  every: 5
  validation_share: 0.1
  test_samples_per_domain: null
  batch_size: 128
exchange:
  codec: float32
  top_k: null
  skip_below: null
  deadline_s: 300.0
checkpoint:
  every: 10
  keep: 2
run:
  max_wall: null
devices:
  kind: auto
  threads: 1
  batching: 'off'
  share: false
  map: null
"""
FEDPROX_SETTINGS = """
{"participants": 4, "data.partition.kind": "dirichlet", "data.partition.alpha": 0.5, "seed_set.views": "none",
"seed_set.view_rotation_deg": null, "seed_set.view_scale": null, "seed_set.view_shift": null, "models": ["mlp"],
"topology.kind": "complete", "method.name": "fedprox", "method.publish": null, "method.temperature": null,
"method.weight_ce": null, "method.weight_kd": null, "method.combine": null, "method.divergence": null,
"method.teachers": null, "method.warmup_rounds": null, "method.ramp_rounds": null, "method.proximal": 0.01}
"""
FEDPROX_KEYS = ["method.name=fedprox", "topology.kind=complete", "models=[mlp]", "data.partition.kind=dirichlet"]
FEDPROX_KEYS += ["seed_set.views=none"]
FEDMD = """\
participants: 4
seed: 0
rounds: 40
data:
  name: digits
  root: null
  test_share: null
  augmentation: none
  partition:
    kind: domains
    domains: 4
    rotation_step_deg: 20.0
    samples_per_participant: null
    alpha: null
    shards_per_participant: null
seed_set:
  share: 0.2
  max_samples: 2000
  samples_per_round: null
  labelled: true
  views: both
  view_rotation_deg: 15.0
  view_scale: 0.1
  view_shift: 0.05
  mixup_alpha: 0.3
models:
- lenet5
- mlp
- cnn
weights: {}
topology:
  kind: small_world
  redraw_every: 5
  degree: 4
  probability: 0.1
  path: null
  connected: true
  tries: 100
method:
  name: fedmd
  local_steps: 10
  mutual_steps: 10
  publish: null
  temperature: null
  weight_ce: null
  weight_kd: null
  combine: null
  divergence: null
  teachers: null
  warmup_rounds: 5
  ramp_rounds: null
  proximal: null
  options: null
optimizer:
  name: adam
  lr: 0.001
  momentum: 0.0
  weight_decay: 0.0
  betas:
  - 0.9
  - 0.999
  eps: 1.0e-08
  batch_size: 32
  seed_batch_size: 32
  precision: float32
evaluation:
  every: 5
  validation_share: 0.1
  test_samples_per_domain: null
  batch_size: 128
exchange:
  codec: top_k
  top_k: 3
  skip_below: null
  deadline_s: 300.0
checkpoint:
  every: 10
  keep: 2
run:
  max_wall: null
devices:
  kind: auto
  threads: 1
  batching: 'off'
  share: false
  map: null
"""
FEDMD_SETTINGS = """
{"participants": 4, "seed_set.views": "both", "seed_set.mixup_alpha": 0.3, "topology.kind": "small_world",
"topology.redraw_every": 5, "topology.degree": 4, "topology.probability": 0.1, "method.name": "fedmd",
"method.publish": null, "method.temperature": null, "method.weight_ce": null, "method.weight_kd": null,
"method.combine": null, "method.divergence": null, "method.teachers": null, "method.warmup_rounds": 5,
"method.ramp_rounds": null, "exchange.codec": "top_k", "exchange.top_k": 3}
"""
FEDMD_KEYS = ["method.name=fedmd", "topology.kind=small_world", "topology.redraw_every=5", "seed_set.views=both"]
FEDMD_KEYS += ["seed_set.mixup_alpha=0.3", "exchange.codec=top_k", "exchange.top_k=3"]
PACK = """\
participants: 4
seed: 0
rounds: 40
data:
  name: pack
  root: /data/pacs.h5
  test_share: 0.2
  augmentation: none
  partition:
    kind: iid
    domains: null
    rotation_step_deg: null
    samples_per_participant: null
    alpha: null
    shards_per_participant: null
seed_set:
  share: 0.2
  max_samples: 2000
  samples_per_round: null
  labelled: true
  views: affine
  view_rotation_deg: 15.0
  view_scale: 0.1
  view_shift: 0.05
  mixup_alpha: null
models:
- lenet5
- mlp
- cnn
weights: {}
topology:
  kind: ring
  redraw_every: null
  degree: null
  probability: null
  path: null
  connected: true
  tries: 100
method:
  name: mine:Mine
  local_steps: 10
  mutual_steps: 10
  publish: start
  temperature: 1.0
  weight_ce: 1.0
  weight_kd: 2.0
  combine: gem
  divergence: forward_kl
  teachers: each
  warmup_rounds: 0
  ramp_rounds: 0
  proximal: 0.01
  options:
    a: 1
optimizer:
  name: sgd
  lr: 0.001
  momentum: 0.9
  weight_decay: 0.0
  betas:
  - 0.9
  - 0.999
  eps: 1.0e-08
  batch_size: 32
  seed_batch_size: 32
  precision: float32
evaluation:
  every: 5
  validation_share: 0.1
  test_samples_per_domain: null
  batch_size: 128
exchange:
  codec: float32
  top_k: null
  skip_below: null
  deadline_s: 300.0
checkpoint:
  every: 10
  keep: 2
run:
  max_wall: null
devices:
  kind: auto
  threads: 1
  batching: 'off'
  share: false
  map: null
"""
PACK_SETTINGS = """
{"participants": 4, "data.name": "pack", "data.test_share": 0.2, "data.partition.kind": "iid",
"data.partition.domains": null, "data.partition.rotation_step_deg": null, "method.name": "mine:Mine",
"method.weight_kd": 2.0, "method.proximal": 0.01, "method.options.a": 1, "optimizer.name": "sgd",
"optimizer.momentum": 0.9}
"""
PACK_KEYS = ["data.name=pack", "data.root=/data/pacs.h5", "data.partition.kind=iid", "method.name=mine:Mine"]
PACK_KEYS += ["method.options={a: 1}", "method.weight_kd=2", "optimizer.name=sgd", "optimizer.momentum=0.9"]
STORED = [
    pytest.param(FEDPROX, FEDPROX_SETTINGS, FEDPROX_KEYS, id="fedprox"),
    pytest.param(FEDMD, FEDMD_SETTINGS, FEDMD_KEYS, id="fedmd"),
    pytest.param(PACK, PACK_SETTINGS, PACK_KEYS, id="pack"),
]


@pytest.fixture
def load_text(tmp_path):
    def load(text: str) -> Config:
        (tmp_path / "stored.yaml").write_text(text)
        return loading.load_stored(tmp_path / "stored.yaml")

    return load


@pytest.mark.parametrize(("text", "settings", "keys"), STORED)
def test_a_stored_config_equals_the_same_config_of_today(load_text, text, settings, keys):
    # A run of that time refused to share GPUs by default, and its file goes on doing so.
    given = ["recipe=classic", "devices.share=false", *keys]
    stored, today = load_text(text), loading.load(None, given).resolved(1, launched=False)
    assert stored == today
    assert comparison.differing_keys(stored, today) == []
    # The key order of the file may change; no key is missing, and old tools find null for those of other kinds.
    written, before = (comparison.flat(yaml.safe_load(one)) for one in (today.to_yaml(), text))
    assert {key: written[key] for key in before} == before


@pytest.mark.parametrize(("text", "settings", "keys"), STORED)
def test_the_settings_of_a_stored_checkpoint_are_those_of_today(load_text, text, settings, keys):
    theirs, ours = json.loads(settings), comparison.unusual(load_text(text))
    assert all(theirs.get(key) == ours.get(key) for key in {**theirs, **ours})


@pytest.mark.parametrize(("text", "settings", "keys"), STORED)
def test_a_run_with_a_stored_config_is_resumed_with_the_same_config_and_with_no_other(tmp_path, text, settings, keys):
    directory = RunDirectory(tmp_path / "run")
    directory.create(text)
    same = loading.load(None, keys, resumes=directory.config).resolved(1, launched=False)
    reserved = start.reserve(ALONE, directory, same, "auto")
    assert reserved.kind == "new"
    reserved.release()
    other = loading.load(same, ["optimizer.lr=0.5"])
    with pytest.raises(UserError, match=r"optimizer.lr: there 0.001, here 0.5"):
        start.reserve(ALONE, directory, other, "auto")


def test_a_checkpoint_lists_the_settings_that_are_not_classic_whatever_the_defaults(monkeypatch):
    rules = {
        "exchange.codec": recipes.STANDARD["exchange.codec"],
        "seed_set.share": recipes.Rule("", lambda value: 0.1),
    }
    monkeypatch.setattr(recipes, "STANDARD", rules)
    assert comparison.unusual(Config(recipe="classic")) == {}
    found = comparison.unusual(Config())
    assert (found["exchange.codec"], found["seed_set.share"]) == ("uint8", 0.1)
    differing = comparison.differing_keys(Config(), Config(recipe="classic"))
    assert found == {key: ours for key, ours, _ in differing if ours is not None}
    given = comparison.unusual(Config(exchange={"codec": "float32"}, seed_set={"share": 0.2}))
    assert not {"exchange.codec", "seed_set.share"} & set(given)
    # Null for a key that came later is the value of kinds without it; null for an older key is listed, as ever.
    assert classic.is_usual("method.backoff", None)
    assert not classic.is_usual("method.temperature", None)
