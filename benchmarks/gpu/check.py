"""Check the program on a machine with a GPU, part by part.

    python -m benchmarks.gpu.check [--device cuda|cpu] [--tiny] [--only PART,PART] [--skip PART,PART]

`check.sh` starts it after installing what such a machine lacks. It prints a table at the end, and writes check.json and
check.log to the folder $OUT (gpu-check). It exits with 1 if a part failed. README.md explains the parts.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.findings import FAIL, INFO, PASS, SKIP


@dataclass(frozen=True)
class Part:
    """A function of a module of this package that runs in its own process.

    Attributes
    ----------
    is_timing : bool
        Its numbers are times, so it runs alone.
    after : str
        The part that must have ended before; empty: none.
    """

    module: str
    limit_s: float
    is_timing: bool = False
    after: str = ""


# The most valuable come first: if time runs out, the last ones are skipped.
PARTS = {
    "facts": Part("machine", 60, is_timing=True),
    "unit": Part("whole_runs", 300, after="facts"),
    "mpi": Part("whole_runs", 110, after="facts"),
    "agree": Part("correctness", 90, after="facts"),
    "alone": Part("whole_runs", 110, after="facts"),
    "ranks": Part("whole_runs", 170, after="mpi"),
    "methods": Part("correctness", 110, after="facts"),
    "repeat": Part("correctness", 90, after="facts"),
    "resume": Part("whole_runs", 140, after="facts"),
    "again": Part("whole_runs", 140, after="mpi"),
    "graphs": Part("ways", 110, after="facts"),
    "stacked": Part("ways", 90, after="facts"),
    "vision": Part("whole_runs", 150, after="facts"),
    "memory": Part("machine", 90, after="vision"),
    "syncs": Part("machine", 60, after="facts"),
    "seen": Part("whole_runs", 150, after="facts"),
    "speed": Part("steps", 75, is_timing=True),
    "levers": Part("levers", 75, is_timing=True),
    "hosted": Part("whole_runs", 130, is_timing=True),
    "layout": Part("steps", 60, is_timing=True),
    "photo": Part("steps", 45, is_timing=True),
}
# Seconds of the whole limit that the timing parts get for themselves.
TIMING_S = 170.0
# A part is not started with less time than this left.
SHORTEST_S = 15.0
TERM_PATIENCE_S = 4.0


@dataclass
class Running:
    """A part in its process."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    findings: Path
    began_s: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.began_s

    @classmethod
    def start(cls, name: str, folder: Path, environment: dict[str, str]) -> "Running":
        """Start a part with its log and its findings in `folder`."""
        log, findings = (folder / f"{name}.log").open("wb"), folder / f"{name}.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.check", "--part", name, "--findings", str(findings)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        return cls(name, process, log, findings)

    def stop(self) -> None:
        """Ask the part to stop with its children; kill it if it does not."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(TERM_PATIENCE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def results(self, stopped: str) -> list[dict[str, Any]]:
        """Return the part's findings, and one more if it was `stopped` or failed."""
        self.log.close()
        try:
            rows: list[dict[str, Any]] = json.loads(self.findings.read_text())
        except (OSError, ValueError):
            rows = []
        if stopped or self.process.returncode:
            lines = Path(self.log.name).read_text(errors="replace").strip().splitlines()
            detail = stopped or f"exit code {self.process.returncode}: {lines[-1][:110] if lines else ''}"
            rows.append(_row(self.name, FAIL, detail))
        return rows


def _row(part: str, verdict: str, detail: str) -> dict[str, Any]:
    return {"part": part, "finding": "the part itself", "verdict": verdict, "detail": detail}


