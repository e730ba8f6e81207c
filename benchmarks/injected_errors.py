"""Let file-system calls of a run fail, one at a time, and resume the run: nothing may be lost in silence, or crash.

    python -m benchmarks.injected_errors [--quick]

A recorded run shows the classes of calls: the call, and the file with its numbers left out. In each class, the first
and the middle call fail with each of ERRORS; `short` writes half. A run then either finishes with the numbers of the
sound run, or ends by an error and is resumed to the same numbers. The exit code is 1 if one does neither. --quick takes
the first call of a few classes and one error. It needs gcc, and processes that fork.
"""

import argparse
import ctypes
import errno
import importlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_suffix(".c")
# The library's path, for the process that the library is loaded into.
LIBRARY = "INJECTED_ERRORS_LIBRARY"
ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "ESTALE", "short")
QUICK_ERRORS = ("ENOSPC",)
QUICK_CLASSES = (
    ("write", "metrics.h5"),
    ("fsync", "metrics.h5"),
    ("link", "lock"),
    ("rename", "metrics.h5"),
    ("write", "checkpoints/round-*/manifest.json"),
)
LONGEST_S = 60.0
CONFIG = (
    "participants=4",
    "rounds=6",
    "data.partition.domains=2",
    "data.partition.samples_per_participant=60",
    "seed_set.share=0.2",
    "seed_set.max_samples=40",
    "models=[mlp]",
    "topology.kind=random_regular",
    "topology.degree=3",
    "topology.redraw_every=2",
    "method.local_steps=1",
    "method.mutual_steps=1",
    "evaluation.every=2",
    "evaluation.test_samples_per_domain=20",
    "checkpoint.every=2",
    "devices.kind=cpu",
)


@dataclass(frozen=True)
class Case:
    """One call that fails.

    Attributes
    ----------
    call : str
        Such as `write`.
    file : str
        Pattern of the path below the run directory.
    number : int
        Number of the call in its class, from 1.
    error : str
        One of ERRORS.
    """

    call: str
    file: str
    number: int
    error: str


