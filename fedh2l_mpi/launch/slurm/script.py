"""Write the text of a batch job: `render`, a pure function of a request.

Before its time limit, a job stops its run after a round and queues itself again; then it resumes from the run's
checkpoint. The job reads the run's end from the `status` file of the run directory, as the launcher's exit code alone
may be wrong.
"""

import math
import shlex
from dataclasses import dataclass

from fedh2l_mpi.config.comparison import COPY_OF, SCRATCH
from fedh2l_mpi.launch.slurm import container, supervision

DEFAULT_ENV = "jobs/env.sh"


@dataclass(frozen=True)
class Resources:
    """Resources that a job requests from Slurm; times in seconds. `others` are lines of options for sbatch."""

    name: str
    time_s: float
    nodes: int = 1
    ranks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Container:
    """Image of Apptainer in which the job's program runs, and paths outside the job's folder that the config names."""

    image: str
    paths: tuple[str, ...] = ()


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
    container : Container or None
        None: the program runs in the environment of the job.
    """

    resources: Resources
    work: Run | Sweep | Analysis
    mpi: str = "pmix"
    lead_s: int = 120
    max_restarts: int = 20
    env: str | None = None
    made_by: str = ""
    share_imports: bool = False
    container: Container | None = None


def render(request: Request) -> str:
    """Return the bash script for sbatch."""
    work = request.work
    if isinstance(work, Analysis):
        parts = [_head(request), _environment(request), _container(request), _analysis(request, work)]
    else:
        own = _run(request, work) if isinstance(work, Run) else _element(request, work)
        scratch = _scratch(request, work.config, work.pack) if isinstance(work, Run) and work.pack is not None else ""
        share = SHARE_IMPORTS if request.share_imports else ""
        begin = [_head(request), _environment(request), _begin(request), _container(request), own, share]
        launch = supervision.launch(request.mpi)
        parts = [*begin, supervision.SIGNALS, scratch, launch, supervision.start_and_end(_inside(request))]
    return "\n".join(part for part in parts if part)


def _container(request: Request) -> str:
    inside = request.container
    return container.begin(inside.image, request.resources.gpus_per_node > 0, inside.paths) if inside else ""


def _inside(request: Request) -> str:
    """Return the words that precede a command which runs in the container; none without one."""
    return container.INSIDE if request.container is not None else ""


def _show(request: Request, *variables: str) -> str:
    """Return the line that makes the paths in these variables of bash visible in the container; none without one."""
    words = " ".join(f'"${name}"' for name in variables)
    return f"show {words}\n" if request.container is not None else ""


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
    return "\n".join([*lines, *(f"#SBATCH --{option}" for option in options), *_others(asked), ""])


def _others(asked: Resources) -> list[str]:
    return [f"#SBATCH {line}" for line in asked.others]


def _about(request: Request) -> list[str]:
    """Return the header comment: what the job does, and how to submit it."""
    work, asked = request.work, request.resources
    made = ["", f"Made by: {request.made_by}"] if request.made_by else []
    image = ", IMAGE, APPTAINER" if request.container is not None else ""
    if isinstance(work, Analysis):
        return [
            "Check a run that has ended, and write its report (an HTML page) and its figures into the run directory.",
            "",
            "    id=$(sbatch --parsable JOB_OF_THE_RUN)",
            "    RUN=RUN_DIRECTORY sbatch --dependency=afterok:$id THIS_FILE",
            "",
            f"Variables you may set: RUN, PYTHON, ENV_FILE{image}.",
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
        f"by blanks), MAX_RESTARTS, {launcher}, PYTHON, ENV_FILE{image}. Paths are relative to where sbatch is called.",
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
# It may be several words, such as "apptainer exec image.sif python"; a program's own path may contain blanks.
PYTHON=${{PYTHON:-python}}
if command -v -- "$PYTHON" >/dev/null; then python=("$PYTHON"); else read -ra python <<<"$PYTHON"; fi
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


def _run(request: Request, work: Run) -> str:
    # A job that is queued again keeps its number, so it finds its run directory again.
    run = "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID" if work.run is None else shlex.quote(work.run)
    return f"""\
CONFIG=${{CONFIG:-{shlex.quote(work.config)}}}
RUN=${{RUN:-{run}}}
{_show(request, "CONFIG", "RUN")}\
program=("${{python[@]}}" -m fedh2l_mpi "$CONFIG" --out "$RUN" --resume auto)
{_settings(work.settings, "program")}"""


def _element(request: Request, work: Sweep) -> str:
    return f"""\
SWEEP=${{SWEEP:-{shlex.quote(work.sweep)}}}
# Another sweep gets a directory of its own, so that its runs do not mix with these.
if [ "$SWEEP" != {shlex.quote(work.sweep)} ]; then name=${{SWEEP##*/}}; OUT=${{OUT:-runs/${{name%.*}}}}; fi
OUT=${{OUT:-{shlex.quote(work.out)}}}
{_show(request, "SWEEP", "OUT")}\
prepare=({_inside(request)}"${{python[@]}}" -m fedh2l_mpi sweep "$SWEEP" --out "$OUT" --ranks "$SLURM_NTASKS")
{_settings(work.settings, "prepare")}\
# Write the element's config and print its run directory.
RUN=$("${{prepare[@]}}" --index "$SLURM_ARRAY_TASK_ID" --prepare) || exit $?
# Lock the element's config, as `sweep` itself does, so that no other process runs the element.
exec 9<>"$RUN.yaml"
flock -n 9 || {{ say "$RUN: another process runs it" >&2; exit 1; }}
program=("${{python[@]}}" -m fedh2l_mpi "$RUN.yaml" --out "$RUN" --resume auto)
"""


SHARE_IMPORTS = """\
# Each node imports the modules once, for all its ranks.
program+=(--share-imports)
"""


def _scratch(request: Request, config: str, pack: str) -> str:
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
{_show(request, "copy")}\
program+=(--set "data.root=$copy")
"""


def _analysis(request: Request, work: Analysis) -> str:
    inside = _inside(request)
    run = "?Set RUN to the run directory." if work.run is None else f"-{shlex.quote(work.run)}"
    return f"""\
RUN=${{RUN:{run}}}
{_show(request, "RUN")}\
code=0
{inside}"${{python[@]}}" -m fedh2l_mpi validate "$RUN" || code=1
{inside}"${{python[@]}}" -m fedh2l_mpi report "$RUN" --html "$RUN/report.html" || code=1
{inside}"${{python[@]}}" -m fedh2l_mpi plot "$RUN" --figure all || code=1
exit $code
"""
