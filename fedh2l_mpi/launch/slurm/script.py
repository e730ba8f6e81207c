"""Write the text of a batch job: `render`, a pure function of a request.

Before its time limit, a job stops its run after a round and queues itself again; then it resumes from the run's
checkpoint. The job reads the run's end from the `status` file of the run directory, as the launcher's exit code alone
may be wrong.
"""

import math
import shlex
from dataclasses import dataclass

from fedh2l_mpi.config.comparison import COPY_OF, SCRATCH

DEFAULT_ENV = "jobs/env.sh"


@dataclass(frozen=True)
class Resources:
    """Resources that a job requests from Slurm; times in seconds."""

    name: str
    time_s: float
    nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes
    ----------
    run : str or None
        Run directory; None: `runs/<job name>-<job number>`.
    pack : str or None
        Pack to copy to every node's own disk before the run starts; None: no copy.
    """

    config: str
    settings: tuple[str, ...] = ()
    run: str | None = None
    pack: str | None = None


@dataclass(frozen=True)
class Sweep:
    """Array job: array task K runs element K of the sweep."""

    sweep: str
    out: str
    elements: int
    at_a_time: int | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Check, report and figures of a run that has ended. If `run` is None, the user sets RUN when submitting."""

    run: str | None = None


@dataclass(frozen=True)
class Request:
    """A batch job.

    Attributes
    ----------
    mpi : str
        `mpirun`, or the kind of MPI for `srun --mpi`: `pmix`, `pmi2`.
    lead_s : int
        Time between the request to stop and the time limit [s].
    max_restarts : int
        Largest number of times that the job queues itself again.
    env : str or None
        Script to source, which must exist; None: `jobs/env.sh`, if it exists.
    made_by : str
        Command line that makes this job.
    share_imports : bool
        True: each node imports the modules once, for all its ranks.
    """

    resources: Resources
    work: Run | Sweep | Analysis
    mpi: str = "pmix"
    lead_s: int = 120
    max_restarts: int = 20
    env: str | None = None
    made_by: str = ""
    share_imports: bool = False


def render(request: Request) -> str:
    """Return the bash script for sbatch."""
    work = request.work
    if isinstance(work, Analysis):
        parts = [_head(request), _environment(request), _analysis(work)]
    else:
        own = _run(work) if isinstance(work, Run) else _element(work)
        scratch = _scratch(work.config, work.pack) if isinstance(work, Run) and work.pack is not None else ""
        share = SHARE_IMPORTS if request.share_imports else ""
        begin = [_head(request), _environment(request), _begin(request), own, share]
        parts = [*begin, SIGNALS, scratch, _launch(request), END]
    return "\n".join(part for part in parts if part)


