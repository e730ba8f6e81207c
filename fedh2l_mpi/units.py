"""Numbers with units, for a person to read."""


def size(count: float) -> str:
    """A number of bytes, to three digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        # Not at 1,024: four digits before the unit would not be read at a glance.
        if count < 999.5 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
