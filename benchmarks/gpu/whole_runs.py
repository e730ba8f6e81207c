"""Parts that start the program as a user does: alone, under mpirun, killed, and on photographs."""

import os
import shutil
import sys
import time
from pathlib import Path

from benchmarks.gpu.findings import DEVICE, FAIL, INFO, MNIST, ON_GPU, PACK, PASS, ROOT, SCRATCH, SKIP, TINY, Report
from benchmarks.gpu.machine import MIB, DeviceMemory, outside_mib
from benchmarks.gpu.runs import (
    MPIRUN,
    RING,
    Ended,
    accuracy,
    command,
    has_torchvision,
    kill,
    log_lines,
    report_differences,
    round_seconds,
    settings,
    start,
    wait_for,
    whole_run,
)

COUNT_RANKS = "from mpi4py import MPI; c = MPI.COMM_WORLD; print('ranks', c.allreduce(1), MPI.get_vendor(), flush=True)"
# Without a network, a machine's own name may not resolve.
MPI_SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"HYDRA_LAUNCHER": "fork"},
    {"HYDRA_LAUNCHER": "fork", "HYDRA_IFACE": "lo"},
    {"HYDRA_LAUNCHER": "fork", "HYDRA_IFACE": "lo", "FI_PROVIDER": "tcp", "UCX_TLS": "tcp,sm,self"},
)
# Small pictures of random blocks, in a folder for each domain and class.
DRAW_PICTURES = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
root, side, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
for domain in ("art", "cartoon", "photo", "sketch"):
    for label in ("dog", "elephant", "giraffe", "house"):
        folder = root / domain / label
        folder.mkdir(parents=True)
        for number in range(each):
            blocks = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
            blocks.resize((side + 20, side + 10), Image.Resampling.BILINEAR).save(folder / f"{number}.jpg")