def slurm_time(seconds: float) -> str:
    """Format a time for Slurm, such as `02:00:00` or `1-12:00:00`, rounded up to whole seconds."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02}:{minute:02}:{second:02}"


def _head(request: Request) -> str:
    work, asked = request.work, request.resources
    lines = ["#!/bin/bash", *(f"# {line}".rstrip() for line in _about(request))]
    options = [f"job-name={asked.name}", f"nodes={asked.nodes}", f"ntasks-per-node={asked.ranks_per_node}"]
    options += [f"cpus-per-task={asked.cpus_per_task}"]
    # GPUs are requested per node: per task, mpirun would start all ranks of a node on one GPU.
    options += [f"gpus-per-node={asked.gpus_per_node}"] if asked.gpus_per_node else []
    options += [f"time={slurm_time(asked.time_s)}"]
    options += [
        f"{key}={value}" for key, value in (("partition", asked.partition), ("account", asked.account)) if value
    ]
    if isinstance(work, Sweep):
        at_a_time = f"%{work.at_a_time}" if work.at_a_time is not None else ""
        options += [f"array=0-{work.elements - 1}{at_a_time}", "output=%x-%A_%a.out"]
    else:
        options += ["output=%x-%j.out"]
    if not isinstance(work, Analysis):
        options += [f"signal=B:USR1@{request.lead_s}", "requeue", "open-mode=append"]
    return "\n".join([*lines, *(f"#SBATCH --{option}" for option in options), ""])


def _about(request: Request) -> list[str]:
    """Return the header comment: what the job does, and how to submit it."""
    work, asked = request.work, request.resources
    made = ["", f"Made by: {request.made_by}"] if request.made_by else []
    if isinstance(work, Analysis):
        return [
            "Check a run that has ended, and write its report (an HTML page) and its figures into the run directory.",
            "",
            "    id=$(sbatch --parsable JOB_OF_THE_RUN)",
            "    RUN=RUN_DIRECTORY sbatch --dependency=afterok:$id THIS_FILE",
            "",
            "Variables you may set: RUN, PYTHON, ENV_FILE.",
            *made,
        ]
    where = f"{asked.nodes} nodes" if asked.nodes > 1 else "one node"
    ranks = f"{asked.nodes * asked.ranks_per_node} ranks on {where}"
    if isinstance(work, Run):
        what = [f"Run {work.config} on {ranks}."]
        usage = ['    RUN=runs/mine SETTINGS="rounds=100 seed=3" sbatch THIS_FILE']
        names = "CONFIG, RUN (the run directory)" + (", PACK (the pack to copy)" if work.pack is not None else "")
    else:
        what = [f"Run element K of {work.sweep} in array task K, each on {ranks}."]
        usage = [
            "    SWEEP=my.yaml OUT=runs/my sbatch --array=0-5 THIS_FILE     # `sweep my.yaml --list` shows the numbers",
            "    python -m fedh2l_mpi sweep my.yaml --out runs/my --table   # compare the finished runs",
        ]
        names = "SWEEP, OUT (the sweep's directory)"
    launcher = "MPIRUN" if request.mpi == "mpirun" else "SRUN_MPI"
    return [
        *what,
        "Before the time limit, the run stops after a round; the job then queues itself again and resumes the run.",
        "",
        "    sbatch THIS_FILE",
        *usage,
        "",
        f"Variables you may set: {names}, SETTINGS (section.key=value, separated",
        f"by blanks), MAX_RESTARTS, {launcher}, PYTHON, ENV_FILE. Paths are relative to where sbatch is called.",
        *made,
    ]


def _environment(request: Request) -> str:
    if request.env is not None:
        which = f"ENV_FILE=${{ENV_FILE:-{shlex.quote(request.env)}}}"
    else:
        which = f'if [ -z "${{ENV_FILE:-}}" ] && [ -e {DEFAULT_ENV} ]; then ENV_FILE={DEFAULT_ENV}; fi'
    return f"""\
{which}
# Modules, the Python environment, settings of MPI. Sourced before `set -u`, because such scripts read unset variables.
if [ -n "${{ENV_FILE:-}}" ]; then
  [ -r "$ENV_FILE" ] || {{ echo "ENV_FILE: $ENV_FILE cannot be read" >&2; exit 2; }}
  . "$ENV_FILE"
fi
set -u
PYTHON=${{PYTHON:-python}}
"""


def _begin(request: Request) -> str:
    this = "this=$SLURM_JOB_ID"
    if isinstance(request.work, Sweep):
        this = (
            "# SLURM_JOB_ID will not do: for one element it is the array's number, and would requeue the whole array.\n"
            "this=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        )
    return f"""\
MAX_RESTARTS=${{MAX_RESTARTS:-{request.max_restarts}}}
restarts=${{SLURM_RESTART_COUNT:-0}}
{this}
# Some versions of Slurm do not set it if tasks are requested per node.
SLURM_NTASKS=${{SLURM_NTASKS:-$((SLURM_NNODES * ${{SLURM_NTASKS_PER_NODE:-{request.resources.ranks_per_node}}}))}}
# Libraries that load before the program sets its own number of threads (devices.threads) read this.
export OMP_NUM_THREADS=1

say() {{ echo "$(date +%FT%T) job $this: $*"; }}
"""


def _settings(settings: tuple[str, ...], command: str) -> str:
    """Bash that appends the request's settings and SETTINGS to the array `command`."""
    own = f"{command}+=({' '.join(f'--set {shlex.quote(item)}' for item in settings)})\n" if settings else ""
    return f"""\
{own}# Blanks separate the settings; quotes keep one together: SETTINGS="rounds=100 'data.root=/data/my packs'"
more=$(xargs -r -n 1 printf '%s\\n' <<<"${{SETTINGS:-}}") || exit 2
if [ -n "$more" ]; then
  while IFS= read -r setting; do {command}+=(--set "$setting"); done <<<"$more"
fi
"""


def _run(work: Run) -> str:
    # A job that is queued again keeps its number, so it finds its run directory again.
    run = "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID" if work.run is None else shlex.quote(work.run)
    return f"""\
CONFIG=${{CONFIG:-{shlex.quote(work.config)}}}
RUN=${{RUN:-{run}}}
program=("$PYTHON" -m fedh2l_mpi "$CONFIG" --out "$RUN" --resume auto)
{_settings(work.settings, "program")}"""


