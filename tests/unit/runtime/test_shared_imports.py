"""What `--share-imports` decides by, and what a process hands over to the one that takes its place."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from helpers.launching import wait_for

from fedh2l_mpi.runtime import shared_imports
from fedh2l_mpi.runtime.shared_imports import process_state, rendezvous, server


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"MPI_LOCALNRANKS": "3", "PMI_SIZE": "8"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NODEID": "0"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "1"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "2"}, 3),
        # A batch script's own shell.
        ({"SLURM_NTASKS": "8", "SLURM_NODEID": "0"}, 1),
        # One process, and launchers that do not say how many there are on a node.
        ({"PMI_SIZE": "1"}, 1),
        ({"FLUX_JOB_SIZE": "8"}, None),
        ({"JSM_NAMESPACE_SIZE": "8"}, None),
    ],
)
def test_launchers_tell_how_many_ranks_are_on_a_node(environ, ranks):
    assert rendezvous.ranks_on_node(environ) == ranks


@pytest.mark.parametrize(
    ("environ", "works"),
    [
        ({"MPI_LOCALNRANKS": "3"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "3", "PMIX_RANK": "0"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "3"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "3", "PMIX_RANK": "0"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "3(x2)", "SLURM_STEP_NUM_NODES": "2"}, False),
        ({"MV2_COMM_WORLD_LOCAL_SIZE": "3"}, False),
    ],
)
def test_imports_are_shared_unasked_where_the_launcher_is_known_to_allow_it(environ, works):
    assert rendezvous.is_known_to_work(environ) == works


@pytest.mark.parametrize(
    ("words", "environ", "mode", "rest"),
    [
        ([], "", "auto", []),
        ([], "never", "never", []),
        (["--share-imports"], "never", "always", ["--share-imports=always"]),
        (["--share-imports", "c.yaml"], "", "always", ["--share-imports=always", "c.yaml"]),
        (["--share-imports", "never", "c.yaml"], "", "never", ["--share-imports=never", "c.yaml"]),
        (["--share-imports=auto", "--quiet"], "always", "auto", ["--share-imports=auto", "--quiet"]),
        (["--share-imports=perhaps"], "", "perhaps", ["--share-imports=perhaps"]),
    ],
)
def test_the_option_counts_before_the_environment_and_means_always_without_a_value(words, environ, mode, rest):
    assert shared_imports.mode_of(words, {"FEDH2L_SHARE_IMPORTS": environ} if environ else {}) == mode
    assert shared_imports.with_value(words) == rest


@pytest.mark.parametrize("ranks", [2, 3])
def test_two_ranks_import_for_themselves_unasked(monkeypatch, ranks):
    monkeypatch.setenv("MPI_LOCALNRANKS", str(ranks))
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    # The third reason, which comes later, shows that three would share.
    refused = shared_imports.begin(lambda: True, "auto").refused
    assert refused.startswith("OMP_PROC_BIND is set") == (ranks == 3)


def test_ranks_of_mpich_share_nothing_where_slurm_would_cut_what_they_publish():
    by_srun = {"PMI_FD": "11", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert rendezvous.long_addresses_are_cut(by_srun)
    assert not rendezvous.long_addresses_are_cut({**by_srun, "SLURM_STEP_NUM_NODES": "1"})
    # MPICH's own mpirun, and Open MPI under srun --mpi=pmix.
    assert not rendezvous.long_addresses_are_cut({**by_srun, "MPI_LOCALNRANKS": "2"})
    assert not rendezvous.long_addresses_are_cut({name: by_srun[name] for name in by_srun if name != "PMI_FD"})


def test_processes_meet_only_where_what_libraries_read_at_load_is_the_same(monkeypatch):
    here = rendezvous.find_address()
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps-1")
    monkeypatch.setenv("GPU_DEVICE_ORDINAL", "1")
    assert rendezvous.find_address() == here
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    other = rendezvous.find_address()
    assert other != here
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert rendezvous.find_address() not in (here, other)


def test_a_rank_whose_launcher_cannot_be_seen_imports_for_itself(monkeypatch):
    # As the first process of a PID namespace has it.
    monkeypatch.setattr(os, "getppid", lambda: 0)
    for name in (*rendezvous.KNOWN_BY, *rendezvous.BINDS_THREADS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPI_LOCALNRANKS", "2")
    assert "/proc/0/stat cannot be read (No such file or directory)" in str(shared_imports.begin(lambda: True))


# Whatever asks for GPUs before the fork fixes the answer for all ranks, or makes CUDA refuse to work in the children.
ASKS_FOR_GPUS = """
import sys, torch, weakref
from fedh2l_mpi.runtime.shared_imports import server
asked = []
def recorded(name, original):
    return lambda *given: (asked.append(name), original(*given))[1]