"""
# Tests of what behaves differently where a GPU is visible.
GPU_TESTS = ("simulation", "batched", "resume", "row_skipping", "devices", "requirements")
# Ways in which a run may be made faster, each of which repeats its bits.
RUNS: dict[str, dict[str, str]] = {
    "default": {},
    "graphs": {"devices__kind": "auto", "devices__graphs": "auto"},
    "together, graphs": {"devices__kind": "auto", "devices__graphs": "auto", "devices__batching": "like"},
}
# Ways of one rank that hosts 16 participants.
HOSTED: tuple[dict[str, str], ...] = (
    {},
    {"devices__batching": "like"},
    {"models": "[mlp]"},
    {"models": "[mlp]", "devices__batching": "like"},
    {"devices__kind": "auto", "devices__graphs": "auto"},
    {"devices__kind": "auto", "devices__graphs": "auto", "devices__batching": "like"},
)
# Examples of these pages start with a PYTHONPATH of their own, which lacks the downloaded wheels.
PAGES = ("test_readme.py", "test_docs.py")


def _milliseconds(out: Path) -> str:
    return f"{1e3 * round_seconds(out):.0f} ms"


def mpi(report: Report) -> None:
    """Find the settings with which mpirun works here; the parts after this one use them."""
    words = [MPIRUN, "-n", "2", sys.executable, "-c", COUNT_RANKS]
    if not shutil.which(words[0]):
        report.add("mpirun", FAIL, f"{words[0]} was not found. wheels.sh downloads MPICH")
        return
    for environment in MPI_SETTINGS:
        ended = wait_for(words, 25, environment)
        if ended.code == 0 and ended.text.count("ranks 2 ") == 2:
            detail = f"{ended.last_line}; {ended.seconds:.1f} s; settings: {environment or 'none'}"
            report.add("mpirun", PASS, detail, environment=environment)
            return
    report.add("mpirun", FAIL, ended.last_line)


def alone(report: Report) -> None:
    """Train the default run in one process, on the device and on the CPU."""
    rounds = 4 if TINY else 40
    accuracies = {}
    for kind in dict.fromkeys((DEVICE, "cpu")):
        ended, out = whole_run(devices__kind=kind, participants=4, rounds=rounds)
        if ended.code:
            report.add(f"one process, {kind}", FAIL, ended.last_line)
            continue
        accuracies[kind] = accuracy(out)
        report.add(
            f"one process, {kind}",
            PASS,
            f"{rounds} rounds in {ended.seconds:.1f} s, {_milliseconds(out)} each; accuracy {accuracies[kind]:.3f}",
            round_s=round_seconds(out),
        )
    if len(accuracies) == 2:
        gap = abs(accuracies["cpu"] - accuracies[DEVICE])
        report.check("accuracy, GPU against CPU", gap < 0.03, f"{gap:.3f} apart")
    ended, out = whole_run(participants=4, rounds=rounds, optimizer__precision="bfloat16")
    detail = ended.last_line if ended.code else f"accuracy {accuracy(out):.3f}, {_milliseconds(out)} a round"
    report.check("one process, bfloat16", ended.code == 0, detail)


def ranks(report: Report) -> None:
    """Let ranks use one GPU: kind auto shares it and says so, kind cuda refuses it; numbers equal one rank's."""
    keys = {"participants": 4, "rounds": 3 if TINY else 15}
    ended, one = whole_run(**keys)
    if ended.code:
        report.add("one rank", FAIL, ended.last_line)
        return
    if ON_GPU:
        refused, _ = whole_run(ranks=2, **keys)
        names_key = "devices.share" in refused.text and "Traceback" not in refused.text
        message = next((line for line in refused.text.splitlines() if "error" in line), "")
        detail = f"exit code {refused.code}: {message[:150]}"
        report.check("2 ranks, devices.kind=cuda", refused.code == 2 and names_key, detail)
    else:
        report.add("2 ranks, devices.kind=cuda", SKIP, "needs CUDA")
    for count in (2, 4):
        ended, out = whole_run(ranks=count, devices__kind="auto" if ON_GPU else DEVICE, **keys)
        if ended.code:
            report.add(f"{count} ranks, devices.kind=auto", FAIL, ended.last_line)
            continue
        detail = f"{ended.seconds:.1f} s; {_milliseconds(out)} a round, one rank {_milliseconds(one)}"
        report.add(f"{count} ranks, devices.kind=auto", PASS, detail, round_s=round_seconds(out))
        report_differences(report, f"1 against {count} ranks", one, out)
        notes = log_lines(out, "ranks share")
        if ON_GPU and count > torch_devices():
            # One line, with the way to change it.
            report.check(f"{count} ranks say that they share", len(notes) == 1, (notes or ["no line"])[0][:150])
    _check_shared_imports(report, one, keys)
    doctor = wait_for(command(["doctor", *settings(devices__share="true")], ranks=2), 60)
    lines = [" ".join(line.split()) for line in doctor.text.splitlines() if "GPU" in line]
    lines = [line for line in lines if "cores and GPUs" not in line]
    report.check("doctor, 2 ranks", doctor.code == 0, (lines[0] if lines else doctor.last_line)[:150])
    warnings = [" ".join(line.split()) for line in doctor.text.splitlines() if "MPS" in line]
    report.add("doctor on MPS", INFO, (warnings[0] if warnings else "nothing")[:150])


def torch_devices() -> int:
    """Return the number of GPUs that this machine shows."""
    import torch

    return torch.cuda.device_count()


def _check_shared_imports(report: Report, one: Path, keys: dict[str, int]) -> None:
    ended, out = whole_run(ranks=2, devices__share="true", options=["--share-imports"], **keys)
    if ended.code:
        report.add("--share-imports", FAIL, ended.last_line)
        return
    logs = [path.read_text() for path in sorted((out / "log").glob("rank-*.log"))]
    sharing = sum("a copy of a process with all imports" in text for text in logs)
    detail = f"{sharing} of 2 ranks share; {ended.seconds:.1f} s"
    if sharing < 2:
        reasons = [line for text in logs for line in text.splitlines() if "share-imports" in line]
        detail += f"; {reasons[0][:120] if reasons else 'no reason in the logs'}"
    report.check("--share-imports", sharing == 2, detail)
    report_differences(report, "with and without shared imports", one, out)


