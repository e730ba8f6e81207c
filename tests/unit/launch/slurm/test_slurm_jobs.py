"""Batch jobs: their text, what is refused before there is one, and what they decide, with stand-ins for Slurm.

On a real Slurm: tests/cluster.
"""

import os
import re
import shlex
import subprocess
from dataclasses import dataclass

import pytest
from helpers.launching import ROOT
from helpers.pages import blocks

from fedh2l_mpi.cli import commands, slurm
from fedh2l_mpi.config import loading
from fedh2l_mpi.config.comparison import what_counts
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.launch.slurm import script as job
from fedh2l_mpi.launch.slurm.request import request
from fedh2l_mpi.runtime.world import World

READY = sorted((ROOT / "jobs").glob("*.sbatch"))
DIGITS = str(ROOT / "configs" / "digits_ring.yaml")
SMALL = [DIGITS, "--ranks-per-node", "2", "--time", "1h", "--mpi", "pmi2", "--elsewhere"]


def made(*words: str) -> str:
    """The job that these options give."""
    asked = commands.parse(["slurm", *words])
    return job.render(request(slurm.command_of(asked.options, asked.words)))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.name)
def test_a_ready_job_is_what_the_command_in_it_makes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = re.search(r"^# Made by: python -m fedh2l_mpi slurm (.*)$", path.read_text(), re.MULTILINE)
    assert made(*shlex.split(command[1])) == path.read_text()


def test_the_ready_jobs_are_those_that_the_readme_speaks_of():
    names = ["analyse.sbatch", "cpu_node.sbatch", "random_16.sbatch", "ring_16.sbatch", "sweep.sbatch"]
    assert [path.name for path in READY] == names
    for words in ("--nodes=4", "--ntasks-per-node=4", "--gpus-per-node=4", "--signal=B:USR1@120", "--requeue"):
        assert f"#SBATCH {words}\n" in (ROOT / "jobs" / "ring_16.sbatch").read_text()
    # An array of as many as the sweep has elements.
    assert "#SBATCH --array=0-9%4\n" in (ROOT / "jobs" / "sweep.sbatch").read_text()


