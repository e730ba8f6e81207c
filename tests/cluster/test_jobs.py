"""The job files on a real Slurm of four nodes: stopped, preempted, cancelled, killed and ended, with both MPIs.

Nodes and GPUs are emulated on this machine; what Slurm and the launchers do is real.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.launching import ROOT, SHARES, Mpi, assert_same, launch, mpich, openmpi, processes
from helpers.slurm_cluster import (
    SLURM,
    Job,
    Submitter,
    all_nodes_answer,
    is_up,
    remove_shared_memory,
    shared_memory_removed,
    slurm,
    wait_until,
)

from fedh2l_mpi import metrics

JOBS = ROOT / "jobs"
# Some 30 ms a round: long enough to be met in the middle of the run.
RING = "participants=4 rounds=24 models=[mlp] evaluation.every=12 checkpoint.every=10 devices.kind=auto"
RANDOM = f"{RING} topology.degree=2"
SHORT = "participants=4 rounds=2 models=[mlp] evaluation.every=2 devices.kind=auto"
# Two nodes with a rank each, instead of what the file asks for.
TWO = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")

# All nodes, before all other jobs.
HIGH = ("--parsable", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that runs; it is started, and stopped in the end, if there was none."""
    if not (SLURM / "start-slurm").exists():
        pytest.skip(f"no Slurm to start: {SLURM}/start-slurm is not there")
    if os.geteuid() != 0:
        pytest.skip("starting a Slurm needs root")
    was_up = is_up()
    if not was_up:
        # It will give the numbers of earlier jobs again.
        remove_shared_memory()
    said = tmp_path_factory.mktemp("slurm") / "start-slurm.log"
    for _ in range(3):
        if not is_up():
            # Into a file: the daemons would hold a pipe open.
            with said.open("a") as file:
                environ = {**os.environ, "SLURM_SB_SMOKE": "no", "SLURM_SB_KILLWAIT": "4"}
                subprocess.run([SLURM / "start-slurm"], stdout=file, stderr=file, timeout=300, env=environ)
        if is_up() and all_nodes_answer(patience_s=15.0):
            break
        # The network of one that was stopped a moment ago may not be gone yet: then daemons cannot listen.
        stop_slurm()
        time.sleep(5.0)
    else:
        pytest.fail(f"Slurm does not start: {said.read_text()}")
    yield
    if not was_up:
        stop_slurm()