def again(report: Report) -> None:
    """Run the same config in two processes, and on two ranks that share the device; all runs have the same bits."""
    keys = {"participants": 4, "rounds": 3 if TINY else 20, "models": "[lenet5,cnn,resnet8,mobilenet]"}
    for name, more in RUNS.items():
        runs = [whole_run(**keys, **more) for _ in range(2)]
        runs.append(whole_run(ranks=2, devices__share="true", **keys, **more))
        failed = [ended for ended, _ in runs if ended.code]
        if failed:
            report.add(f"again, {name}", FAIL, failed[0].last_line)
            continue
        one, other, two_ranks = (out for _, out in runs)
        report_differences(report, f"twice, {name}", one, other)
        report.add(f"a round, {name}", INFO, _milliseconds(other), round_s=round_seconds(other))
        # Batches of participants are formed on each rank, and their products add in another order.
        same_batches = not (ON_GPU and "devices__batching" in more)
        report_differences(report, f"1 against 2 ranks, {name}", one, two_ranks, required=same_batches)


def resume(report: Report) -> None:
    """Kill a run, resume it, and compare it with one that was not killed; the bits are the same."""
    for name, more in RUNS.items():
        keys = {"participants": 4, "rounds": 12 if TINY else 60, "checkpoint__every": 3, **more}
        ended, whole = whole_run(**keys)
        if ended.code:
            report.add(f"killed, {name}", FAIL, ended.last_line)
            continue
        out = SCRATCH / f"killed-{name.replace(' ', '-')}"
        was_running = _kill_after_checkpoint(6, out, command([RING, *settings(**keys), "--out", str(out)]))
        resumed = wait_for(command(["--resume", "auto", "--out", str(out)]))
        if resumed.code or not was_running:
            detail = resumed.last_line if resumed.code else "the run ended before it could be killed"
            report.add(f"killed, {name}", FAIL, detail)
        else:
            report_differences(report, f"killed and resumed, {name}", whole, out)
            # A resume on the same machine has nothing to warn of.
            notes = log_lines(out, "has changed since")
            report.check(f"warnings of a resume, {name}", not notes, (notes or ["none"])[0][:150])


def _kill_after_checkpoint(rounds: int, out: Path, words: list[str], patience_s: float = 60) -> bool:
    """Start a run and kill it after this checkpoint; return False if it had ended before."""
    process = start(words)
    deadline = time.monotonic() + patience_s
    checkpoint = out / "checkpoints" / f"round-{rounds:08d}"
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    was_running = process.poll() is None
    kill(process)
    return was_running


def vision(report: Report) -> None:
    """Pack photographs, and train torchvision's models and the project's resnet18 on them."""
    tree = SCRATCH / "photographs"
    side, each = (32, 6) if TINY else (224, 24)
    wait_for([sys.executable, "-c", DRAW_PICTURES, str(tree), str(side), str(each)], 60)
    words = ["pack", str(tree), str(PACK), "--layout", "domains", "--side", str(side), "--quiet"]
    packed = wait_for(command(words))
    detail = f"{16 * each} pictures of {side} x {side} in {packed.seconds:.1f} s {packed.last_line}"
    report.check("pack", packed.code == 0, detail[:150])
    if packed.code:
        return
    keys = {"data__root": PACK, "participants": 2, "rounds": 2, "seed_set__share": 0.2}
    keys |= {"seed_set__samples_per_round": 8 if TINY else 32}
    if TINY:
        keys |= {"method__local_steps": 2, "method__mutual_steps": 2}
    names = "[torchvision:resnet18]" if TINY else "[torchvision:resnet18,torchvision:mobilenet_v2]"
    for precision in ("float32", "bfloat16"):
        if not has_torchvision():
            report.add(f"configs/pacs.yaml, {precision}", FAIL if ON_GPU else SKIP, "torchvision is not installed")
            continue
        ended, out = whole_run("configs/pacs.yaml", models=names, optimizer__precision=precision, **keys)
        report.check(f"configs/pacs.yaml, {precision}", ended.code == 0, _two_rounds(ended, out))
    ended, out = whole_run("configs/pacs.yaml", models="[resnet18]", **keys)
    report.check("the same, the project's resnet18", ended.code == 0, _two_rounds(ended, out))