def test_every_job_that_the_page_makes_is_made(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "".join(block.text for block in blocks(ROOT / "docs" / "cluster.md")).replace("\\\n", " ")
    commands_of_page = re.findall(r"^python -m fedh2l_mpi slurm (.*)$", text, re.MULTILINE)
    heads = [made(*shlex.split(line), "--elsewhere").partition("\n\n")[0] for line in commands_of_page]
    assert len(heads) == 3
    assert "#SBATCH --mail-type=END --mail-user=me@example.org" in heads[1]
    assert "IMAGE, APPTAINER" in heads[2]


@pytest.mark.parametrize("path", [*READY, ROOT / "jobs" / "env.sh.example"], ids=lambda path: path.name)
def test_bash_understands_it(path):
    ended = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_is_asked_for_is_in_the_head():
    options = ["--nodes", "2", "--gpus-per-node", "2", "--cpus-per-task", "3", "--partition", "gpu", "--account", "a-1"]
    others = ["--constraint=a100", "qos=long", "--mem 4G --exclusive", "-C 'a&b'", "exclusive", "comment='two words'"]
    options += [word for other in others for word in ("--sbatch", other)]
    text = made(*SMALL, *options, "--set", "participants=8", "--lead", "90", "--job-name", "mine")
    head = [line.removeprefix("#SBATCH ").removeprefix("--") for line in text.splitlines() if "#SBATCH " in line]
    assert head == [
        "job-name=mine",
        "nodes=2",
        "ntasks-per-node=2",
        "cpus-per-task=3",
        "gpus-per-node=2",
        "time=01:00:00",
        "partition=gpu",
        "account=a-1",
        "output=%x-%j.out",
        "signal=B:USR1@90",
        "requeue",
        "open-mode=append",
        "constraint=a100",
        "qos=long",
        "mem 4G --exclusive",
        "-C 'a&b'",
        "exclusive",
        "comment='two words'",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.2, "00:01:00"), (7200, "02:00:00"), (86400 * 1.5, "1-12:00:00"), (3661, "01:01:01")]
)
def test_times_are_written_as_slurm_reads_them(seconds, text):
    assert job.slurm_time(seconds) == text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--nodes", "3", "--set", "participants=4"],
            "3 x 2 are 6 ranks, but there are 4 participants. Use at most that many ranks",
        ),
        (["--set", "topology.kind=rign"], "topology.kind: got 'rign'"),
        (
            [
                *("--gpus-per-node", "3", "--ranks-per-node", "4"),
                "--set",
                "participants=4",
                "--set",
                "devices.share=false",
            ],
            "4 ranks on a node but 3 GPUs",
        ),
        (["--gpus-per-node", "1", "--set", "devices.kind=cuda"], "ranks 0 and 1 of a node both have GPU cuda:0"),
        (["--set", "devices.kind=cuda"], "devices.kind: got 'cuda', but no CUDA device"),
        (["--gpus-per-node", "2", "--set", "devices.map=[0, 2]"], "devices.map: got [0, 2]"),
        (["--time", "3m"], "--time: got 00:03:00, must be more than 00:03:00. The run stops 120 s before"),
        (["--time", "soon"], "argument --time: got 'soon', must be a time of more than 0"),
        (["--mpi", "none"], "argument --mpi: invalid choice: 'none'"),
        (["--partition", "gpu; rm -rf ."], "--partition: got 'gpu; rm -rf .'. Allowed: letters"),
        (["--run", "a\nrm -rf ."], "--run: got 'a\\nrm -rf .', must be one line"),
        (["--scratch"], "--scratch: this option copies a pack, but data.name is 'digits'"),
        (["--ranks-per-node", "1", "--share-imports"], "--share-imports: one rank per node has no other to share"),
        (
            ["--nodes", "2", "--share-imports"],
            "--share-imports: with --mpi pmi2, ranks can share on one node only, but --nodes is 2. Use --mpi",
        ),
        (["--sbatch", "nodes=4"], "--sbatch: got '--nodes=4', but the job sets --nodes itself. Fix: use --nodes of"),
        (["--sbatch", "--tim=4"], "but the job sets --time itself. Fix: use --time"),
        (["--sbatch", "-n4"], "but the job sets --ntasks itself. Fix: use --ranks-per-node"),
        (["--sbatch", "--mem=4G --no-requeue"], "the job sets --no-requeue itself. Fix: use --max-restarts 0"),
        (["--sbatch", "--gres gpu:a100:2"], "the job sets --gpus-per-node itself. Fix: use --gpus-per-node"),
        (["--sbatch", "signal=USR2"], "the job sets --signal itself. Fix: use --lead"),
        (["--sbatch", "output=a"], "the job sets --output itself. Fix: leave it out"),
        (["--sbatch", "requeue"], "the job sets --requeue itself. Fix: leave it out"),
        (["--sbatch", "mem=4G\nrm -rf ."], "--sbatch: got 'mem=4G\\nrm -rf .', must be one line"),
        (["--sbatch", "rm -rf ."], "--sbatch: got 'rm -rf .', but 'rm' is no option. Allowed: options of sbatch"),
        (["--sbatch", "comment=two words"], "but 'words' is no option. Allowed: options of sbatch, such as constra"),
        (["--sbatch", "exclusiv"], "'exclusiv' is no option. Allowed: options of sbatch, such as constraint=a100, "),
        (["--sbatch", 'comment="a'], "--sbatch: got 'comment=\"a': No closing quotation. Allowed: options"),
        (["--sbatch", ""], "--sbatch: got ''. Allowed: options of sbatch"),
        (["--sbatch"], "argument --sbatch: expected one argument"),
        (["--container", "docker://python"], "--container: got 'docker://python', must be a file, which all ranks"),
        (["--container", "a.sif", "--share-imports"], "--share-imports: each rank has a container of its own"),
        (["--at-a-time", "2"], "--at-a-time: this option limits the elements of a sweep. Add --sweep"),
        (["--analyse"], f"slurm: got CONFIG {DIGITS!r}, but --analyse needs no config (did you mean --run?)"),
    ],
)
def test_a_job_that_would_not_work_is_refused(options, says):
    with pytest.raises(UserError, match=re.escape(says)):
        made(*SMALL, *options)