def stop_slurm() -> None:
    subprocess.run([SLURM / "stop-slurm"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)


@pytest.fixture
def submit(cluster: None, tmp_path: Path) -> Iterator[Submitter]:
    """Submits jobs, and cancels what is left of them in the end."""
    submitter = Submitter(tmp_path, [])
    yield submitter
    numbers = ",".join(submitter.jobs)
    slurm("scancel", "--quiet", *submitter.jobs)
    wait_until(f"jobs {numbers} do not end", lambda: not slurm("squeue", "--noheader", "--jobs", numbers))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The metrics of an unbroken run in one process, of the ring or the redrawn random graph."""
    done: dict[str, Path] = {}

    def run(settings: str) -> Path:
        if settings not in done:
            graph = "topology.kind=random_regular topology.redraw_every=5" if "topology" in settings else ""
            words = [word for item in f"{graph} {settings}".split() for word in ("--set", item)]
            out = tmp_path_factory.mktemp("alone") / "run"
            ended = launch(["configs/digits_ring.yaml", *words, "--quiet", "--out", str(out)])
            assert ended.code == 0, ended.err
            done[settings] = out / "metrics.h5"
        return done[settings]

    return run


@pytest.fixture
def mpich_here() -> Mpi:
    """MPICH, which goes with srun --mpi=pmi2."""
    found = mpich()
    if found is None:
        pytest.skip("no mpich here")
    return found


@pytest.fixture
def openmpi_here() -> Mpi:
    """Open MPI, which goes with srun --mpi=pmix."""
    found = openmpi()
    if found is None:
        pytest.skip("no openmpi here; make test installs both")
    return found


def logs(job: Job) -> list[str]:
    """What every rank of a job's run has in its log."""
    return [path.read_text() for path in sorted((job.run / "log").iterdir())]


def test_a_job_that_is_signalled_stops_goes_on_and_ends_like_an_unbroken_run(submit, alone, mpich_here):
    job = submit(JOBS / "ring_16.sbatch", *TWO, mpi=mpich_here, settings=RING)
    job.signalled()
    job.wait_until_queued_again()
    assert (job.status("state"), job.status("reason")) == ("stopped", "USR1")
    assert 0 < int(job.status("round")) < 24
    expected = alone(RING)
    assert job.end() == "COMPLETED", job.said()
    assert (job.status("state"), job.facts()["Restarts"]) == ("complete", "1")
    assert_same(expected, job.run / "metrics.h5")


def test_a_preempted_job_goes_on_and_ends_like_an_unbroken_run(submit, alone, openmpi_here):
    job = submit(JOBS / "random_16.sbatch", *TWO, mpi=openmpi_here, settings=RANDOM)
    with job.held():
        submit.jobs.append(slurm("sbatch", *HIGH, "--wrap=true"))
        wait_until("no preemption", lambda: "TERM: the run is asked" in job.said())
    job.wait_until_queued_again()
    assert job.status("state") == "stopped"
    assert job.status("reason") in ("USR1", "TERM")
    expected = alone(RANDOM)
    assert job.end() == "COMPLETED", job.said()
    assert (job.status("state"), job.facts()["Restarts"]) == ("complete", "1")
    assert_same(expected, job.run / "metrics.h5")


def made(script: Path, *options: str) -> Path:
    """A job of two nodes, as the command makes it."""
    words = ["slurm", "configs/digits_ring.yaml", "--nodes", "2", "--time", "10m", "--set", "participants=4"]
    ended = launch([*words, *options, "--elsewhere", "--out", str(script)])
    assert ended.code == 0, ended.err
    return script


@pytest.fixture(scope="session")
def by_mpirun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that starts its ranks by mpirun."""
    return made(tmp_path_factory.mktemp("jobs") / "by_mpirun.sbatch", "--ranks-per-node", "1", "--mpi", "mpirun")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job by srun of which the two ranks of a node share their imports."""
    options = ["--ranks-per-node", "2", "--mpi", "pmix", "--share-imports"]
    return made(tmp_path_factory.mktemp("jobs") / "shared.sbatch", *options)


def test_a_job_by_mpirun_stops_goes_on_and_ends_like_an_unbroken_run(submit, alone, openmpi_here, by_mpirun):
    job = submit(by_mpirun, mpi=openmpi_here, settings=RING)
    job.signalled()
    job.wait_until_queued_again()
    assert job.status("reason") == "USR1"
    expected = alone(RING)
    assert job.end() == "COMPLETED", job.said()
    assert_same(expected, job.run / "metrics.h5")


def test_a_cancelled_job_is_not_queued_again(submit, mpich_here):
    job = submit(JOBS / "ring_16.sbatch", *TWO, mpi=mpich_here, settings=RING)
    with job.held():
        slurm("scancel", job.name)
        wait_until("no word of the signal", lambda: "TERM: the run is asked" in job.said())
    assert job.end() == "CANCELLED"
    wait_until("no word of it", lambda: "cancelled: not queued again" in job.said(), 15)
    assert (job.status("state"), job.facts()["Restarts"]) == ("stopped", "0")
    assert job.status("reason") in ("USR1", "TERM")


@pytest.mark.parametrize(("which", "nodes"), [("openmpi", 2), ("mpich", 1)])
def test_a_job_whose_ranks_share_imports_stops_goes_on_and_ends_like_a_run_without(
    submit, alone, shared, which, nodes, request
):
    job = submit(shared, f"--nodes={nodes}", mpi=request.getfixturevalue(f"{which}_here"), settings=RING)
    job.signalled()
    job.wait_until_queued_again()
    assert (job.status("state"), job.status("reason")) == ("stopped", "USR1")
    expected = alone(RING)
    assert job.end() == "COMPLETED", job.said()
    assert (job.status("state"), job.facts()["Restarts"]) == ("complete", "1")
    # Before the signal, and after it.
    assert [text.count(SHARES) for text in logs(job)] == [2] * 2 * nodes
    assert_same(expected, job.run / "metrics.h5")


def test_a_cancelled_job_whose_ranks_share_imports_stops_in_order_and_leaves_nobody(submit, mpich_here, shared):
    job = submit(shared, "--nodes=1", mpi=mpich_here, settings=RING)
    with job.held():
        names = sorted(processes(job.run).values())
        slurm("scancel", job.name)
        wait_until("no word of the signal", lambda: "TERM: the run is asked" in job.said())
    assert [names.count(name) for name in ("fedh2l-imports", "fedh2l-proxy")] == [1, 2]
    assert job.end() == "CANCELLED"
    wait_until("no word of it", lambda: "cancelled: not queued again" in job.said(), 15)
    assert (job.status("state"), job.facts()["Restarts"]) == ("stopped", "0")
    assert job.status("reason") in ("USR1", "TERM")
    wait_until("processes are left", lambda: not processes(job.run), 5)


def test_ranks_that_might_not_find_each_other_import_for_themselves_and_say_why(submit, mpich_here, shared):
    job = submit(shared, mpi=mpich_here, settings=SHORT)
    assert job.end() == "COMPLETED", job.said()
    why = "imports are not shared: under srun --mpi=pmi2 on several nodes"
    assert [text.count(why) for text in logs(job)] == [1] * 4


# Starts the command outside any container, and notes the image and the paths that are bound.
APPTAINER = """#!/bin/bash
printf '%s ' "$@" >>"$NOTES"; echo >>"$NOTES"
[ "$1" = exec ] || exit 1
shift
while [[ $1 == --* ]]; do [ "$1" != --pwd ] || cd "$2" || exit 1; [ "$1" = --nv ] || shift; shift; done
[ "$1" = "$IMAGE_HERE" ] || exit 1
shift
exec "$@"
"""


def test_a_job_in_a_container_stops_goes_on_and_ends_like_a_run_outside(submit, alone, mpich_here, tmp_path):
    image, stand_in, notes = tmp_path / "image.sif", tmp_path / "bin" / "apptainer", tmp_path / "notes"
    image.touch()
    stand_in.parent.mkdir()
    stand_in.write_text(APPTAINER)
    stand_in.chmod(0o755)
    words = ["slurm", "configs/digits_ring.yaml", "--nodes", "2", "--ranks-per-node", "1", "--time", "5m"]
    words += ["--mpi", "pmi2", "--container", str(image), "--sbatch", "--mem=100M", "--sbatch", "comment='two words'"]
    made = launch([*words, "--set", "participants=4", "--out", str(tmp_path / "contained.sbatch")])
    assert made.code == 0, made.err
    environ = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "NOTES": str(notes), "IMAGE_HERE": str(image)}
    job = submit(tmp_path / "contained.sbatch", mpi=mpich_here, settings=RING, **environ)
    job.signalled()
    job.wait_until_queued_again()
    assert (job.status("state"), job.status("reason")) == ("stopped", "USR1")
    assert job.facts()["MinMemoryNode"] == "100M"
    assert slurm("squeue", "--noheader", "--jobs", job.name, "--Format=comment:20") == "two words"
    expected = alone(RING)
    assert job.end() == "COMPLETED", job.said()
    assert_same(expected, job.run / "metrics.h5")
    # Two ranks, before the signal and after it.
    lines = notes.read_text().splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"exec --pwd {ROOT} --bind {ROOT} --bind {tmp_path}") for line in lines), lines
    assert all(f" {image} {mpich_here.python} -m fedh2l_mpi configs/digits_ring.yaml " in line for line in lines), lines


