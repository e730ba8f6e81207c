"""The classic config, frozen: the value of every key in the first revisions, whatever the defaults are now.

Files of older runs are read by it: a key that a stored config lacks has its classic value, and a checkpoint lists only
the settings that differ from it. So no value here may ever change, and each new key needs a line in ADDED.
"""

from typing import Any

OWN = "package.module:Class"
OWN_DATA = "package.module:function"

# The whole config, with null for keys of other kinds. Checkpoints list the settings that differ from these.
CONFIG: dict[str, Any] = {
    "participants": None,
    "seed": 0,
    "rounds": 40,
    "data.name": "digits",
    "data.root": None,
    "data.augmentation": "none",
    "data.partition.kind": "domains",
    "data.partition.domains": 4,
    "data.partition.rotation_step_deg": 20.0,
    "data.partition.samples_per_participant": None,
    "data.partition.alpha": None,
    "data.partition.shards_per_participant": None,
    "data.test_share": None,
    "seed_set.share": 0.2,
    "seed_set.max_samples": 2000,
    "seed_set.samples_per_round": None,
    "seed_set.labelled": True,
    "seed_set.views": "affine",
    "seed_set.view_rotation_deg": 15.0,
    "seed_set.view_scale": 0.1,
    "seed_set.view_shift": 0.05,
    "seed_set.mixup_alpha": None,
    "models": ("lenet5", "mlp", "cnn"),
    "weights": {},
    "topology.kind": "ring",
    "topology.redraw_every": None,
    "topology.connected": True,
    "topology.tries": 100,
    "topology.degree": None,
    "topology.probability": None,
    "topology.path": None,
    "method.name": "fedh2l",
    "method.local_steps": 10,
    "method.mutual_steps": 10,
    "method.publish": "start",
    "method.temperature": 1.0,
    "method.weight_kd": 1.0,
    "method.combine": "gem",
    "method.weight_ce": 1.0,
    "method.divergence": "forward_kl",
    "method.teachers": "each",
    "method.warmup_rounds": 0,
    "method.ramp_rounds": 0,
    "method.proximal": None,
    "method.options": None,
    "optimizer.name": "adam",
    "optimizer.lr": 0.001,
    "optimizer.momentum": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.eps": 1e-08,
    "optimizer.batch_size": 32,
    "optimizer.seed_batch_size": 32,
    "evaluation.every": 5,
    "evaluation.validation_share": 0.1,
    "evaluation.test_samples_per_domain": None,
    "evaluation.batch_size": 128,
    "exchange.skip_below": None,
    "exchange.deadline_s": 300.0,
    "exchange.top_k": None,
    "checkpoint.every": 10,
    "checkpoint.keep": 2,
    "run.max_wall": None,
    "devices.kind": "auto",
    "devices.threads": 1,
    "devices.batching": "off",
    # False until null was added, which refuses less. Devices never change what a run is.
    "devices.share": None,
    "devices.map": None,
}
# Keys that came later, with the value that gives the numbers of the time before.
ADDED: dict[str, Any] = {
    "recipe": "classic",
    "exchange.codec": "float32",
    "optimizer.precision": "float32",
    "optimizer.average": "none",
    "optimizer.average_decay": None,
    "optimizer.schedule": "constant",
    "optimizer.schedule_rounds": None,
    "optimizer.step_rounds": None,
    "optimizer.step_factor": 0.1,
    "optimizer.warmup_steps": 0,
    "optimizer.clip_norm": None,
    "optimizer.label_smoothing": 0.0,
    "optimizer.per_model": {},
    "method.prior_correction": "none",
    "method.prior_strength": 1.0,
    "method.backoff": False,
    "method.local_labels": "private",
    "method.sharpening": 0.1,
    "method.weight_prototypes": 1.0,
    "method.prototype_size": 64,
    "method.coefficient_rate": 0.1,
    "method.coefficient_pull": 0.7,
    "seed_set.views_per_sample": 1,
    "seed_set.view_noise": None,
    "seed_set.view_dropout": None,
    "data.partition.min_per_class": None,
    "data.partition.quantity_alpha": None,
    "data.partition.classes_per_participant": None,
    "data.partition.path": None,
    "data.partition.shift": None,
    "evaluation.calibration": "none",
    "run.early_stop.measure": "accuracy_validation",
    "run.early_stop.patience": None,
    "evaluation.local_test_share": None,
    "evaluation.metrics": (),
    "data.samples": None,
    "data.channels": None,
    "data.options": None,
    "data.size": None,
    "data.grey": False,
    "evaluation.predictions": False,
    "data.label": "label",
    "data.domain": None,
    "data.missing": "refuse",
    "data.drop": (),
    "data.text": "text",
    "data.vocabulary": 5000,
    "data.length": 64,
    "topology.hubs": None,
}
# Kinds with a value of their own; `...`: it must be given.
OF_KINDS: dict[str, dict[str, Any]] = {
    "data.partition.alpha": {"dirichlet": 0.5, "quantity": 1.0},
    "data.partition.shards_per_participant": {"shards": 2},
    "data.partition.classes_per_participant": {"pathological": 2},
    "data.partition.path": {"file": ...},
    "data.test_share": {"pack": 0.2},
    "seed_set.mixup_alpha": {"mixup": 0.4, "both": 0.4},
    "seed_set.view_noise": {"jitter": 0.1, "auto": 0.1},
    "seed_set.view_dropout": {"word_dropout": 0.1, "auto": 0.1},
    "topology.degree": {"random_regular": 3, "small_world": 4},
    "topology.hubs": {"star_of_stars": 2},
    "topology.path": {"edge_list": ...},
    "topology.probability": {"small_world": 0.1, "erdos_renyi": 0.5},
    "method.publish": {name: "after_local" for name in ("d_psgd", "ds_fl", "feddf", "kt_pfl")},
    "method.warmup_rounds": {"fedmd": 5},
    "method.proximal": {"fedprox": 0.01, OWN: 0.01},
    "method.options": {OWN: {}},
    "data.options": {OWN_DATA: {}},
    "exchange.top_k": {"top_k": ...},
}


def value(key: str, kind: str) -> Any:
    """Return the classic value of a key that a kind has; `...` if the key must be given, or has no line here."""
    return OF_KINDS.get(key, {}).get(kind, CONFIG.get(key, ADDED.get(key, ...)))


def is_usual(key: str, value: Any) -> bool:
    """Return True if a setting is classic, so that no checkpoint lists it.

    Null for a key that came later counts as classic: it is the value for kinds without the key.
    """
    return bool(ADDED[key] == value or value is None) if key in ADDED else bool(CONFIG.get(key) == value)
