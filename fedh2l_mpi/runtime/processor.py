"""Which processor times were measured on."""

import platform
from pathlib import Path


def processor() -> str:
    """Name of this machine's CPU; of its architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