def main() -> None:
    """Build the library, run every case in a process that has it, and print a line for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few classes and one error")
    options = parser.parse_args()
    if shutil.which("gcc") is None:
        sys.exit("gcc is missing, which builds the library that lets calls fail. Install it, as in: apt install gcc")
    if LIBRARY in os.environ:
        sys.exit(1 if sweep(options.quick) else 0)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "injected_errors.so"
        built = ["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(built, check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), LIBRARY: str(library), "OMP_NUM_THREADS": "1"}
        again = [sys.executable, "-m", "benchmarks.injected_errors", *sys.argv[1:]]
        sys.exit(subprocess.run(again, env=environment, cwd=ROOT).returncode)


def sweep(quick: bool) -> int:
    """Run all cases, print the table, and return the number of bad ones."""
    _import()
    library = ctypes.CDLL(os.environ[LIBRARY])
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sound, calls = folder / "sound", folder / "calls"
        if _run(_command(sound), lambda: library.inject_record(_pattern(sound, "*"), os.fsencode(calls))) != 0:
            raise RuntimeError("the sound run fails")
        counts = classes(calls.read_text().splitlines(), sound)
        print(f"{'call':9} {'file':58} {'tries':>5} {'went on':>7} {'resumed':>7}  bad")
        begin = time.perf_counter()
        for (call, file), cases in itertools.groupby(chosen(counts, quick), key=lambda case: (case.call, case.file)):
            found = Counter[str]()
            for case in cases:
                result = _outcome(library, folder / "run", sound, case)
                found[result] += 1
                if result not in ("went on", "resumed"):
                    bad += 1
                    print(f"  BAD {case}: {result}", flush=True)
            good = found["went on"] + found["resumed"]
            row = f"{call:9} {file:58} {found.total():5} {found['went on']:7} {found['resumed']:7}"
            print(f"{row}  {found.total() - good or ''}".rstrip(), flush=True)
    print(f"{bad} bad, {time.perf_counter() - begin:.0f} s")
    return bad


def classes(lines: Sequence[str], run: Path) -> Counter[tuple[str, str]]:
    """Count the recorded calls of a run by their class: the call, and the path below the run with numbers as `*`.

    Parameters
    ----------
    lines : sequence of str
        A call and a path each, separated by a blank.
    """
    found = Counter[tuple[str, str]]()
    for line in lines:
        call, _, path = line.partition(" ")
        # The name of the host, which stands before a process number, may contain anything.
        file = re.sub(r"\.[^/]*\.\d+(?=\.new$)", ".*", os.path.relpath(path, run))
        file = re.sub(r"round-\d+(\.[^/]*)?(?=$|/)", "round-*", file)
        found[call, re.sub(r"\d{3,}", "*", file)] += 1
    return found


def chosen(counts: Counter[tuple[str, str]], quick: bool) -> Iterator[Case]:
    """Yield the cases: of each class, the first and the middle call, with each error that the call can have."""
    for (call, file), count in sorted(counts.items()):
        if quick and (call, file) not in QUICK_CLASSES:
            continue
        for number in sorted({1} if quick else {1, 1 + count // 2}):
            for error in QUICK_ERRORS if quick else ERRORS:
                if error != "short" or call == "write":
                    yield Case(call, file, number, error)


def _outcome(library: ctypes.CDLL, run: Path, sound: Path, case: Case) -> str:
    """Return `went on` or `resumed` if the run has the sound run's numbers in the end, else what is wrong."""
    shutil.rmtree(run, ignore_errors=True)
    number = 0 if case.error == "short" else getattr(errno, case.error)
    pattern = _pattern(run, case.file)
    code = _run(
        _command(run), lambda: library.inject_error(case.call.encode(), pattern, ctypes.c_long(case.number), number)
    )
    if code is None:
        return f"hangs for {LONGEST_S:.0f} s"
    if code < 0:
        return f"ends by {signal.Signals(-code).name}"
    if code == 0:
        return difference(sound, run) or "went on"
    code = _run(["--resume", "auto", *_command(run)])
    if code != 0:
        return f"ends, and the resumed run ends with {code}"
    wrong = difference(sound, run)
    return f"differs after a resume: {wrong}" if wrong else "resumed"


def difference(sound: Path, run: Path) -> str:
    """Return what differs between two complete runs apart from times; empty if nothing does."""
    import numpy as np

    from fedh2l_mpi import metrics
    from fedh2l_mpi.lifecycle import checkpoint_files, status
    from fedh2l_mpi.run_directory import RunDirectory

    written = status.read(run / "status")
    if written is None or written.state != "complete":
        return f"status is {written}"
    wanted, got = metrics.read(sound / "metrics.h5"), metrics.read(run / "metrics.h5")
    if not got.closed or got.problems:
        return f"metrics.h5: {got.problems or 'not closed'}"
    for name in metrics.DIMENSIONS:
        if name in metrics.TIMINGS:
            continue
        ours, theirs = wanted[name], got[name]
        if not np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"):
            return f"array {name}"
    states = []
    for path in (sound, run):
        newest = RunDirectory(path).committed()[0]
        states.append([file["sha256"] for file in checkpoint_files.read_manifest(newest)["files"]])
    return "" if states[0] == states[1] else "the newest checkpoint"


def _command(run: Path) -> list[str]:
    return ["--quiet", "--out", str(run), *itertools.chain.from_iterable(("--set", item) for item in CONFIG)]


def _pattern(run: Path, file: str) -> bytes:
    return os.fsencode(run / file)


def _import() -> None:
    """Import what a run needs, once for all processes that are forked."""
    from fedh2l_mpi.runtime.shared_imports.server import MODULES

    for name in MODULES:
        if name != "mpi4py":
            importlib.import_module(name)


def _run(arguments: list[str], arm: Callable[[], object] = lambda: None) -> int | None:
    """Run the program in a forked process; return its exit code, -signal if it was killed, None if it hangs."""
    from fedh2l_mpi.cli import main as program

    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.environ.pop("LD_PRELOAD", None)
            sys.argv = ["fedh2l_mpi", *arguments]
            arm()
            program.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        finally:
            os._exit(code)
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


if __name__ == "__main__":
    main()
