"""What the doctor says of what it finds: counted fakes for clusters, real files for the file system."""

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import launch

from fedh2l_mpi.config import Config, DevicesConfig
from fedh2l_mpi.errors import LateRankError, UserError
from fedh2l_mpi.launch.doctor import examine, launcher, messages, ranks, software, storage
from fedh2l_mpi.launch.doctor.findings import Finding, Level, fact, failure, good, spans, warning
from fedh2l_mpi.launch.doctor.messages import Load
from fedh2l_mpi.launch.doctor.page import Page
from fedh2l_mpi.launch.doctor.ranks import RankResources
from fedh2l_mpi.lifecycle import provenance
from fedh2l_mpi.runtime.devices import RankSlot
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.world import World

BAD = (Level.WARNING, Level.FAILURE)


def levels(lines: list[Finding]) -> list[Level]:
    return [line.level for line in lines]


# The page.


def test_numbers_in_a_row_are_written_as_a_span():
    assert spans([3, 0, 1, 2, 8]) == "0-3, 8"
    assert spans([5]) == "5"
    assert spans([]) == ""


@pytest.mark.parametrize(
    ("lines", "verdict", "failed"),
    [
        ([good("a", "b"), fact("c", "d")], "a run would work here", False),
        ([warning("a", "b", "c")], "a run would work here: 1 warning", False),
        (
            [failure("a", "b", "c"), failure("d", "e", "f"), warning("g", "h", "i")],
            "a run would not work here: 2 failures, 1 warning",
            True,
        ),
    ],
)
def test_failures_and_warnings_are_told_apart_and_a_failure_decides(capsys, lines, verdict, failed):
    page = Page()
    page.show("section", lines)
    page.close()
    assert page.failed is failed
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "section"
    assert out[-1] == verdict
    for line, told in zip(lines, out[1:-1], strict=True):
        assert told.split() == [word for word in (line.level.value, line.what, *line.text.split()) if word]