for name in ("init", "_lazy_init", "is_available", "device_count", "_device_count_nvml", "current_device"):
    setattr(torch.cuda, name, recorded(name, getattr(torch.cuda, name)))
if len(sys.argv) > 1:
    torch.cuda.is_initialized = lambda: True
# Ranks finalize only what they make themselves.
server.made = weakref.finalize(torch, print, "finalized")
print(repr(server._import_everything()), asked, torch.cuda._cached_device_count, server.made.atexit)
weakref.finalize(server, print, "the rank's own")
"""


def test_the_server_asks_for_no_gpu_and_serves_nobody_if_a_library_did():
    command, environ = [sys.executable, "-c", ASKS_FOR_GPUS], {**os.environ, **dict.fromkeys(server.ONE_THREAD, "1")}
    said = subprocess.check_output(command, text=True, timeout=60, env=environ)
    assert said == "'' [] None False\nthe rank's own\n"
    said = subprocess.check_output([*command, "a library did"], text=True, timeout=60, env=environ)
    assert said == "'importing initialises CUDA, which a forked process cannot use' [] None False\nthe rank's own\n"


def test_ranks_whose_control_groups_let_them_open_other_gpus_are_refused():
    with socket.socket() as listener:
        group = server._Server(listener, proxies=3, refused="")
        cpus = sorted(os.sched_getaffinity(0))
        said = [
            group._unlike({"device_files": files, "cpus": cpus})
            for files in (
                ["/dev/nvidia0", "/dev/nvidiactl"],
                ["/dev/nvidiactl"],
                [],
                ["/dev/nvidia0", "/dev/nvidiactl"],
            )
        ]
    first = "but the first rank on this node may open /dev/nvidia0, /dev/nvidiactl"
    assert said == [
        "",
        f"this rank may open the GPUs /dev/nvidiactl, {first}",
        f"this rank may open the GPUs none, {first}",
        "",
    ]


# The sender has 300 files, more than the kernel passes in one message; the receiver has files at the same numbers.
HANDS_OVER = """
import os, signal, socket, sys
from fedh2l_mpi.runtime.shared_imports import process_state
ours, theirs = socket.socketpair()
child = os.fork()
if child:
    theirs.close()
    for number in range(20, 320):
        file = os.open(f"file-{number}", os.O_RDWR | os.O_CREAT)
        os.write(file, b"%d" % number)
        os.dup2(file, number)
        os.close(file)
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    sys.argv[:] = ["prog", "--x"]
    os.environ["OF_THE_RANK"] = "yes"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    sys.stdout.reconfigure(encoding="latin-1", errors="replace")
    process_state.send(ours, process_state.capture())
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ours.close()
os.environ["OF_THE_SERVER"] = "yes"
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2, *range(15, 330)):
    if number != theirs.fileno():
        os.dup2(null, number)