def test_a_job_whose_directory_has_another_run_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(loading.load(DIGITS).resolved(2, launched=True).to_yaml())
    here = [*SMALL[:-1], "--run", str(tmp_path), "--set", "participants=2"]
    assert str(tmp_path) in made(*here)
    with pytest.raises(UserError, match="has a different config:\n  seed: there 0, here 7"):
        made(*here, "--set", "seed=007")
    assert "seed=007" in made(*here, "--set", "seed=007", "--elsewhere")


def test_a_job_that_looks_at_a_run_takes_no_option_that_it_would_not_heed():
    options = ["--gpus-per-node", "4", "--set", "a.b=1", "--scratch", "--share-imports", "--at-a-time", "3"]
    says = (
        "--gpus-per-node, --set, --scratch, --share-imports, --at-a-time: an analysis job (--analyse) does not use this"
    )
    with pytest.raises(UserError, match=re.escape(says)):
        made("--analyse", "--time", "1h", "--run", "runs/d", *options)
    assert "RUN=${RUN:-runs/d}\n" in made("--analyse", "--time", "1h", "--run", "runs/d", "--cpus-per-task", "2")


def test_ranks_must_be_told_where_there_are_no_gpus():
    with pytest.raises(UserError, match="--ranks-per-node: this option is required if --gpus-per-node is 0"):
        made(DIGITS, "--time", "1h", "--mpi", "pmix")


def test_data_and_graph_are_checked_as_by_a_run_unless_they_are_elsewhere(tmp_path):
    options = ["--set", "participants=4", "--set", "data.name=mnist", "--set", f"data.root={tmp_path}"]
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        made(*[word for word in SMALL if word != "--elsewhere"], *options)
    assert str(tmp_path) in made(*SMALL, *options)


def test_gpus_that_would_be_idle_are_told_of(capsys):
    made(*SMALL, "--gpus-per-node", "4")
    assert "2 of 4 GPUs of each node would be idle" in capsys.readouterr().err


def test_gpus_that_ranks_would_share_are_told_of_unless_asked_for(capsys):
    made(*SMALL, "--gpus-per-node", "1")
    told = "the 2 ranks of each node would share its GPUs (1). For a GPU each, use --gpus-per-node 2 or --ranks"
    assert told in capsys.readouterr().err
    made(*SMALL, "--gpus-per-node", "1", "--set", "devices.share=true")
    made(*SMALL, "--gpus-per-node", "0")
    assert "GPU" not in capsys.readouterr().err


def test_gpus_that_would_be_idle_for_many_elements_are_told_of_once(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text("set: {participants: 4}\naxes: {seed: [0, 1, 2]}\n")
    made(str(tmp_path / "sweep.yaml"), "--sweep", *SMALL[1:], "--gpus-per-node", "4")
    assert capsys.readouterr().err.count("2 of 4 GPUs of each node would be idle") == 1


def test_a_file_that_exists_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "a job.sbatch"
    command = commands.parse(["slurm", *SMALL, "--out", str(out)])
    assert commands.execute(command, World(None)) == 0
    assert capsys.readouterr().err == f"job: sbatch '{out}'\n"
    # The file itself says how it was made, without where it was put.
    assert f"slurm {shlex.join(SMALL)}\n" in out.read_text()
    with pytest.raises(UserError, match="exists already"):
        commands.execute(command, World(None))


# Decisions of a job. `srun` writes the status that a run would leave; `scontrol` records its arguments.

PROGRAM = """#!/bin/bash
[ "$1" = --mpi=none ] && exit
trap '' USR1
printf '%s\\n' "$@" >"$HERE/arguments"
[ -z "${SIGNAL:-}" ] || { kill -"$SIGNAL" "$PPID"; sleep 0.2; }
while [ "$1" != --out ]; do shift; done
if [ -n "${STATE:-}" ]; then
  mkdir -p "$2"
  printf 'state: %s\\nround: 3\\nrounds: 9\\ntime: %s\\nreason: %s\\nprocess: rank 0 (host n1, pid 1), job %s\\n' \\
    "$STATE" "$RANDOM" "${REASON:-}" "${WHOSE:-7}" >"$2/status"
fi
exit "${CODE:-0}"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then
  echo "JobId=7 JobState=${SLURM_STATE:-RUNNING} Reason=${SLURM_REASON:-None} Restarts=${SLURM_RESTARTS:-0} B=1"
else
  echo "$*" >"$HERE/requeued"
  kill "$PPID"
fi
"""


@dataclass(frozen=True)
class Done:
    """What became of a job that ran."""

    code: int
    text: str
    requeued: str
    arguments: list[str]


@pytest.fixture
def run_job(tmp_path):
    """Runs a job's script with stand-ins for Slurm's commands, in an environment as Slurm makes it."""
    for name, text in {"srun": PROGRAM, "mpirun": PROGRAM, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script: str, **environ: str) -> Done:
        job_environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HERE": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "test",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_NTASKS": "2",
            "SLURM_NNODES": "1",
            "SLURM_CPUS_PER_TASK": "5",
        }
        job_environment = {name: value for name, value in job_environment.items() if environ.get(name) != ""}
        environ = {name: value for name, value in environ.items() if value}
        for name in ("requeued", "arguments"):
            (tmp_path / name).unlink(missing_ok=True)
        ended = subprocess.run(
            ["bash", "-c", script, "job"],
            capture_output=True,
            text=True,
            timeout=20,
            cwd=tmp_path,
            env={**job_environment, **environ},
        )
        noted = {name: (tmp_path / name) for name in ("requeued", "arguments")}
        said = {name: path.read_text() if path.exists() else "" for name, path in noted.items()}
        text = ended.stdout + ended.stderr
        return Done(ended.returncode, text, said["requeued"].strip(), said["arguments"].splitlines())

    return run