def test_a_piped_page_is_80_columns_of_plain_text(capsys):
    page = Page()
    page.show("section", [failure("directory", "/a" * 100, "choose another"), good("[b]x[/b]", "word " * 40)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "[b]x[/b]" in out


# Software.

VERSIONS = {**software.versions_here("MPICH 5.0.2")}


def test_versions_are_those_of_this_environment():
    found = software.findings(VERSIONS, needs_mpi=False)
    assert levels(found) == [Level.GOOD] * 5
    text = {line.what: line.text for line in found}
    assert provenance.source_digest().hex()[:8] in text["fedh2l_mpi"]
    assert re.fullmatch(r"\d+\.\d+\.\d+, HDF5 \d+\.\d+\.\d+", text["h5py"])


@pytest.mark.parametrize("name", ["torch", "numpy", "h5py"])
def test_a_missing_package_is_a_failure_with_its_fix(name):
    found = software.findings({**VERSIONS, name: software.MISSING}, needs_mpi=False)
    bad = [line for line in found if line.level in BAD]
    assert [line.level for line in bad] == [Level.FAILURE]
    fix = "install the extra [run], as in pip install '.[run]'" if name == "torch" else f"pip install {name}"
    assert bad[0].text.startswith(f"not installed. Fix: {fix}")


def test_a_package_that_does_not_load_is_a_failure(monkeypatch):
    assert software.cannot_load("no_such_package").startswith("ModuleNotFoundError")
    monkeypatch.setattr(software, "cannot_load", lambda name: "OSError: libcudart" if name == "torch" else "")
    found = {line.what: line for line in software.findings(VERSIONS, needs_mpi=False)}
    assert found["PyTorch"].level is Level.FAILURE
    assert "is installed but does not load (OSError: libcudart)" in found["PyTorch"].text


@pytest.mark.parametrize(("needs_mpi", "level"), [(True, Level.FAILURE), (False, Level.WARNING)])
@pytest.mark.parametrize("missing", [{"mpi4py": software.MISSING}, {"mpi": "none"}])
def test_without_mpi_only_a_single_process_would_work(needs_mpi, level, missing):
    line = software.findings({**VERSIONS, **missing}, needs_mpi)[-1]
    assert (line.what, line.level) == ("MPI", level)
    assert "install the extra [mpi], as in pip install '.[mpi]' from a checkout" in line.text


def test_ranks_with_other_versions_are_told_with_their_hosts():
    other = {**VERSIONS, "torch": "2.4.0"}
    found = software.differences([VERSIONS, VERSIONS, other], ["n1", "n1", "n2"])
    assert levels(found) == [Level.FAILURE]
    assert re.search(
        r"torch is \S+ on rank 0 \(n1\), but 2.4.0 on rank 2 \(n2\)\. Fix: activate the same", found[0].text
    )
    assert levels(software.differences([VERSIONS] * 3, ["n1"] * 3)) == [Level.GOOD]
    assert software.differences([VERSIONS], ["n1"]) == []


# Launchers and Slurm.

PMIX_LIST = (
    "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n"
)
OLD_LIST = "srun: MPI types are...\nsrun: none\nsrun: pmix_v3\nsrun: openmpi\n"


def test_the_launcher_is_told_with_the_ranks_of_each_node():
    told = launcher.started(Launch("srun", 5, 0), "", ["n1", "n1", "n2", "n2", "n3"])
    assert (told.level, told.text) == (Level.GOOD, "srun started 5 ranks: 2 on n1, 2 on n2, 1 on n3")
    assert launcher.started(Launch("srun", 20, 0), "", [f"n{i}" for i in range(20)]).text.endswith("and 12 more nodes")
    alone = launcher.started(Launch("", 1, 0), "", ["laptop"])
    assert (alone.level, "one process that hosts all participants" in alone.text) == (Level.FACT, True)
    assert launcher.started(Launch("srun", 4, 0), "each would run alone", ["n1"]).level is Level.FAILURE


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to ...", "Open MPI"),
        ("HYDRA build details:\n    Version: 5.0.2\n", "MPICH"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11", "Intel MPI"),
        ("mpirun: unknown option", ""),
    ],
)
def test_an_mpirun_tells_whose_it_is(text, vendor):
    assert launcher.vendor_of_mpirun(text) == vendor


def test_an_mpirun_of_another_mpi_is_warned_of():
    fits = launcher.mpirun_fits("/bin/mpirun", "HYDRA build details:", "MPICH 5.0.2")
    assert (fits.level, fits.text) == (Level.GOOD, "/bin/mpirun, from MPICH like mpi4py")
    other = launcher.mpirun_fits("/bin/mpirun", "mpirun (Open MPI) 5.0.11", "MPICH 5.0.2")
    assert other.level is Level.WARNING
    assert "ranks would not see each other. Fix: use the mpirun of MPICH, or an mpi4py for Open MPI" in other.text
    assert launcher.mpirun_fits("/bin/mpirun", "timed out", "MPICH 5.0.2").level is Level.WARNING
    assert launcher.mpirun_fits("/bin/mpirun", "mpirun (Open MPI) 5.0.11", "none").level is Level.FACT


@pytest.mark.parametrize(
    ("listed", "library", "level", "says"),
    [
        (PMIX_LIST, "MPICH 5.0.2", Level.GOOD, "use srun --mpi=pmi2, which MPICH needs"),
        (PMIX_LIST, "Open MPI 5.0.11", Level.GOOD, "use srun --mpi=pmix, which Open MPI needs"),
        (OLD_LIST, "Open MPI 5.0.11", Level.GOOD, "use srun --mpi=pmix"),
        (OLD_LIST, "MPICH 5.0.2", Level.WARNING, "has no --mpi=pmi2.*start with the mpirun of MPICH inside sbatch"),
        (PMIX_LIST, "none", Level.FACT, "--mpi=pmix, none, cray_shasta, pmi2"),
        ("srun: error: Unable to contact slurm controller", "MPICH 5.0.2", Level.WARNING, "Unable to contact"),
    ],
)
def test_srun_is_told_what_to_speak(listed, library, level, says):
    told = launcher.srun_fits(listed, library)
    assert told.level is level
    assert re.search(says, told.text), told.text


def test_launchers_are_looked_for_on_path(tmp_path, monkeypatch):
    for name, says in (("mpirun", "mpirun (Open MPI) 5.0.11"), ("srun", "MPI plugin types are...\n\tpmix\n\tnone")):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{says}\\n'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told = launcher.ways_to_start("Open MPI 5.0.11")
    assert [(line.what, line.level) for line in told] == [("mpirun", Level.GOOD), ("srun", Level.GOOD)]
    assert str(tmp_path / "mpirun") in told[0].text


def test_a_launcher_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "mpirun").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(launcher, "PATIENCE_S", 0.2)
    told = [line for line in launcher.ways_to_start("MPICH 5.0.2") if line.what == "mpirun"]
    assert (told[0].level, "does not say which MPI" in told[0].text) == (Level.WARNING, True)