def test_a_killed_rank_fails_the_job(submit, mpich_here):
    with shared_memory_removed():
        job = submit(JOBS / "ring_16.sbatch", *TWO, mpi=mpich_here, settings=RING)
        pid = job.pid(rank=1)
        wait_until("no round in the file", lambda: metrics.read(job.run / "metrics.h5").rounds > 1, poll=0.01)
        os.kill(pid, signal.SIGKILL)
        assert job.end() == "FAILED"
    assert (job.status("state"), job.facts()["Restarts"]) == ("failed", "0")
    assert "killed" in job.status("reason")
    assert "task 1: Killed" in job.said()
    # What had been finished can be read.
    assert metrics.read(job.run / "metrics.h5").rounds > 1


def test_what_cannot_work_is_refused_with_the_fix(submit, mpich_here, openmpi_here, by_mpirun):
    apart = submit(JOBS / "ring_16.sbatch", *TWO, mpi=mpich_here, settings=SHORT, SRUN_MPI="none")
    per_task = ["--ntasks-per-node=2", "--gpus-per-task=1"]
    shared = submit(by_mpirun, *per_task, mpi=openmpi_here, settings=SHORT)
    assert apart.end() == "FAILED"
    assert "so each would run alone. Use srun --mpi=pmi2" in apart.said()
    assert shared.end() == "FAILED"
    assert "would share one GPU. Use --gpus-per-node, or start with srun" in shared.said()
    for job in (apart, shared):
        assert "the run did not begin" in job.said()
        assert not job.run.exists()
        assert job.facts()["Restarts"] == "0"


