"""The doctor's whole page, and what ends it early."""

import subprocess
import sys

from helpers.doctor_findings import levels
from helpers.launching import launch

from fedh2l_mpi.config import Config
from fedh2l_mpi.errors import LateRankError
from fedh2l_mpi.launch.doctor import examine, messages, software
from fedh2l_mpi.launch.doctor.findings import Level
from fedh2l_mpi.runtime.world import World


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