def test_slurm_is_told_of_in_a_job_only():
    assert launcher.slurm_job({}) == []
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    (told,) = launcher.slurm_job(job)
    assert told.text.startswith("job 7, 2 nodes (n[1-2]). A run cannot know the time left")
    (told,) = launcher.slurm_job({**job, "SLURM_JOB_END_TIME": "1"})
    assert told.text.endswith("0:00 h left")


def test_an_mpi_that_may_not_speak_pmix_is_cautioned_of():
    assert launcher.may_not_join(Launch("srun", 2, 0), "Open MPI 5.0.11") == ""
    assert launcher.may_not_join(Launch("srun", 2, 0), "MPICH 5.0.2").endswith("use srun --mpi=pmi2.")
    assert launcher.may_not_join(Launch("Open MPI's mpirun", 2, 0), "MPICH 5.0.2").endswith("the mpirun of MPICH.")


# Cores and GPUs.


def seated(ranks_of_nodes: list[int], visible: int = 0) -> list[RankSlot]:
    slots: list[RankSlot] = []
    for number, count in enumerate(ranks_of_nodes, start=1):
        node = tuple(range(len(slots), len(slots) + count))
        slots += [RankSlot(rank, f"n{number}", node, visible) for rank in node]
    return slots


def on_cores(*cores: set[int]) -> list[RankResources]:
    return [RankResources(frozenset(own), machine_cores=8) for own in cores]


def test_a_core_for_each_thread_is_good():
    told = ranks.core_use(seated([2]), on_cores({0, 1, 2, 3}, {0, 1, 2, 3}), threads=2)
    assert (told.level, told.what) == (Level.GOOD, "n1")
    assert told.text == "ranks 0-1, 2 threads each, on 4 cores (0-3)"
    # Bound to a core each, as Open MPI does.
    assert ranks.core_use(seated([2]), on_cores({0}, {1}), threads=1).level is Level.GOOD


@pytest.mark.parametrize(
    ("cores", "threads", "says"),
    [
        (
            [{0, 1}] * 4,
            1,
            "4 threads are too many, .*start 2 ranks a node .*or let them use more of its 8 .srun -c 1",
        ),
        # All bound to one core, with seven idle: counting the machine's cores would not tell.
        ([{0}] * 2, 1, "on 1 core .*2 threads are too many, .*start 1 rank a node"),
        (
            [set(range(8))] * 4,
            4,
            "16 threads are too many, .*start 2 ranks a node .each can host several participants..$",
        ),
        ([{0}, {1}, {2}, {3}], 2, "8 threads are too many"),
        ([{0}, {1, 2, 3}], 2, "a rank may use only 1 core for its 2 threads. Fix: give each rank 2"),
    ],
)
def test_more_threads_than_cores_are_warned_of_with_a_number_that_fits(cores, threads, says):
    told = ranks.core_use(seated([len(cores)]), on_cores(*cores), threads)
    assert told.level is Level.WARNING
    assert re.search(says, told.text), told.text