def test_an_array_runs_a_sweep_and_an_element_that_is_stopped_goes_on_alone(submit, mpich_here, tmp_path):
    sweep, out = tmp_path / "four.yaml", tmp_path / "out"
    sweep.write_text(
        "set: {participants: 2, rounds: 12, models: [mlp], evaluation.every: 12}\n"
        "axes: {method.temperature: [1.0, 2.0], seed: [0, 1]}\n"
    )
    environ = {"SWEEP": str(sweep), "OUT": str(out), "RUN": str(out / "method.temperature=2.0,seed=1")}
    options = ["--array=0-3", "--ntasks-per-node=1"]
    # The last element has the number of the whole array.
    last = submit(JOBS / "sweep.sbatch", *options, mpi=mpich_here, array=3, **environ)
    last.signalled()
    last.wait_until_queued_again()
    assert last.status("reason") == "USR1"
    elements = [last.element(number) for number in range(4)]
    assert [element.end() for element in elements] == ["COMPLETED"] * 4, last.said()
    assert [element.facts()["Restarts"] for element in elements] == ["0", "0", "0", "1"]

    command = ["sweep", str(sweep), "--out", str(out)]
    listed = launch([*command, "--list"]).out
    assert [line.split()[1] for line in listed.splitlines()] == ["finished"] * 4
    ended = launch(command)
    assert ended.code == 0, ended.err
    assert "4 of 4 runs had already finished" in ended.out
    assert len((out / "table.csv").read_text().splitlines()) == 5


def test_many_participants_on_one_node_and_then_their_analysis(submit, mpich_here):
    settings = "participants=8 rounds=4 models=[mlp,cnn] evaluation.every=2"
    job = submit(JOBS / "cpu_node.sbatch", "--ntasks-per-node=2", mpi=mpich_here, settings=settings)
    looks = submit(JOBS / "analyse.sbatch", f"--dependency=afterok:{job.name}", mpi=mpich_here, RUN=str(job.run))
    assert job.end() == "COMPLETED", job.said()
    assert metrics.read(job.run / "metrics.h5")["rank"].tolist() == [0] * 4 + [1] * 4
    assert looks.end() == "COMPLETED", looks.said()
    assert (job.run / "report.html").stat().st_size > 10_000
    assert len(list((job.run / "plots").iterdir())) >= 8


@pytest.mark.skipif("FEDH2L_TEST_TIME_LIMIT" not in os.environ, reason="takes 90 s: FEDH2L_TEST_TIME_LIMIT=1 runs it")
def test_slurm_itself_signals_a_job_before_its_time_limit(submit, mpich_here):
    settings = RING.replace("rounds=24", "rounds=100000")
    limit = ["--time=2", "--signal=B:USR1@60"]
    job = submit(JOBS / "ring_16.sbatch", *TWO, *limit, mpi=mpich_here, settings=settings)
    wait_until("no signal", lambda: "USR1: the run is asked" in job.said(), 120)
    job.wait_until_queued_again()
    assert (job.status("state"), job.status("reason")) == ("stopped", "USR1")
    assert "queues itself again, restart 1" in job.said()