KILLED = -15


@pytest.mark.parametrize(
    ("environ", "code", "says"),
    [
        ({"STATE": "complete"}, 0, "the run is complete, 3 of 9 rounds"),
        # A launcher that stumbles after the end is no failure.
        ({"STATE": "complete", "CODE": "1"}, 0, "the run is complete"),
        ({"STATE": "stopped", "REASON": "file STOP"}, 0, "the run is stopped (file STOP)"),
        ({"STATE": "failed", "REASON": "a fault", "CODE": "3"}, 3, "the run is failed (a fault)"),
        # mpirun returns 0 after losing a node.
        ({"STATE": "running"}, 1, "did not finish"),
        ({}, 1, "the run did not begin; the launcher returned 0"),
        ({"CODE": "2"}, 2, "the run did not begin; the launcher returned 2"),
        # Another job, which has the lock of this run, stops or goes on.
        ({"STATE": "stopped", "REASON": "USR1", "WHOSE": "8", "CODE": "2"}, 2, "the run did not begin"),
        ({"STATE": "running", "WHOSE": "8", "CODE": "2"}, 2, "the run did not begin"),
        # Somebody cancels it.
        ({"STATE": "stopped", "REASON": "TERM", "SIGNAL": "TERM", "SLURM_STATE": "COMPLETING"}, 1, "cancelled"),
        # Slurm preempts it, and has it queued again; by mpirun there was no time to stop.
        (
            {"STATE": "failed", "SIGNAL": "TERM", "SLURM_STATE": "COMPLETING", "SLURM_RESTARTS": "1", "CODE": "1"},
            1,
            "Slurm queues it again",
        ),
        ({"STATE": "stopped", "REASON": "USR1", "MAX_RESTARTS": "0"}, 1, "restarted 0 times, MAX_RESTARTS is 0"),
        ({"STATE": "stopped", "REASON": "USR1", "SLURM_RESTART_COUNT": "20"}, 1, "restarted 20 times"),
    ],
)
def test_a_job_that_is_not_queued_again(run_job, environ, code, says):
    done = run_job(made(*SMALL), **environ)
    assert (done.code, done.requeued) == (code, ""), done.text
    assert says in done.text


@pytest.mark.parametrize(
    "environ",
    [
        {"STATE": "stopped", "REASON": "USR1", "SIGNAL": "USR1"},
        {"STATE": "stopped", "REASON": "TERM"},
        {"STATE": "stopped", "REASON": "max_wall"},
        {"STATE": "stopped", "REASON": "launcher gone", "CODE": "1"},
        {"STATE": "stopped", "REASON": "USR1", "SLURM_RESTART_COUNT": "19"},
        # The round took longer than there was time before the limit.
        {"STATE": "running", "SIGNAL": "USR1", "SLURM_STATE": "COMPLETING", "SLURM_REASON": "TimeLimit", "CODE": "137"},
        # Signalled before the run had begun.
        {"SIGNAL": "USR1", "CODE": "138"},
    ],
)
def test_a_job_that_queues_itself_again(run_job, environ):
    done = run_job(made(*SMALL), **environ)
    assert done.requeued == "requeue 7", done.text
    assert done.code == KILLED
    assert "queues itself again, restart" in done.text