def _two_rounds(ended: Ended, out: Path) -> str:
    return ended.last_line if ended.code else f"2 rounds, {round_seconds(out):.2f} s each"


def hosted(report: Report) -> None:
    """Time 16 participants: on one rank with the GPU, on ranks that share it, and on as many CPU ranks as cores."""
    config, keys = RING, {"participants": 16, "rounds": 4 if TINY else 12}
    if MNIST:
        config, keys = "configs/rotated_mnist.yaml", {**keys, "data__root": MNIST, "rounds": 3 if TINY else 10}
    cores = max(1, min(16, os.cpu_count() or 1))
    cases: list[tuple[int, str, dict[str, str]]] = [(1, DEVICE, more) for more in HOSTED]
    cases += [(2, "cpu", {})] if TINY else [(2, DEVICE, {}), (4, DEVICE, {}), (cores, "cpu", {})]
    peaks = {}
    for count, kind, more in cases:
        options = {**keys, "devices__kind": kind, "devices__share": "true", **more}
        with DeviceMemory() as memory:
            ended, out = whole_run(config, ranks=count if count > 1 else None, timeout_s=60, **options)
        name = ", ".join(
            [f"16 on {count} x {kind}", *(f"{key.rpartition('_')[2]} {value}" for key, value in more.items())]
        )
        if ended.code:
            report.add(name, FAIL, ended.last_line)
            continue
        if kind == "cuda" and not more:
            peaks[count] = memory.peak / MIB
        detail = f"{_milliseconds(out)} a round; {ended.seconds:.1f} s in total"
        report.add(name, INFO, detail, round_s=round_seconds(out), device_mib=memory.peak / MIB)
    if {1, 4} <= set(peaks):
        # Participants and their tensors are the same, except that each rank has the seed and test sets.
        each = (peaks[4] - peaks[1]) / 3
        detail = f"{each:.0f} MiB, counted as {outside_mib():.0f}; one rank takes {peaks[1]:.0f} MiB"
        report.check("memory of a further rank", 0.5 < each / outside_mib() < 1.5, detail, mib=each)


def unit(report: Report) -> None:
    """Run the project's unit tests, which hide the GPU."""
    _run_tests(report, "unit tests, the GPU hidden", ["tests/unit"], {}, required=True)


def seen(report: Report) -> None:
    """Run some unit tests with the GPU visible, which tests hide unless they are asked not to."""
    if not ON_GPU:
        report.add("unit tests, the GPU visible", SKIP, "needs CUDA")
        return
    files = [path for name in GPU_TESTS for path in sorted((ROOT / "tests/unit").rglob(f"test_{name}.py"))]
    _run_tests(
        report, "unit tests, the GPU visible", [str(path) for path in files], {"FEDH2L_TEST_GPU": "1"}, required=False
    )


def _run_tests(report: Report, finding: str, paths: list[str], environment: dict[str, str], required: bool) -> None:
    words = [sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", "--tb=line"]
    words += [f"--ignore={page}" for name in PAGES for page in (ROOT / "tests/unit").rglob(name)]
    words += ["-k", "test_losses"] if TINY else ["-n", str(max(1, min(10, (os.cpu_count() or 1) - 5)))]
    ended = wait_for(words, 400, environment)
    failed = [line.split(" - ")[0] for line in ended.text.splitlines() if line.startswith("FAILED")]
    verdict = PASS if ended.code == 0 else FAIL if required else INFO
    report.add(finding, verdict, ended.last_line.strip("= "), failed=failed)
    for line in failed[:5]:
        report.add("a test that fails", FAIL if required else INFO, line.removeprefix("FAILED ")[:150])
