"""The text of a batch job: `script`, a pure function of a request.

A job stops its run in order before the time limit, queues itself again, and goes on from the run's checkpoint. What
became of the run is told by the run directory's `status`, never by the launcher's exit code alone.
"""

import math
import shlex
from dataclasses import dataclass

from fedh2l_mpi.config.comparison import COPY_OF, SCRATCH

DEFAULT_ENV = "jobs/env.sh"


@dataclass(frozen=True)
class Resources:
    """What a job asks of Slurm; times in seconds."""

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
        The run directory; None: one that is named after the job and its number.
    pack : str or None
        A pack that is copied to every node's own disk first.
    """

    config: str
    settings: tuple[str, ...] = ()
    run: str | None = None
    pack: str | None = None


@dataclass(frozen=True)
class Sweep:
    """An array job: element K of the sweep in array task K."""

    sweep: str
    out: str
    elements: int
    at_a_time: int | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Checks of a run that has ended, its report and its figures; `run` None: told when the job is submitted."""

    run: str | None = None


@dataclass(frozen=True)
class Request:
    """A batch job.

    Attributes
    ----------
    mpi : str
        `mpirun`, or the kind of MPI that srun is told: `pmix`, `pmi2`.
    lead_s : int
        How long before the time limit the run is asked to stop [s].
    max_restarts : int
        How often the job may queue itself again.
    env : str or None
        A script to source that must exist; None: `jobs/env.sh`, if there is one.
    made_by : str
        The command line that makes this job.
    share_imports : bool
        Whether a node imports once for all its ranks.
    """

    resources: Resources
    work: Run | Sweep | Analysis
    mpi: str = "pmix"
    lead_s: int = 120
    max_restarts: int = 20
    env: str | None = None
    made_by: str = ""
    share_imports: bool = False


def script(request: Request) -> str:
    """The text of a bash script for sbatch."""
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
    """A time as Slurm writes it, such as `02:00:00` or `1-12:00:00`, rounded up to whole seconds."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02}:{minute:02}:{second:02}"


def _head(request: Request) -> str:
    work, asked = request.work, request.resources
    lines = ["#!/bin/bash", *(f"# {line}".rstrip() for line in _about(request))]
    options = [f"job-name={asked.name}", f"nodes={asked.nodes}", f"ntasks-per-node={asked.ranks_per_node}"]
    options += [f"cpus-per-task={asked.cpus_per_task}"]
    # Per node, not per task: mpirun would start all ranks of a node on one GPU, and each rank must see them all.
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
    """What the job is and how it is submitted, for a person who opens the file."""
    work, asked = request.work, request.resources
    made = ["", f"Made by: {request.made_by}"] if request.made_by else []
    # A blank before the end of a quoted name, so that the file can be found by it.
    if isinstance(work, Analysis):
        return [
            "Checks a run that has ended, and makes its report (a page) and its figures, in the run directory.",
            "",
            "    id=$(sbatch --parsable JOB_OF_THE_RUN)",
            "    RUN=RUN_DIRECTORY sbatch --dependency=afterok:$id THIS_FILE",
            "",
            "From the environment: RUN, PYTHON, ENV_FILE.",
            *made,
        ]
    where = f"{asked.nodes} nodes" if asked.nodes > 1 else "one node"
    ranks = f"{asked.nodes * asked.ranks_per_node} ranks on {where}"
    if isinstance(work, Run):
        what = [f"{work.config} on {ranks}."]
        usage = ['    RUN=runs/mine SETTINGS="rounds=100 seed=3" sbatch THIS_FILE']
        names = "CONFIG, RUN (the run directory)" + (", PACK (the pack to copy)" if work.pack is not None else "")
    else:
        what = [f"Element K of {work.sweep} in array task K, each on {ranks}."]
        usage = [
            "    SWEEP=my.yaml OUT=runs/my sbatch --array=0-5 THIS_FILE     # as many as `sweep my.yaml --list` counts",
            "    python -m fedh2l_mpi sweep my.yaml --out runs/my --table   # compares what has finished",
        ]
        names = "SWEEP, OUT (the sweep's directory)"
    launcher = "MPIRUN" if request.mpi == "mpirun" else "SRUN_MPI"
    return [
        *what,
        "Before the time limit the run stops in order; the job queues itself again, and the run goes on.",
        "",
        "    sbatch THIS_FILE",
        *usage,
        "",
        f"From the environment: {names}, SETTINGS (section.key=value, parted",
        f"by blanks), MAX_RESTARTS, {launcher}, PYTHON, ENV_FILE. Paths are as seen from where sbatch is called.",
        *made,
    ]


def _environment(request: Request) -> str:
    if request.env is not None:
        which = f"ENV_FILE=${{ENV_FILE:-{shlex.quote(request.env)}}}"
    else:
        which = f'if [ -z "${{ENV_FILE:-}}" ] && [ -e {DEFAULT_ENV} ]; then ENV_FILE={DEFAULT_ENV}; fi'
    return f"""\
{which}
# Modules, the Python environment, settings of MPI. Before `set -u`, which such scripts do not stand.
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
            "# Not SLURM_JOB_ID: one element has the number of the array, and by it all would be queued again.\n"
            "this=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        )
    return f"""\
MAX_RESTARTS=${{MAX_RESTARTS:-{request.max_restarts}}}
restarts=${{SLURM_RESTART_COUNT:-0}}
{this}
# Not every Slurm tells it where tasks are asked for by the node.
SLURM_NTASKS=${{SLURM_NTASKS:-$((SLURM_NNODES * ${{SLURM_NTASKS_PER_NODE:-{request.resources.ranks_per_node}}}))}}
# For what is loaded before the program sets its own number of threads (devices.threads).
export OMP_NUM_THREADS=1
# Parallel file systems often have no locks; two jobs in one run directory are kept apart in another way.
export HDF5_USE_FILE_LOCKING=${{HDF5_USE_FILE_LOCKING:-BEST_EFFORT}}

say() {{ echo "$(date +%FT%T) job $this: $*"; }}
"""