facts, received = process_state.receive(theirs)
theirs.close()
process_state.restore(facts, received)
print(sys.argv, os.environ.get("OF_THE_RANK"), os.environ.get("OF_THE_SERVER"), os.path.basename(os.getcwd()))
print(signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(0, []))
open_now = {int(name) for name in os.listdir("/proc/self/fd")}
# One more is open while they are listed.
print(len(open_now - {0, 1, 2, *range(20, 320)}), all(os.pread(n, 9, 0) == b"%d" % n for n in range(20, 320)))
print("\u00fc\u4e2d", sys.stdout.name)
"""


def test_a_process_is_handed_over_with_all_its_files_and_each_keeps_its_number(tmp_path):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1024:
        pytest.skip("too few open files are allowed here")
    package = Path(process_state.__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", HANDS_OVER],
        capture_output=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode("latin-1").splitlines() == [
        "['prog', '--x'] yes None elsewhere",
        f"{signal.SIG_IGN!s} {signal.SIG_DFL!s} {{{signal.SIGUSR2!r}}}",
        "1 True",
        "\u00fc? <stdout>",
    ]


# One of two ranks on a node that begin as `python -m fedh2l_mpi --share-imports` does.
BEGINS = """
import os, signal, time
from fedh2l_mpi.runtime import shared_imports
def is_run():
{is_run}
{before}
print(shared_imports.begin(is_run))
{after}
"""


def begin(
    folder: Path,
    is_run: str = "    return True",
    before: str = "",
    after: str = "",
    environ: Mapping[str, str] | None = None,
    starts_with: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start a process that meets those of the same folder only, which is where it imports from first."""
    kept = {name: value for name, value in os.environ.items() if name not in rendezvous.KNOWN_BY}
    package = Path(process_state.__file__).parents[3]
    return subprocess.Popen(
        [*starts_with, sys.executable, "-c", BEGINS.format(is_run=is_run, before=before, after=after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**kept, "MPI_LOCALNRANKS": "2", "PYTHONPATH": f"{folder}:{package}", **(environ or {})},
    )


def ended(process: subprocess.Popen[str], timeout: float = 20) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process, which is killed if it does not end."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out.strip(), err


REFUSED = "--share-imports: imports are not shared: "


def test_ranks_import_for_themselves_where_a_library_fails_to_load(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    why = "importing fails with OSError: libcudart.so.12: cannot open shared object file"
    for rank in [begin(tmp_path), begin(tmp_path)]:
        assert ended(rank) == (0, REFUSED + why, "")


def test_ranks_that_a_script_of_their_own_starts_import_for_themselves(tmp_path):
    script = ["sh", "-c", '"$@"; exit $?', "sh"]
    code, said, _ = ended(begin(tmp_path, is_run="    return False", starts_with=script))
    assert code == 0
    assert re.search(
        r"not shared: pid \d+, such as a script, started this rank and waits\. Use `exec python` there", said
    )


@pytest.mark.parametrize("folder", ["missing", "x" * 200])
def test_ranks_share_imports_whatever_folder_for_temporary_files_they_have(tmp_path, folder):
    # Longer than the path of a Unix socket may be.
    (tmp_path / "torch.py").write_text("raise ImportError\n")
    environ = {"TMPDIR": str(tmp_path / folder)}
    for rank in [begin(tmp_path, environ=environ), begin(tmp_path, environ=environ)]:
        code, said, err = ended(rank)
        assert (code, err) == (0, "")
        assert "a copy of a process with all imports" in said


def test_another_users_process_at_the_address_is_no_import_server(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    address, (says, hears) = f"\0test-{tmp_path}".encode()[:100], os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            os.write(hears, b"+")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(says, 1) == b"+"
        with pytest.raises(rendezvous.CannotShareError, match="a process of user 65534 has bound the address"):
            rendezvous.connect_or_listen(address)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(says)
        os.close(hears)


# Far more files under way between processes than one without privileges may have; the limit is the user's.
TOO_MANY_FILES = """
import array, ctypes, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
one, other = socket.socketpair()
while {under_way}:
    try:
        one.sendmsg([b"-"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 100))])
    except OSError:
        break
"""


def test_a_rank_that_cannot_be_handed_over_goes_on_at_once_and_keeps_nobody_waiting(tmp_path):
    why = "this rank's files cannot be sent to the import server: Too many references: cannot splice"
    first = begin(tmp_path, is_run="    return False", before=TOO_MANY_FILES.format(under_way=True))
    assert ended(first, timeout=server.HANDOVER_S - 1) == (0, REFUSED + why, "")
    # Neither for that server nor for one that it founds itself.
    second = begin(tmp_path, is_run="    return False", before=TOO_MANY_FILES.format(under_way=False))
    assert ended(second, timeout=server.HANDOVER_S - 1) == (0, REFUSED + "there is no run", "")


def catches(pid: int, number: int) -> bool:
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught[1], 16) >> (number - 1) & 1)


# Stands for imports that take seconds.
IMPORTS_LONG = """
    while not os.path.exists("imported"):
        time.sleep(0.01)
    {then}"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("then", ["return False", "os._exit(1)"])
def test_a_signal_sent_while_the_server_imports_is_not_lost_when_it_then_refuses_or_ends(tmp_path, then, number):
    told, other = [begin(tmp_path, is_run=IMPORTS_LONG.format(then=then)) for _ in range(2)]
    try:
        # The last for which it installs a handler.
        wait_for("the handlers", lambda: catches(told.pid, signal.SIGRTMAX))
        told.send_signal(number)
        time.sleep(0.1)
        assert told.poll() is None
        (tmp_path / "imported").touch()
        assert ended(told)[:2] == (-number, "")
        assert ended(other)[0] == 0
    finally:
        (tmp_path / "imported").touch()
        told.kill()
        other.kill()


HANDLER_FROM_C = """
#include <signal.h>
static void sample(int number) {}
__attribute__((constructor)) static void loaded(void) { signal(SIGPROF, sample); }
"""


@pytest.mark.parametrize("shared", [True, False])
def test_a_handler_from_before_python_stays_where_it_is(tmp_path, shared):
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler on this machine")
    library = tmp_path / "profiler.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=HANDLER_FROM_C, text=True, check=True, timeout=60)
    # What is missing is the ranks' business, and the rest is imported in a moment.
    (tmp_path / "torch.py").write_text("raise ImportError\n")
    how = {
        "is_run": f"    return {shared}",
        "after": "print(signal.getsignal(signal.SIGPROF))",
        "environ": {"LD_PRELOAD": str(library)},
    }
    for rank in [begin(tmp_path, **how), begin(tmp_path, **how)]:
        code, out, err = ended(rank)
        assert (code, err) == (0, "")
        # As Python calls it.
        assert out.splitlines()[1] == "None"
        assert ("a copy of a process with all imports" in out) == shared