def test_who_gets_which_gpu_is_listed_by_node():
    slots = seated([2, 2], visible=2)
    resources = [RankResources(frozenset({0}), "NVIDIA A100", f"1234567-{rank}-rest") for rank in range(4)]
    told = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0", "cuda:1"] * 2, resources)
    assert levels(told) == [Level.GOOD] * 2
    assert told[1].what == "n2"
    assert told[1].text == (
        "GPUs, 2 seen: rank 2 cuda:0 (NVIDIA A100, 1234567-2-re), rank 3 cuda:1 (NVIDIA A100, 1234567-3-re)"
    )


def test_ranks_that_would_be_left_on_the_cpu_are_warned_of():
    slots = [*seated([1], visible=1), RankSlot(1, "n2", (1,), 0)]
    resources = [RankResources(frozenset({0}), "A100", "uuid"), RankResources(frozenset({0}))]
    told = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0", "cpu"], resources)
    assert [line.text for line in told if line.level is Level.WARNING] == [
        "rank 1 (on n2) would use the CPU, the others GPUs. Fix: set devices.kind=cuda to make this an error."
    ]


def test_isolated_tasks_are_named_as_such():
    slots = seated([2], visible=1)
    resources = [RankResources(frozenset({0}), "A100", f"uuid-{rank}") for rank in range(2)]
    (told,) = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0"] * 2, resources)
    assert told.text.startswith("GPUs, each rank sees only its own: rank 0 cuda:0 (A100, uuid-0)")


def test_a_shared_gpu_is_a_failure_unless_allowed():
    slots = seated([2], visible=1)
    resources = [RankResources(frozenset({0}), "A100", "uuid")] * 2
    told = ranks.gpu_use(DevicesConfig(), slots, ["cuda:0"] * 2, resources)
    assert told[0].level is Level.FAILURE
    assert "ranks 0 and 1 of a node both have GPU uuid. Request GPUs per node" in told[0].text
    assert Level.FAILURE not in levels(ranks.gpu_use(DevicesConfig(share=True), slots, ["cuda:0"] * 2, resources))


def test_a_gpu_that_cannot_be_used_is_a_failure():
    resources = [RankResources(frozenset({0}), trouble="RuntimeError: CUDA driver version is insufficient")]
    (told,) = ranks.gpu_use(DevicesConfig(), seated([1], 1), ["cuda:0"], resources)
    assert told.level is Level.FAILURE
    assert (
        "rank 0 cannot use cuda:0: RuntimeError: CUDA driver version is insufficient (on n1). Fix: check" in told.text
    )


def test_too_few_gpus_are_a_failure_with_the_runs_own_words(monkeypatch):
    monkeypatch.setattr(ranks, "visible_gpus", lambda: 0)
    told = ranks.examine(World(None), DevicesConfig(kind="cuda"), {})
    assert [line.text for line in told if line.level is Level.FAILURE] == [
        "devices.kind: got 'cuda', but no CUDA device is visible. Use 'auto' or 'cpu'."
    ]


def test_granted_gpus_that_torch_does_not_see_are_a_warning(monkeypatch):
    monkeypatch.setattr(ranks, "visible_gpus", lambda: 0)
    slurm = {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}
    told = ranks.examine(World(None), DevicesConfig(), slurm)
    assert [line.text for line in told if "PyTorch sees none" in line.text and line.level is Level.WARNING]
    assert told[-1].text == "CUDA_VISIBLE_DEVICES '0,1' on rank 0"