def _element(work: Sweep) -> str:
    return f"""\
SWEEP=${{SWEEP:-{shlex.quote(work.sweep)}}}
# Another sweep gets a directory of its own, so that its runs do not mix with these.
if [ "$SWEEP" != {shlex.quote(work.sweep)} ]; then name=${{SWEEP##*/}}; OUT=${{OUT:-runs/${{name%.*}}}}; fi
OUT=${{OUT:-{shlex.quote(work.out)}}}
prepare=("$PYTHON" -m fedh2l_mpi sweep "$SWEEP" --out "$OUT" --ranks "$SLURM_NTASKS")
{_settings(work.settings, "prepare")}\
# Write the element's config and print its run directory.
RUN=$("${{prepare[@]}}" --index "$SLURM_ARRAY_TASK_ID" --prepare) || exit $?
# Lock the element's config, as `sweep` itself does, so that no other process runs the element.
exec 9<>"$RUN.yaml"
flock -n 9 || {{ say "$RUN: another process runs it" >&2; exit 1; }}
program=("$PYTHON" -m fedh2l_mpi "$RUN.yaml" --out "$RUN" --resume auto)
"""


SHARE_IMPORTS = """\
# Each node imports the modules once, for all its ranks.
program+=(--share-imports)
"""

SIGNALS = """\
# Slurm signals this shell (B:). Bash handles signals only between commands, so the program runs in the background.
asked=
pid=
ask() {
  asked=$1
  say "$1: the run is asked to stop after its round"
  [ -z "$pid" ] || kill -USR1 "$pid" 2>/dev/null
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM
clean() { :; }

again() {
  clean
  # Slurm may be ending the job by now. If it was preempted, Slurm queues it again and counts one restart more than we
  # know of. If it was cancelled, it must not be queued again.
  job=$(scontrol show job -o "$this") restarted=${job##* Restarts=}
  case $job in
    *" JobState=COMPLETING Reason=TimeLimit "*) ;;
    *" JobState=COMPLETING "*)
      if [ "${restarted%% *}" -gt "$restarts" ]; then say "Slurm queues it again"; exit 1; fi
      say "cancelled: not queued again"
      exit 1 ;;
  esac
  if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
    say "restarted $restarts times, MAX_RESTARTS is $MAX_RESTARTS: not queued again. Submit a job to resume $RUN" >&2
    exit 1
  fi
  say "queues itself again, restart $((restarts + 1)) of at most $MAX_RESTARTS"
  trap - USR1 TERM
  # Requeueing ends this shell, too; until then it waits.
  scontrol requeue "$this" && sleep 300
  say "this job cannot be queued again. Submit another job to resume $RUN" >&2
  exit 1
}
"""


def _scratch(config: str, pack: str) -> str:
    return f"""\
# This job was made for one pack. Another config or data.root would have no effect on what is copied, so it is refused.
if [ -z "${{PACK:-}}" ]; then
  if [ "$CONFIG" != {shlex.quote(config)} ]; then
    echo "CONFIG: $CONFIG may need a different pack than this job copies. Set PACK to its file, too." >&2; exit 2
  fi
  if [[ $'\n'$more =~ $'\n'[[:blank:]]*data(\\.root)?[[:blank:]]*= ]]; then
    echo "SETTINGS: this job sets data.root to its own copy. Set PACK to the file to copy instead." >&2; exit 2
  fi
fi
# Copy the pack once to each node's own disk. A run may resume with a moved pack, because only its content is compared.
PACK=${{PACK:-{shlex.quote(pack)}}}
# Resolve `..`, so that the copy stays inside the folder that is removed at the end.
case /$PACK/ in */../*) PACK=$(realpath -m -- "$PACK") ;; esac
scratch=${{SLURM_TMPDIR:-${{TMPDIR:-/tmp}}}}/{SCRATCH}$SLURM_JOB_ID
per_node=(srun --mpi=none "--nodes=$SLURM_NNODES" "--ntasks=$SLURM_NNODES" --ntasks-per-node=1)
# A job that Slurm is ending cannot start anything. Then the cluster or the job's next start removes the copy.
clean() {{ "${{per_node[@]}}" rm -rf -- "$scratch" 2>/dev/null; }}
# Each node copies to a name of its own, then renames: if scratch is shared after all, nobody sees half a file.
# The copy keeps the pack's whole path, by which comparisons know runs of one pack in several jobs (comparison.py).
copy=$scratch/{COPY_OF}/$PACK
"${{per_node[@]}}" bash -c \\
  'mkdir -p -- "${{2%/*}}" && cp -- "$1" "$2.$SLURM_NODEID" && mv -f -- "$2.$SLURM_NODEID" "$2"' \\
  copy "$PACK" "$copy" || {{ say "$PACK: cannot be copied to $scratch of every node" >&2; clean; exit 1; }}
program+=(--set "data.root=$copy")
"""


