"""Cost of starting a job on one node, with `--share-imports` and without: wall seconds, CPU seconds, memory.

    python -m benchmarks.start_up [--ranks 16] [--repeats 3] [--mpirun mpirun ...]

It starts three jobs one after the other, REPEATS times: RANKS processes under mpirun that import torch, h5py and
mpi4py; RANKS ranks of a tiny run that import for themselves; and the same with `--share-imports`. Wall seconds end when
every process is ready: it has met the others after the imports, or begins round 0. CPU seconds cover the whole life of
every process of the job. Memory is the sum of the proportional set sizes (PSS) of all processes when all are ready. The
processes then wait until they may continue, so that nothing else is measured.

This process becomes the parent of every orphan (PR_SET_CHILD_SUBREAPER) and waits for each descendant, so it counts the
CPU seconds of all of them.
"""

import argparse
import compileall
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import PR_SET_CHILD_SUBREAPER, pss_bytes, spread
from fedh2l_mpi.runtime.processes import stat_fields

HERE = Path(__file__).parent
PATIENCE_S = 300.0
# The jobs.
IMPORTS_ONLY, RUN, SHARED = "imports only", "a run with --share-imports never", "a run with --share-imports"
# Each process reports that it is ready, and waits until it may continue.
WAITING = """
import os, pathlib, time

def arrive():
    folder = pathlib.Path(os.environ["START_UP_FOLDER"])
    (folder / f"there-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
"""
# Every rank imports the module of a user's model; this module makes the rank wait before its first round.
WAITING_ROUNDS = """
from torch import nn
from fedh2l_mpi.simulation import Simulation
from waiting import arrive

class Model(nn.Sequential):
    def __init__(self, channels, side, classes):
        super().__init__(nn.Flatten(), nn.Linear(channels * side * side, classes))

def waiting_round(simulation, round_index, do=Simulation._round):
    arrive()
    do(simulation, round_index)

Simulation._round = waiting_round
"""
IMPORTS = "import torch, h5py, mpi4py.MPI as mpi; mpi.COMM_WORLD.Barrier(); import waiting; waiting.arrive()"


@dataclass(frozen=True)
class Cost:
    """Cost of a job."""

    wall_s: float
    cpu_s: float
    pss_mib: float
    processes: int


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                parent = int(stat_fields(int(folder.name))[1])
                children.setdefault(parent, []).append(int(folder.name))
        except OSError:
            continue
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found


def measure(command: Sequence[str], ranks: int) -> Cost:
    """Start a job, wait until all its ranks are ready, measure it, and let it end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "waiting.py").write_text(WAITING)
        (folder / "waiting_rounds.py").write_text(WAITING_ROUNDS)
        paths = [name, str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environ = {**os.environ, "START_UP_FOLDER": name, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        before, begin = os.times(), time.monotonic()
        words = [word.replace("{folder}", name) for word in command]
        job = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ, cwd=HERE.parent)
        while len(list(folder.glob("there-*"))) < ranks:
            if job.poll() is not None or time.monotonic() - begin > PATIENCE_S:
                job.kill()
                raise SystemExit(f"{' '.join(words)}: its ranks have not come")
            time.sleep(0.02)
        wall = time.monotonic() - begin
        pids = descendants(os.getpid())
        memory = sum(pss_bytes(Path(f"/proc/{pid}")) for pid in pids) / 2**20
        (folder / "go").touch()
        if job.wait():
            raise SystemExit(f"{' '.join(words)}: ended with {job.returncode}")
        # Orphans of the job become children of this process, and count once they have ended.
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, cpu, memory, len(pids))


def measure_all(mpirun: Sequence[str], ranks: int, repeats: int) -> dict[str, list[Cost]]:
    """Measure every job in each repetition; this process must have no other child meanwhile."""
    # An installed package is compiled; with PYTHONDONTWRITEBYTECODE set, every rank would compile it again.
    compileall.compile_dir(HERE.parent / "fedh2l_mpi", quiet=1)
    launcher = [*mpirun, "-n", str(ranks), sys.executable]
    settings = ["--set", f"participants={ranks}", "--set", "models=[waiting_rounds:Model]", "--set", "rounds=1"]
    settings += ["--set", "data.partition.samples_per_participant=40", "--set", "exchange.deadline_s=600"]
    run = [*launcher, "-m", "fedh2l_mpi", *settings, "--quiet", "--out", "{folder}/run"]
    jobs = {
        IMPORTS_ONLY: [*launcher, "-c", IMPORTS],
        RUN: [*run, "--share-imports=never"],
        SHARED: [*run, "--share-imports"],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    control = ctypes.CDLL(None).prctl
    control(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        for repeat in range(repeats):
            for name, command in jobs.items():
                cost = measure(command, ranks)
                costs[name].append(cost)
                print(
                    f"{repeat + 1}: {name}: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU s, {cost.pss_mib:.0f} MiB in "
                    f"{cost.processes} processes",
                    flush=True,
                )
    finally:
        control(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mpirun", nargs="+", default=[str(Path(sys.executable).with_name("mpirun"))])
    options = parser.parse_args()
    costs = measure_all(options.mpirun, options.ranks, options.repeats)
    print(f"{options.ranks} ranks on {os.cpu_count()} cores, medians of {options.repeats} (ranges)")
    for name, measured in costs.items():
        walls, seconds = [cost.wall_s for cost in measured], [cost.cpu_s for cost in measured]
        memory = spread([cost.pss_mib for cost in measured], 0)
        print(f"{name}: {spread(walls, 1)} s, {spread(seconds, 1)} CPU s, {memory} MiB")
    for name, base in (RUN, IMPORTS_ONLY), (SHARED, RUN):
        pairs = list(zip(costs[name], costs[base], strict=True))
        print(
            f"{name} over {base}: wall {spread([a.wall_s / b.wall_s for a, b in pairs], 2)}, CPU "
            f"{spread([a.cpu_s / b.cpu_s for a, b in pairs], 2)}, memory "
            f"{spread([a.pss_mib / b.pss_mib for a, b in pairs], 2)}"
        )


if __name__ == "__main__":
    main()