def test_many_nodes_stay_on_one_page_and_a_bad_one_is_among_those_shown():
    many = [good(f"n{number}", "fine") for number in range(100)] + [warning("n100", "slow", "mend it")]
    shown = ranks._in_short(many)
    assert len(shown) == ranks.LISTED + 1
    assert shown[0].what == "n100"
    assert shown[-1].text == "and 89 more nodes"


# Files.


def test_what_was_tried_is_removed_again(tmp_path):
    told = storage.examine(World(None), tmp_path, {})
    assert {line.what for line in told} >= {"directory", "space", "locks", "rename", "HDF5"}
    assert not [line for line in told if line.level is Level.FAILURE]
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_out_or_what_holds_it_or_runs_or_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.folder_for(None).resolve() == tmp_path
    Path("runs").mkdir()
    assert storage.folder_for(None) == Path("runs")
    assert storage.folder_for("runs/a/b/c") == Path("runs")
    assert storage.folder_for(str(tmp_path / "x")) == tmp_path
    Path("file").touch()
    for out in ("file", "file/run"):
        with pytest.raises(UserError, match="--out: file is a file"):
            storage.folder_for(out)
    with pytest.raises(UserError, match="--out: aaa.* cannot be written: File name too long"):
        storage.folder_for("a" * 300)


def test_a_directory_that_cannot_be_written_is_a_failure():
    told = storage.examine(World(None), Path("/proc"), {})
    assert levels(told) == [Level.FAILURE]
    assert re.search(r"/proc cannot be written: .*. Fix: choose another directory with --out", told[0].text)


@pytest.mark.parametrize(
    ("setting", "level"), [(None, Level.FAILURE), ("TRUE", Level.FAILURE), ("BEST_EFFORT", Level.GOOD)]
)
def test_a_file_system_without_locks_needs_hdf5_to_be_told(tmp_path, monkeypatch, setting, level):
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = storage.locks(tmp_path, {} if setting is None else {"HDF5_USE_FILE_LOCKING": setting})
    assert told.level is level
    assert "flock does not work here (ENOLCK)" in told.text
    assert (level is Level.GOOD) or "export HDF5_USE_FILE_LOCKING=BEST_EFFORT" in told.text


def test_locks_that_keep_nobody_out_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    assert storage.locks(tmp_path, {}).level is Level.WARNING