def _launch(request: Request) -> str:
    if request.mpi == "mpirun":
        return """\
# --bind-to none, because a launcher that counts cores differently from Slurm would refuse to start.
# TERM without an earlier USR1 (preemption, scancel) leaves the ranks of Open MPI's mpirun half a second. That is too
# short for a checkpoint, so the run resumes from its last one (checkpoint.every).
launch=("${MPIRUN:-mpirun}" -n "$SLURM_NTASKS" --bind-to none)
"""
    return f"""\
# --cpus-per-task again, because srun does not inherit it from sbatch (since Slurm 22.05). --kill-on-bad-exit, because
# the other ranks would wait forever for one that was killed.
launch=(srun "--mpi=${{SRUN_MPI:-{request.mpi}}}" --kill-on-bad-exit=1 "--cpus-per-task=${{SLURM_CPUS_PER_TASK:-1}}")
# MPICH names its shared memory by job and step, and killed ranks leave it behind. A job that starts again on the same
# node therefore needs a new step number; otherwise MPI would not start.
for ((step = 0; step < restarts; step++)); do srun --mpi=none --nodes=1 --ntasks=1 true >/dev/null 2>&1; done
"""


END = """\
say "start, restart $restarts, nodes $SLURM_JOB_NODELIST, run $RUN"
before=$(cat "$RUN/status" 2>/dev/null)
code=0
if [ -z "$asked" ]; then
  "${launch[@]}" "${program[@]}" &
  pid=$!
  [ -z "$asked" ] || kill -USR1 "$pid" 2>/dev/null
  # A signal ends `wait`, but not the program.
  wait "$pid"; code=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; code=$?; done
  pid=
fi

# The launcher's exit code alone proves nothing: Open MPI's mpirun returns 0 after losing a node. A status from before
# this job, or of another job that works on this run, counts as "did not begin".
status() { sed -n "s/^$1: //p" "$RUN/status" 2>/dev/null; }
now=$(cat "$RUN/status" 2>/dev/null) state=$(status state) reason=$(status reason)
case $state in
  complete) [ "$now" != "$before" ] || [ "$code" -eq 0 ] || state=unbegun ;;
  running | stopped) [ "$now" != "$before" ] && [[ $(status process) == *", job $SLURM_JOB_ID" ]] || state=unbegun ;;
  *) [ "$now" != "$before" ] || state=unbegun ;;
esac
if [ "$state" = unbegun ]; then
  say "the run did not begin; the launcher returned $code"
else
  say "the run is $state${reason:+ ($reason)}, $(status round) of $(status rounds) rounds; the launcher returned $code"
fi
case $state:$reason in
  complete:*) clean; exit 0 ;;
  # The user asked it to stop.
  "stopped:file STOP") clean; exit 0 ;;
  stopped:USR1 | stopped:TERM | stopped:max_wall | "stopped:launcher gone") again ;;
  # Killed before it could write a checkpoint: it resumes from its last one.
  running:* | unbegun:*) [ -z "$asked" ] || again ;;
  *) [ "$asked" != TERM ] || again ;;
esac
if [ "$state" = running ]; then
  # All ranks were killed, so none was left to record the failure.
  sed -e 's/^state: .*/state: failed/' -e "s/^reason: .*/reason: all ranks were killed; the launcher returned $code/" \
    "$RUN/status" >"$RUN/status.$SLURM_JOB_ID" && mv -f "$RUN/status.$SLURM_JOB_ID" "$RUN/status"
fi
say "the run did not finish. The ranks' output is in $RUN/log" >&2
clean
[ "$code" -ne 0 ] || code=1
exit "$code"
"""


def _analysis(work: Analysis) -> str:
    run = "?Set RUN to the run directory." if work.run is None else f"-{shlex.quote(work.run)}"
    return f"""\
RUN=${{RUN:{run}}}
code=0
"$PYTHON" -m fedh2l_mpi validate "$RUN" || code=1
"$PYTHON" -m fedh2l_mpi report "$RUN" --html "$RUN/report.html" || code=1
"$PYTHON" -m fedh2l_mpi plot "$RUN" --figure all || code=1
exit $code
"""