def test_a_run_of_which_all_ranks_were_killed_has_failed(run_job, tmp_path):
    run_job(made(*SMALL, "--run", "run"), STATE="running", CODE="137")
    status = (tmp_path / "run" / "status").read_text()
    assert "state: failed\nround: 3\n" in status
    assert "reason: all ranks were killed; the launcher returned 137\n" in status


def test_what_was_left_by_an_earlier_job_decides_nothing(run_job, tmp_path):
    script = made(*SMALL, "--run", "run")
    assert run_job(script, STATE="stopped", REASON="USR1").requeued
    done = run_job(script, CODE="1")
    assert (done.code, done.requeued) == (1, "")
    # A run that is complete stays so; but not for a program that was refused.
    assert run_job(script, STATE="complete").code == 0
    assert run_job(script).code == 0
    assert run_job(script, CODE="2").code == 2


def test_names_with_blanks_and_quotes_reach_the_program(run_job, tmp_path):
    config = tmp_path / "it's a $HOME } config.yaml"
    config.write_text("rounds: 3\n")
    options = [str(config), *SMALL[1:], "--run", "a 'run' \"of\" $mine", "--set", "data.root=null"]
    done = run_job(made(*options), STATE="complete", SETTINGS="rounds=4 'models=[mlp, cnn]' ")
    assert done.code == 0, done.text
    assert done.arguments[:3] == ["--mpi=pmi2", "--kill-on-bad-exit=1", "--cpus-per-task=5"]
    assert done.arguments[3:] == [
        *("python", "-m", "fedh2l_mpi", str(config), "--out", "a 'run' \"of\" $mine", "--resume", "auto"),
        *("--set", "data.root=null", "--set", "rounds=4", "--set", "models=[mlp, cnn]"),
    ]


def test_the_environment_has_the_last_word(run_job, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "env.sh").write_text("unset_is_fine=$NOT_SET_ANYWHERE\nexport SRUN_MPI=cray_shasta\n")
    done = run_job(made(*SMALL), STATE="complete", CONFIG="other.yaml", RUN="elsewhere", PYTHON="python3.11")
    assert done.arguments[0] == "--mpi=cray_shasta"
    assert done.arguments[3:7] == ["python3.11", "-m", "fedh2l_mpi", "other.yaml"]
    assert done.arguments[8] == "elsewhere"
    missing = run_job(made(*SMALL, "--env", "not there.sh"))
    assert (missing.code, missing.text) == (2, "ENV_FILE: not there.sh cannot be read\n")


def test_python_may_be_several_words_or_have_blanks_in_its_path(run_job, tmp_path):
    done = run_job(made(*SMALL), STATE="complete", PYTHON="apptainer exec --nv x.sif python")
    assert done.arguments[3:10] == ["apptainer", "exec", "--nv", "x.sif", "python", "-m", "fedh2l_mpi"]
    (tmp_path / "my python").symlink_to("/bin/true")
    done = run_job(made(*SMALL), STATE="complete", PYTHON=str(tmp_path / "my python"))
    assert done.arguments[3:5] == [str(tmp_path / "my python"), "-m"]


