"""Parse and format numbers with units, such as 2us, 25GB/s or 1.5 GiB."""

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
    """Parse a time such as 2us, 1.5ms or 0.1s, and return it in s.

    Raises
    ------
    ValueError
        If the text is not a time, or has no unit.
    """
    return _with_unit(text, _TIMES, "2us or 1.5ms")


def bytes_per_second(text: str) -> float:
    """Parse a bandwidth such as 25GB/s, 12.5GiB/s or 200Gbit/s, and return it in byte/s.

    Raises
    ------
    ValueError
        If the text is not a bandwidth, has no unit, or is 0.
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
    """Format a number of bytes with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        # Change the unit below 1,024 already, because four digits before the unit are hard to read.
        if count < 999.5 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"


def duration(seconds: float) -> str:
    """Format a time, such as 21 us, 34 ms, 2.7 s, 12 min, 3.4 h or 21 days."""
    if seconds < 1e-4:
        return f"{1e6 * seconds:.3g} us"
    for limit, unit, scale in ((1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 86_400:,.1f} days"