class Check:
    """The parts' processes, and all that they found."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch, self.began_s = options, scratch, time.monotonic()
        self.out = Path(os.environ.get("OUT", "gpu-check"))
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "check.log").write_bytes(b"")
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        # Modules are found from the root, by ranks under mpirun as well.
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
        self.environment = {
            **os.environ,
            "GPU_CHECK_DEVICE": options.device,
            "GPU_CHECK_TINY": "1" if options.tiny else "0",
            "GPU_CHECK_SCRATCH": str(scratch),
            "GPU_CHECK_MNIST": str(options.mnist.resolve()) if options.mnist else "",
            "PYTHONUNBUFFERED": "1",
            # Some runs choose their device by devices.kind=auto.
            **({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}),
            "PYTHONPATH": path,
        }

    @property
    def elapsed_s(self) -> float:
        """Seconds since the check began."""
        return time.monotonic() - self.began_s

    def run(self, names: list[str], slots: int, until_s: float) -> None:
        """Run these parts, `slots` at a time; skip those that do not fit before `until_s`.

        The unit tests take no slot where there are several: they leave the GPU alone.
        """
        waiting, running = list(names), list[Running]()
        while waiting or running:
            for part in list(running):
                limit_s = min(PARTS[part.name].limit_s * self.options.patience, until_s - (part.began_s - self.began_s))
                if part.process.poll() is not None:
                    self._end(part)
                    running.remove(part)
                elif part.seconds > max(5.0, limit_s):
                    part.stop()
                    self._end(part, f"stopped after {part.seconds:.0f} s")
                    running.remove(part)
            for name in list(waiting):
                active = [part.name for part in running]
                is_free = len([part for part in active if part != "unit"]) < slots or (name == "unit" and slots > 1)
                if not is_free or PARTS[name].after in (*waiting, *active):
                    continue
                waiting.remove(name)
                if until_s - self.elapsed_s < SHORTEST_S:
                    self.rows.append(_row(name, SKIP, "no time was left"))
                else:
                    running.append(Running.start(name, self.scratch, self.environment))
            time.sleep(0.1)

    def _end(self, part: Running, stopped: str = "") -> None:
        found = part.results(stopped)
        self.seconds[part.name] = part.seconds
        self.rows.extend(found)
        failed = sum(row["verdict"] == FAIL for row in found)
        print(
            f"{self.elapsed_s:5.0f} s  {part.name:9} {part.seconds:4.0f} s  {len(found)} findings, {failed} FAIL",
            flush=True,
        )
        # The part `mpi` finds which settings mpirun needs here.
        for row in found:
            self.environment.update(row.get("environment", {}))
        self.save()
        with (self.out / "check.log").open("ab") as whole:
            whole.write(f"\n===== {part.name}\n".encode() + Path(part.log.name).read_bytes()[-300_000:])

    def save(self) -> None:
        """Write everything found so far to check.json."""
        found = {"options": vars(self.options), "seconds": self.seconds, "findings": self.rows}
        (self.out / "check.json").write_text(json.dumps(found, default=str, indent=1))

    def print_table(self) -> int:
        """Print all findings; return the exit code."""
        self.rows.sort(key=lambda row: list(PARTS).index(row["part"]))
        print(f"\n{'':4}  {'part':8} {'finding':36} detail")
        for row in self.rows:
            detail = row["detail"][: self.options.width]
            print(f"{row['verdict']:4}  {row['part']:8} {row['finding'][:36]:36} {detail}")
        counts = {verdict: sum(row["verdict"] == verdict for row in self.rows) for verdict in (PASS, FAIL, INFO, SKIP)}
        summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        print(f"\n{summary}; {self.elapsed_s:.0f} s on {self.options.device}; all numbers: {self.out}/check.json")
        self.save()
        return 1 if counts[FAIL] else 0


def check(options: argparse.Namespace) -> int:
    """Run the chosen parts: `facts` first, then those without times together, then the timing parts alone."""
    chosen = [name for name in PARTS if (not options.only or name in options.only) and name not in options.skip]
    first = [name for name in chosen if name == "facts"]
    together = [name for name in chosen if not PARTS[name].is_timing]
    timing = [name for name in chosen if PARTS[name].is_timing and name != "facts"]
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        parts = Check(options, Path(folder))
        reserved_s = min(TIMING_S, 0.4 * options.limit) if timing else 0.0
        parts.run(first, 1, options.limit)
        parts.run(together, options.slots, options.limit - reserved_s)
        parts.run(timing, 1, options.limit)
        return parts.print_table()


def run_part(name: str, findings: Path | None) -> None:
    """Run one part in this process."""
    import torch

    from benchmarks.gpu import findings as settings
    from benchmarks.gpu import runs
    from fedh2l_mpi.runtime import arithmetic

    settings.stop_children_on_term(runs.children)
    # Parts use CUDA before a run could ask for this.
    arithmetic.fix_workspace()
    # Other parts compute at the same time, and many threads slow down small work on a CPU.
    torch.set_num_threads(4 if settings.ON_GPU else 1)
    part = getattr(importlib.import_module(f"benchmarks.gpu.{PARTS[name].module}"), name)
    part(settings.Report(name, findings))


def _part_names(text: str) -> list[str]:
    found = [name for name in text.split(",") if name]
    for name in found:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"unknown part {name!r}. Known: {', '.join(PARTS)}.")
    return found


def main() -> int:
    """Parse the command line; run all parts, or the one part that a check started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the check without a GPU")
    parser.add_argument("--only", type=_part_names, default=[], metavar="PARTS", help="run these, comma-separated")
    parser.add_argument("--skip", type=_part_names, default=[], metavar="PARTS", help="skip these, comma-separated")
    parser.add_argument("--tiny", action="store_true", help="use small sizes and few rounds, to try the check itself")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="MNIST's IDX files for the part `hosted`")
    parser.add_argument("--limit", type=float, default=470.0, metavar="S", help="seconds for everything (470)")
    parser.add_argument("--slots", type=int, default=3, metavar="N", help="parts at a time, of those without times (3)")
    parser.add_argument("--patience", type=float, default=1.0, metavar="X", help="multiply every part's limit (1)")
    parser.add_argument("--width", type=int, default=120, metavar="N", help="columns of the table's detail (120)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--findings", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.findings)
        return 0
    return check(options)


if __name__ == "__main__":
    sys.exit(main())