def _settings(settings: tuple[str, ...], command: str) -> str:
    """Bash that appends the request's settings and SETTINGS to the array `command`."""
    own = f"{command}+=({' '.join(f'--set {shlex.quote(item)}' for item in settings)})\n" if settings else ""
    return f"""\
{own}# Blanks part the settings; quotes hold one together: SETTINGS="rounds=100 'data.root=/data/my packs'"
more=$(xargs -r -n 1 printf '%s\\n' <<<"${{SETTINGS:-}}") || exit 2
if [ -n "$more" ]; then
  while IFS= read -r setting; do {command}+=(--set "$setting"); done <<<"$more"
fi
"""


def _run(work: Run) -> str:
    # The number of a job that is queued again stays the same.
    run = "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID" if work.run is None else shlex.quote(work.run)
    return f"""\
CONFIG=${{CONFIG:-{shlex.quote(work.config)}}}
RUN=${{RUN:-{run}}}
program=("$PYTHON" -m fedh2l_mpi "$CONFIG" --out "$RUN" --resume auto)
{_settings(work.settings, "program")}"""


def _element(work: Sweep) -> str:
    return f"""\
SWEEP=${{SWEEP:-{shlex.quote(work.sweep)}}}
# The runs of another sweep are not put among these.
if [ "$SWEEP" != {shlex.quote(work.sweep)} ]; then name=${{SWEEP##*/}}; OUT=${{OUT:-runs/${{name%.*}}}}; fi
OUT=${{OUT:-{shlex.quote(work.out)}}}
prepare=("$PYTHON" -m fedh2l_mpi sweep "$SWEEP" --out "$OUT" --ranks "$SLURM_NTASKS")
{_settings(work.settings, "prepare")}\
# Writes the element's config, and tells its run directory.
RUN=$("${{prepare[@]}}" --index "$SLURM_ARRAY_TASK_ID" --prepare) || exit $?
# As `sweep` itself does: who runs an element holds a lock on its config.
exec 9<>"$RUN.yaml"
flock -n 9 || {{ say "$RUN: another process runs it" >&2; exit 1; }}
program=("$PYTHON" -m fedh2l_mpi "$RUN.yaml" --out "$RUN" --resume auto)
"""


SHARE_IMPORTS = """\
# One import on each node for all its ranks.
program+=(--share-imports)
"""


SIGNALS = """\
# Slurm signals this shell (B:), and bash heeds a signal between commands only: so the program runs in the background.
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
  # Slurm may be ending the job itself by now. A preempted one it queues again, with a restart more than ours; one that
  # was cancelled must stay so.
  job=$(scontrol show job -o "$this") restarted=${job##* Restarts=}
  case $job in
    *" JobState=COMPLETING Reason=TimeLimit "*) ;;
    *" JobState=COMPLETING "*)
      if [ "${restarted%% *}" -gt "$restarts" ]; then say "Slurm queues it again"; exit 1; fi
      say "cancelled: not queued again"
      exit 1 ;;
  esac
  if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
    say "restarted $restarts times, MAX_RESTARTS is $MAX_RESTARTS: not queued again; another job goes on in $RUN" >&2
    exit 1
  fi
  say "queues itself again, restart $((restarts + 1)) of at most $MAX_RESTARTS"
  trap - USR1 TERM
  # Ends this shell, too.
  scontrol requeue "$this" && sleep 300
  say "cannot be queued again; another job goes on in $RUN" >&2
  exit 1
}
"""