def test_a_run_in_a_container_sees_the_paths_that_it_needs_and_no_others(run_job, tmp_path):
    data, image = tmp_path.parent / f"data of {tmp_path.name}", tmp_path / "my image.sif"
    data.mkdir()
    image.touch()
    options = [*SMALL, "--set", f"data.root={data}", "--set", "data.name=mnist", "--set", "participants=2"]
    script = made(*options, "--gpus-per-node", "2", "--container", str(image))
    done = run_job(script, STATE="complete", RUN=f"{data}/not/there", FEDH2L_DATA="/etc")
    bound = ["--bind", str(tmp_path), "--bind", str(data), "--bind", "/etc", "--bind", DIGITS]
    assert done.arguments[3:] == [
        *("apptainer", "exec", "--nv", "--pwd", str(tmp_path), *bound, str(image)),
        *("python", "-m", "fedh2l_mpi", DIGITS, "--out", f"{data}/not/there", "--resume", "auto"),
        *("--set", f"data.root={data}", "--set", "data.name=mnist", "--set", "participants=2"),
    ]
    assert "--nv" not in made(*options, "--container", str(image))
    refused = run_job(script, STATE="complete", RUN="/etc/../tmp/a,b", IMAGE="other.sif")
    assert (refused.code, refused.text) == (2, "IMAGE: other.sif does not exist\n")
    (tmp_path.parent / "a,b").mkdir(exist_ok=True)
    refused = run_job(script, STATE="complete", RUN=str(tmp_path.parent / "a,b"))
    assert (refused.code, refused.arguments) == (2, [])
    assert "Apptainer binds no path with a comma or colon" in refused.text


def test_an_element_of_a_sweep_is_prepared_and_run_in_the_container(run_job, tmp_path):
    (tmp_path / "sweep.yaml").write_text("axes: {seed: [0, 1]}\n")
    (tmp_path / "image.sif").touch()
    (tmp_path / "apptainer").write_text(f'#!/bin/bash\necho "$*" >"{tmp_path}/prepared"\necho out/an,element\n')
    (tmp_path / "apptainer").chmod(0o755)
    (tmp_path / "out").mkdir()
    script = made(str(tmp_path / "sweep.yaml"), "--sweep", *SMALL[1:], "--container", "image.sif", "--run", "out")
    done = run_job(script, STATE="complete", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    assert done.code == 0, done.text
    inside = f"exec --pwd {tmp_path} --bind {tmp_path} image.sif python -m fedh2l_mpi"
    prepared = f"{inside} sweep {tmp_path}/sweep.yaml --out out --ranks 2 --index 1 --prepare\n"
    assert (tmp_path / "prepared").read_text() == prepared
    assert " ".join(done.arguments[3:]) == f"apptainer {inside} out/an,element.yaml --out out/an,element --resume auto"


def test_an_image_must_be_there_unless_it_is_elsewhere(tmp_path):
    words = ["--container", str(tmp_path / "none.sif")]
    assert str(tmp_path) in made(*SMALL, *words)
    with pytest.raises(UserError, match=r"none.sif does not exist. Fix: build it, .* add --elsewhere"):
        made(*SMALL[:-1], *words)
    (tmp_path / "none.sif").touch()
    text = made("--analyse", "--time", "1h", *words)
    assert text.count('"${container[@]}" "$IMAGE" "${python[@]}" -m fedh2l_mpi') == 3
    assert 'show "$RUN"\n' in text


def test_mpirun_starts_the_ranks_where_it_is_asked_to(run_job):
    done = run_job(made(*[word if word != "pmi2" else "mpirun" for word in SMALL]), STATE="complete")
    assert done.arguments[:6] == ["-n", "2", "--bind-to", "none", "python", "-m"]


def test_ranks_are_counted_where_slurm_tells_of_those_of_a_node_only(run_job):
    script = made(*[word if word != "pmi2" else "mpirun" for word in SMALL])
    done = run_job(script, STATE="complete", SLURM_NTASKS="", SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="3")
    assert done.arguments[:2] == ["-n", "6"], done.text


def test_imports_are_shared_by_the_ranks_of_a_run_and_of_an_element_if_that_is_asked_for(run_job, tmp_path):
    alone, shared = run_job(made(*SMALL), STATE="complete"), run_job(made(*SMALL, "--share-imports"), STATE="complete")
    assert shared.arguments == [*alone.arguments, "--share-imports"]
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("axes: {seed: [0, 1]}\n")
    script = made(str(sweep), "--sweep", *SMALL[1:], "--share-imports")
    assert script.index("program=(") < script.index("program+=(--share-imports)") < script.index('"${program[@]}"')


@pytest.fixture
def scratch_job(tmp_path, run_job):
    """A job that copies a pack, its pack, and the node's own disk; the copy is really made."""
    pack, local = tmp_path / "the packs" / "the pack.h5", tmp_path / "local"
    pack.parent.mkdir()
    pack.write_bytes(b"pack")
    local.mkdir()
    (tmp_path / "srun").write_text(
        '#!/bin/bash\nif [ "$1" = --mpi=none ]; then shift 4; SLURM_NODEID=0 exec "$@"; fi\n' + PROGRAM
    )
    settings = ["--set", "data.name=pack", "--set", f"data.root={pack}", "--set", "data.partition={kind: domains}"]
    return made(*SMALL, *settings, "--set", "participants=2", "--scratch"), pack, local


def test_a_pack_is_copied_to_the_nodes_and_removed(scratch_job, run_job):
    script, pack, local = scratch_job
    copied = f"{local}/fedh2l_mpi-7/copy-of/{pack}"
    look = script.replace('"${launch[@]}" "${program[@]}" &', f'cat "{copied}"; "${{launch[@]}}" "${{program[@]}}" &')
    done = run_job(look, STATE="complete", TMPDIR=str(local))
    assert done.code == 0, done.text
    assert "pack" in done.text.splitlines()[1]
    assert done.arguments[-1] == f"data.root={copied}"
    assert not list(local.iterdir())
    # In whatever job, the run counts as one of this pack.
    assert what_counts({"data.name": "pack", "data.root": copied})["data.root"] == str(pack)
    pack.unlink()
    assert "cannot be copied to" in run_job(script, STATE="complete", TMPDIR=str(local)).text


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"CONFIG": "other.yaml"}, "CONFIG: other.yaml may need a different pack than this job copies. Set PACK"),
        ({"SETTINGS": "rounds=4 data.root=/d/other.h5"}, "SETTINGS: this job sets data.root to its own copy. Set PACK"),
        (
            {"SETTINGS": "'data={name: pack, root: /d/other.h5}'"},
            "SETTINGS: this job sets data.root to its own copy. Set PACK",
        ),
    ],
)
def test_a_job_that_copies_a_pack_is_told_of_another_pack_by_its_name_only(scratch_job, run_job, environ, says):
    script, pack, local = scratch_job
    assert re.search("^# Variables you may set: .*, PACK ", script, re.MULTILINE)
    environ = {**environ, "STATE": "complete", "TMPDIR": str(local)}
    refused = run_job(script, **environ)
    assert (refused.code, refused.arguments) == (2, []), refused.text
    assert says in refused.text
    other = pack.with_name("other.h5")
    other.write_bytes(b"other")
    # By way of a folder above: the copy must not land above the one that is removed.
    done = run_job(script, **environ, PACK=f"{pack.parent}/../the packs/other.h5")
    assert done.code == 0, done.text
    assert done.arguments[-1] == f"data.root={local}/fedh2l_mpi-7/copy-of/{other}"
    assert not list(local.iterdir())


