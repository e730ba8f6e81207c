"""Time and memory of the report of a large run: 1,000 participants, 1,000 rounds, 10 domains, synthetic numbers.

    python -m benchmarks.large_file [FOLDER]

It writes the file (550 MB) to FOLDER, by default a temporary one. It prints time and peak memory of `report`, next to
those of a program that only imports what `report` needs.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedh2l_mpi import metrics
from fedh2l_mpi.config import loading

P, R, D, CLASSES = 1000, 1000, 10, 10
EVERY = 10
IMPORTS = "import numpy, h5py, yaml, rich.console, rich.table"


def write(path: Path) -> None:
    """Write a metrics file whose accuracies grow towards 0.9."""
    config = loading.load(None, [f"participants={P}", f"rounds={R}", f"evaluation.every={EVERY}"])
    attributes = {"config": config.to_yaml(), "seed": 0, "rounds_planned": R, "ranks": 16, "threads": 1}
    row = {field.name: "x" if field.dtype == "S" else 20_000 for field in metrics.PARTICIPANT_FIELDS}
    participants = [{**row, "own_domain": i % D, "rank": i * 16 // P} for i in range(P)]
    names = [f"rotated {15 * domain} deg" for domain in range(D)]
    header = metrics.RunHeader(attributes, participants, np.full((P, CLASSES), 10), names)
    writer = metrics.MetricsWriter(path, header)
    writer.add_graph(0, [(i, (i + 1) % P) for i in range(P)])
    draw = np.random.default_rng(0)
    place = {field.name: i for i, field in enumerate(metrics.ROW_FIELDS)}
    for round_index in range(R):
        table = draw.random((P, metrics.row_width(D))) / 10
        table[:, place["bytes_sent"]] = table[:, place["bytes_received"]] = 50_000
        table[:, place["degree"]] = 2
        level = 0.9 - 0.7 * np.exp(-round_index / 200)
        for name in ("accuracy_own", "accuracy_all", "accuracy_worst", "accuracy_validation"):
            table[:, place[name]] = level + draw.normal(0, 0.01, P) if (round_index + 1) % EVERY == 0 else np.nan
        writer.append(round_index, table)
    writer.close("complete")


def measure(command: list[str]) -> tuple[float, float]:
    """Return the wall seconds and the peak memory [MiB] of a command with its children."""
    code = f"import resource, subprocess; subprocess.run({command!r}, stdout=subprocess.DEVNULL, check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    begin = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - begin, float(said)


def main() -> None:
    """Write the file, measure the report, print the result."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / "metrics.h5"
        write(path)
        print(f"{path.stat().st_size / 2**20:.0f} MiB, {P} participants, {R} rounds, {D} domains")
        for name, command in (
            ("imports alone", [sys.executable, "-c", IMPORTS]),
            ("report", [sys.executable, "-m", "fedh2l_mpi", "report", str(path)]),
        ):
            runs = [measure(command) for _ in range(3)]
            seconds, memory = np.median(runs, axis=0)
            print(f"{name:14} {seconds:5.1f} s {memory:5.0f} MiB at most")


if __name__ == "__main__":
    main()