def _scratch(config: str, pack: str) -> str:
    return f"""\
# Which pack is copied was read when this job was made, and a config or a setting of another one would not be heeded.
if [ -z "${{PACK:-}}" ]; then
  if [ "$CONFIG" != {shlex.quote(config)} ]; then
    echo "CONFIG: $CONFIG may be of another pack than this job copies; give PACK, the file to copy, too" >&2; exit 2
  fi
  if [[ $'\n'$more =~ $'\n'[[:blank:]]*data(\\.root)?[[:blank:]]*= ]]; then
    echo "SETTINGS: data.root is where this job puts its copy; give PACK, the file to copy, instead" >&2; exit 2
  fi
fi
# The pack once to each node's own disk. A run may go on with a pack in another place: its content is what is compared.
PACK=${{PACK:-{shlex.quote(pack)}}}
# Not out of the folder that is removed in the end.
case /$PACK/ in */../*) PACK=$(realpath -m -- "$PACK") ;; esac
scratch=${{SLURM_TMPDIR:-${{TMPDIR:-/tmp}}}}/{SCRATCH}$SLURM_JOB_ID
per_node=(srun --mpi=none "--nodes=$SLURM_NNODES" "--ntasks=$SLURM_NNODES" --ntasks-per-node=1)
# Nothing can be started in a job that Slurm is ending: then the copy is left to the site, or to the next start.
clean() {{ "${{per_node[@]}}" rm -rf -- "$scratch" 2>/dev/null; }}
# By way of a name of the node's own: where scratch is not local after all, no file is half there.
# Under its whole path: by that, runs of one pack in many jobs are known as such (comparison.py), and those of others.
copy=$scratch/{COPY_OF}/$PACK
"${{per_node[@]}}" bash -c \\
  'mkdir -p -- "${{2%/*}}" && cp -- "$1" "$2.$SLURM_NODEID" && mv -f -- "$2.$SLURM_NODEID" "$2"' \\
  copy "$PACK" "$copy" || {{ say "$PACK: cannot be copied to $scratch of every node" >&2; clean; exit 1; }}
program+=(--set "data.root=$copy")
"""


def _launch(request: Request) -> str:
    if request.mpi == "mpirun":
        return """\
# --bind-to none: the ranks' threads are few, and a launcher that counts other cores than Slurm would refuse to start.
# TERM without USR1 before it (preemption, scancel) leaves the ranks of Open MPI's mpirun half a second, too short for a
# checkpoint: then the run goes on from its last one (checkpoint.every).
launch=("${MPIRUN:-mpirun}" -n "$SLURM_NTASKS" --bind-to none)
"""
    return f"""\
# --cpus-per-task again: srun does not take it from sbatch (since Slurm 22.05). --kill-on-bad-exit: one rank that is
# killed would leave the others waiting.
launch=(srun "--mpi=${{SRUN_MPI:-{request.mpi}}}" --kill-on-bad-exit=1 "--cpus-per-task=${{SLURM_CPUS_PER_TASK:-1}}")
# MPICH names its shared memory by job and step, and ranks that are killed leave it behind: a job that starts again on
# the same node needs a step of another number, or MPI would not start.
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

# Never by the launcher's exit code alone: Open MPI's mpirun returns 0 after losing a node. And not by what the status
# said before, or says of another job that is at work on this run.
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
  # Somebody wanted it to stop.
  "stopped:file STOP") clean; exit 0 ;;
  stopped:USR1 | stopped:TERM | stopped:max_wall | "stopped:launcher gone") again ;;
  # Cut off before it could stop in order: it goes on from its last checkpoint.
  running:* | unbegun:*) [ -z "$asked" ] || again ;;
  *) [ "$asked" != TERM ] || again ;;
esac
if [ "$state" = running ]; then
  # All ranks were killed, and nobody was left to say so.
  sed -e 's/^state: .*/state: failed/' -e "s/^reason: .*/reason: all ranks were killed; the launcher returned $code/" \
    "$RUN/status" >"$RUN/status.$SLURM_JOB_ID" && mv -f "$RUN/status.$SLURM_JOB_ID" "$RUN/status"
fi
say "did not finish; what the ranks said is in $RUN/log" >&2
clean
[ "$code" -ne 0 ] || code=1
exit "$code"
"""


def _analysis(work: Analysis) -> str:
    run = "?the run directory to look at" if work.run is None else f"-{shlex.quote(work.run)}"
    return f"""\
RUN=${{RUN:{run}}}
code=0
"$PYTHON" -m fedh2l_mpi validate "$RUN" || code=1
"$PYTHON" -m fedh2l_mpi report "$RUN" --html "$RUN/report.html" || code=1
"$PYTHON" -m fedh2l_mpi plot "$RUN" --figure all || code=1
exit $code
"""