def test_an_element_of_an_array_is_queued_again_by_its_own_name(run_job, tmp_path):
    # By SLURM_JOB_ID, which one element shares with the array, all of them would be.
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("axes: {seed: [0, 1, 2]}\n")
    script = made(str(sweep), "--sweep", *SMALL[1:], "--at-a-time", "2")
    assert "#SBATCH --array=0-2%2\n#SBATCH --output=%x-%A_%a.out\n" in script
    (tmp_path / "python").write_text(f'#!/bin/bash\necho "$*" >"{tmp_path}/prepared"\necho out/an,element\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "out").mkdir()
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    done = run_job(script, STATE="stopped", REASON="USR1", **array)
    assert done.requeued == "requeue 7_2", done.text
    prepared = (tmp_path / "prepared").read_text()
    assert f"sweep {sweep} --out runs/sweep --ranks 2 --index 2 --prepare" in prepared
    assert done.arguments[5:] == ["fedh2l_mpi", "out/an,element.yaml", "--out", "out/an,element", "--resume", "auto"]
    # Another sweep's runs are not put among these, unless that is asked for.
    for environ, out in (({}, "runs/my.own"), ({"OUT": "out"}, "out")):
        run_job(script, STATE="complete", SWEEP="sweeps.d/my.own.yaml", **environ, **array)
        assert f"sweep sweeps.d/my.own.yaml --out {out} --ranks" in (tmp_path / "prepared").read_text()