def test_a_failing_fsync_is_a_failure(tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    told = storage.renames(tmp_path)
    assert (told.level, "rename or fsync does not work here: Invalid argument" in told.text) == (Level.FAILURE, True)


def test_a_metrics_file_that_cannot_be_locked_is_a_failure(tmp_path, monkeypatch):
    from fedh2l_mpi import metrics

    def refuse(path: Path, header: object) -> None:
        raise BlockingIOError(11, "unable to lock file,\n errno = 11")

    monkeypatch.setattr(metrics, "MetricsWriter", refuse)
    told = storage.metrics_file(tmp_path)
    assert told.level is Level.FAILURE
    assert "unable to lock file, errno = 11. Fix: export HDF5_USE_FILE_LOCKING=BEST_EFFORT" in told.text


MOUNTS = """\
25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 25 0:40 / /home rw - nfs4 server:/home rw
31 25 0:41 / /scratch\\040big rw shared:2 master:3 - lustre mgs@tcp:/scratch rw
32 25 0:42 / /dev/shm rw - tmpfs tmpfs rw
33 30 0:43 / /home/me rw - ext4 /dev/sdb rw
34 30 0:44 / /home/me rw - xfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "mount"),
    [
        ("/var/x", "ext4", "/"),
        ("/home/you/runs", "nfs4", "/home"),
        ("/homeless", "ext4", "/"),
        ("/scratch big/runs", "lustre", "/scratch big"),
        ("/home/me/runs", "xfs", "/home/me"),
    ],
)
def test_the_file_system_is_that_of_the_longest_and_last_mount(path, kind, mount):
    assert storage.file_system(Path(path), MOUNTS) == (kind, mount)
    assert storage.file_system(Path(path), "") == ("", "")


@pytest.mark.parametrize(("kind", "level"), [("nfs4", Level.WARNING), ("tmpfs", Level.WARNING), ("lustre", Level.GOOD)])
def test_a_file_system_that_orders_no_writes_or_forgets_is_warned_of(tmp_path, monkeypatch, kind, level):
    monkeypatch.setattr(storage, "_mounts", lambda: f"1 1 0:1 / / rw - {kind} x rw\n")
    assert storage._directory(tmp_path)[0].level is level


def test_ranks_that_do_not_share_the_directory_are_told_by_host():
    folder = Path("/scratch")
    assert storage.shared(["n1", "n1"], ["", ""], folder).level is Level.FACT
    assert storage.shared(["n1", "n2"], ["", ""], folder).level is Level.GOOD
    told = storage.shared(["n1", "n1", "n2", "n3"], ["", "", "does not see it: No such file", "x"], folder)
    assert told.level is Level.FAILURE
    assert told.text.startswith("2 of 4 ranks (on n2, n3) do not share /scratch: rank 2 does not see it")


def test_a_file_that_never_comes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    assert storage._reads(tmp_path / "token", "x") == "does not see it: No such file or directory"
    (tmp_path / "token").write_text("x")
    assert storage._reads(tmp_path / "token", "x") == ""
    assert storage._reads(tmp_path / "token", "y") == "reads a different text there"


# Messages.


def test_the_ring_is_told_by_its_median_and_its_slowest_rank():
    told = messages.ring_finding(Load("posteriors of 320 x 10", 12_852), [1e-3, 2e-3, 3e-3, 50e-3], [0] * 4)
    assert told.level is Level.GOOD
    assert "(12,852 bytes)" in told.text
    assert "2.50 ms (5 MB/s), at the slowest rank (3) 50.00 ms" in told.text


def test_a_message_that_arrives_changed_is_a_failure():
    told = messages.ring_finding(Load("posteriors", 100), [1e-3] * 3, [0, 0, 2])
    assert told.level is Level.FAILURE
    assert "2 of 69 arrived changed, the first at rank 2" in told.text


def test_every_rank_and_round_sends_other_bytes():
    sent = {bytes(messages._pattern(rank, number, 100)) for rank in range(10) for number in range(-3, 20)}
    assert len(sent) == 230
    assert {len(message) for message in sent} == {100}


def test_clocks_far_apart_are_warned_of():
    near = messages.clocks(["n2", "n3"], [(0.002, 0.0001), (-0.004, 0.0001)])
    assert (near.level, "of 3 hosts, that of n3 differs most from rank 0's: -4.0 ms" in near.text) == (Level.GOOD, True)
    assert messages.clocks(["n2"], [(3.0, 0.0001)]).level is Level.WARNING
    assert messages.clocks([], []).level is Level.FACT


def test_messages_are_as_large_as_a_runs_would_be():
    from fedh2l_mpi.config.loading import load

    assert messages.load_of(load(None).resolved(1, False)) == Load("posteriors of 288 x 10", 48 + 4 + 4 * 288 * 10)
    coded = load(None, ["exchange.codec=uint8"]).resolved(1, False)
    assert messages.load_of(coded) == Load("posteriors of 288 x 10", 48 + 4 + 288 * 10)
    assert messages.load_of(load(None, ["method.name=independent"]).resolved(1, False)) is None


# The whole.


def test_a_step_that_hangs_ends_the_process_with_words():
    code = (
        "import time; from fedh2l_mpi.launch.doctor.examine import Watchdog\n"
        "with Watchdog('rank 3 of 4', 0.2) as watchdog:\n"
        "    watchdog.step('first'); time.sleep(0.05); watchdog.step('sending messages'); time.sleep(30)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert "doctor, rank 3 of 4: sending messages took longer than 0.2 s, so a run would not work here" in ended.stderr


def test_a_late_rank_is_a_failure_on_the_page(capsys, monkeypatch):
    def late(*arguments: object) -> None:
        raise LateRankError("no message of the ring from rank 1 within 30 s (exchange.deadline_s)")

    codes: list[int] = []
    world = World(None)
    monkeypatch.setattr(world, "abort", codes.append)
    monkeypatch.setattr(examine.messages, "examine", late)
    examine.examine(world, None, [], None, {})
    assert codes == [1]
    out = capsys.readouterr().out
    assert "FAIL messages" in out
    assert "within 30 s, so a run would not work here. Fix: check" in " ".join(out.split())
    assert "a run would not work here: 1 failure" in out


def test_a_process_of_many_that_stand_alone_leaves_the_page_to_the_first(capsys):
    environ = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}
    assert examine.examine(World(None), None, [], None, environ) == 0
    assert capsys.readouterr().out == ""


def test_one_process_under_a_launcher_needs_no_mpi(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(software, "mpi_of_mpi4py", lambda: "none")
    environ = {"PMI_SIZE": "1", "PMI_RANK": "0"}
    assert examine.examine(World(None, launched=True), None, [], str(tmp_path), environ) == 0
    assert "warn MPI" in capsys.readouterr().out


def test_a_config_that_a_broken_library_keeps_from_being_tried_is_a_failure(monkeypatch):
    def broken(config: object) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(messages, "load_of", broken)
    load, told = examine._load(Config(), None, 1, False)
    assert (load, levels(told)) == (None, [Level.FAILURE])
    assert "cannot be tried: libcudart.so.12: cannot open" in told[0].text


def test_on_a_laptop_the_page_ends_with_the_verdict(tmp_path):
    ended = launch(["doctor", "--out", str(tmp_path)])
    assert ended.code == 0, ended
    assert "none: a run here is one process that hosts all" in ended.out
    assert "4 participants; data, models and graph fit" in " ".join(ended.out.split())
    assert ended.out.splitlines()[-1].startswith("a run would work here")
    assert ended.err == ""


def test_a_run_that_would_not_work_is_exit_code_1_and_a_mistake_2(tmp_path, capsys):
    wrong = ["data.name=mnist", f"data.root={tmp_path}/nowhere"]
    assert examine.examine(World(None), None, wrong, str(tmp_path), {}) == 1
    out = capsys.readouterr().out
    assert "FAIL config" in out
    assert "is not a folder" in " ".join(out.split())
    for words in (["doctor", "--set", "rounds=-1"], ["doctor", "--bogus"], ["doctor", "--out", __file__]):
        assert launch(words).code == 2


def test_what_is_not_installed_is_told_on_the_page_and_not_by_a_traceback(tmp_path):
    code = (
        "import sys\n"
        "from importlib import metadata\n"
        "gone = ('torch', 'numpy', 'h5py', 'mpi4py')\n"
        "sys.modules.update(dict.fromkeys(gone))\n"
        "version = metadata.version\n"
        "def missing(name):\n"
        "    if name in gone: raise metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "metadata.version = missing\n"
        "sys.argv[1:] = ['doctor', '--out', sys.argv[1]]\n"
        "from fedh2l_mpi.cli.main import main\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr == ""
    words = " ".join(ended.stdout.split())
    for says in (
        "FAIL PyTorch not installed. Fix: install the extra [run], as in pip install '.[run]' from a checkout",
        "FAIL NumPy not installed. Fix: pip install numpy",
        "FAIL h5py not installed. Fix: pip install h5py",
        "warn MPI mpi4py is not installed, so each run here is a single process. Fix: install the extra [mpi]",
        "FAIL HDF5 cannot be tried",
        "FAIL config the default config cannot be tried",
        "a run would not work here: 5 failures",
    ):
        assert says in words, words
