"""Record metrics.json again: `python tests/golden/record.py [CASE]...`, after a change that is meant to move numbers.

A case's overrides stay as they are in the file; say in the commit why its numbers moved.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from fedh2l_mpi import api, metrics
from fedh2l_mpi.config import loading
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

GOLDEN = Path(__file__).with_name("metrics.json")
ARRAYS = ("loss", "accuracy", "loss_private", "loss_seed", "loss_distillation", "gradient_cosine")


def record(overrides: list[str], folder: Path) -> dict[str, object]:
    """The arrays of the last round of a run in one process."""
    settings = loading.load(None, overrides).resolved(1, launched=False)
    api.assemble(settings, World(None), RunReservation(RunDirectory(folder))).run()
    run = metrics.read(RunDirectory(folder).metrics)
    return {name: run[name][-1].round(6).tolist() for name in ARRAYS if run[name][-1].max() == run[name][-1].max()}


def main() -> None:
    """Record the cases named, or all."""
    # The numbers are a CPU's.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cases = json.loads(GOLDEN.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(sys.argv[1:] or cases):
            cases[name]["arrays"] = record(cases[name]["overrides"], Path(folder) / str(number))
    lines = [f" {json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
