"""Say in words how a run updated its weights: optimiser, rate, clipping, smoothed labels, average."""

from collections.abc import Callable, Mapping
from typing import Any

Key = Callable[[str], Any]


def in_words(key: Key) -> str:
    """Return the settings of the optimiser in one line.

    Parameters
    ----------
    key : callable
        It returns the value of a dotted key of the config. A file of an earlier version, or a damaged one, has None.
    """
    precision = f", {key('optimizer.precision')}" if key("optimizer.precision") in ("tf32", "bfloat16") else ""
    return (
        f"{key('optimizer.name')}, lr {key('optimizer.lr')}{_changes(key)}, minibatch {key('optimizer.batch_size')}"
        f"{precision}{_average(key)}"
    )


def _changes(key: Key) -> str:
    """Return what changes the rate, the gradient and the labels."""
    kind, parts = key("optimizer.schedule"), []
    if kind not in (None, "constant"):
        parts.append(f"{kind} over {_count(key('optimizer.schedule_rounds'), 'round')}")
    if kind == "step":
        parts.append(f"times {key('optimizer.step_factor')} every {_count(key('optimizer.step_rounds'), 'round')}")
    if key("optimizer.warmup_steps"):
        parts.append(f"warm-up of {_count(key('optimizer.warmup_steps'), 'step')}")
    if key("optimizer.clip_norm"):
        parts.append(f"gradients clipped to {key('optimizer.clip_norm')}")
    if key("optimizer.label_smoothing"):
        parts.append(f"labels smoothed by {key('optimizer.label_smoothing')}")
    models = key("optimizer.per_model")
    if isinstance(models, Mapping) and models:
        parts.append(f"other settings for {', '.join(models)}")
    return "".join(f", {part}" for part in parts)


def _average(key: Key) -> str:
    """Return the average of the weights. A damaged file, or one of an unresolved config, has no decay."""
    decay = key("optimizer.average_decay")
    if key("optimizer.average") != "ema":
        return ""
    return ", weights averaged" + (f" with decay {decay:.4g}" if isinstance(decay, float) else "")


def _count(number: Any, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
