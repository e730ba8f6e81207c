"""Numbers with units, as a person reads and writes them."""

import re

_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_BINARY = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SPEEDS = {
    "B/s": 1.0,
    **{f"{prefix}B/s": factor for prefix, factor in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))},
    **{f"{unit}/s": factor for unit, factor in _BINARY.items()},
    **{f"{prefix}bit/s": factor / 8 for prefix, factor in (("M", 1e6), ("G", 1e9), ("T", 1e12))},
}


def seconds(text: str) -> float:
    """A time such as 2us, 1.5ms or 0.1s [s].

    Raises
    ------
    ValueError
        If it is none, or has no unit.
    """
    return _with_unit(text, _TIMES, "2us or 1.5ms")


def bytes_per_second(text: str) -> float:
    """A bandwidth such as 25GB/s, 12.5GiB/s or 200Gbit/s [byte/s].

    Raises
    ------
    ValueError
        If it is none, has no unit, or is 0.
    """
    speed = _with_unit(text, _SPEEDS, "25GB/s or 200Gbit/s")
    if speed == 0:
        raise ValueError(f"got {text!r}, must be more than 0")
    return speed


def _with_unit(text: str, units: dict[str, float], example: str) -> float:
    found = re.fullmatch(rf"\s*{_NUMBER}\s*(\S*)\s*", text)
    if found is None or found[2] not in units:
        raise ValueError(f"got {text!r}, must be a number and one of {', '.join(units)}, such as {example}")
    return float(found[1]) * units[found[2]]


def size(count: float) -> str:
    """A number of bytes, to three digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        # Not at 1,024: four digits before the unit would not be read at a glance.
        if count < 999.5 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
