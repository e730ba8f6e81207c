"""Options of sbatch that the user passes through to the job's head, such as `--constraint=a100`."""

import re
import shlex

from fedh2l_mpi.errors import UserError, did_you_mean

# Options that a job file sets itself, and what sets them.
RESTARTS = "leave it out; the job needs it to stop and resume its run"
OUTPUT = "leave it out, so that restarts append to one file; `sbatch --output=FILE JOB` overrides the name"
OWN = {
    "nodes": "use --nodes of this command",
    "ntasks": "use --ranks-per-node of this command",
    "ntasks-per-node": "use --ranks-per-node of this command",
    "ntasks-per-core": "use --ranks-per-node of this command",
    "ntasks-per-gpu": "use --ranks-per-node of this command",
    "ntasks-per-socket": "use --ranks-per-node of this command",
    "cpus-per-task": "use --cpus-per-task of this command",
    "cpus-per-gpu": "use --cpus-per-task of this command",
    "gpus": "use --gpus-per-node of this command",
    "gpus-per-node": "use --gpus-per-node of this command",
    "gpus-per-socket": "use --gpus-per-node of this command",
    "gpus-per-task": "use --gpus-per-node of this command",
    "time": "use --time of this command",
    "partition": "use --partition of this command",
    "account": "use --account of this command",
    "job-name": "use --job-name of this command",
    "array": "use --sweep of this command",
    "output": OUTPUT,
    "open-mode": OUTPUT,
    "signal": "use --lead of this command",
    "requeue": RESTARTS,
    "no-requeue": "use --max-restarts 0 of this command",
    "wrap": "leave it out; the job has a script",
}
SHORT = {
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "G": "gpus",
    "t": "time",
    "p": "partition",
    "A": "account",
    "J": "job-name",
    "a": "array",
    "o": "output",
}
# Source: sbatch(1). A plugin of the site may add others.
KNOWN = (
    "acctg-freq", "batch", "bb", "bbf", "begin", "chdir", "cluster-constraint", "clusters", "comment", "constraint",
    "container", "container-id", "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "deadline",
    "delay-boot", "dependency", "distribution", "error", "exclude", "exclusive", "export", "export-file",
    "extra-node-info", "get-user-env", "gid", "gpu-bind", "gpu-freq", "gres", "gres-flags", "hold", "input",
    "kill-on-invalid-dep", "licenses", "mail-type", "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu",
    "mem-per-gpu", "mincpus", "network", "nice", "no-kill", "nodefile", "nodelist", "overcommit", "oversubscribe",
    "prefer", "priority", "profile", "propagate", "qos", "reboot", "reservation", "segment", "sockets-per-node",
    "spread-job", "switches", "thread-spec", "threads-per-core", "time-min", "tmp", "tres-bind", "tres-per-task",
    "uid", "use-min-nodes", "wait-all-nodes", "wckey",
)  # fmt: skip
FLAGS = ("contiguous", "exclusive", "hold", "overcommit", "oversubscribe", "reboot", "spread-job", "use-min-nodes")
_LONG = re.compile(r"--([A-Za-z][\w-]*)(=.*)?", re.ASCII | re.DOTALL)
_ALLOWED = "Allowed: options of sbatch, such as constraint=a100, --mem=64G or --exclusive"


def head_line(text: str) -> str:
    """Return what follows `#SBATCH ` in the job's head for one `--sbatch` of the user.

    Parameters
    ----------
    text : str
        One or more options of sbatch. The dashes of the first may be left out.

    Raises
    ------
    UserError
        If the text is no option of sbatch, breaks the line, or sets what the job sets itself.
    """
    text = text.strip()
    if not text.isprintable():
        raise UserError(f"--sbatch: got {text!r}, must be one line of printable characters.")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--sbatch: got {text!r}: {error}. {_ALLOWED}.") from None
    name = words[0].partition("=")[0] if words else ""
    if words and not text.startswith("-") and ("=" in words[0] or name in FLAGS or name in OWN):
        text, words[0] = f"--{text}", f"--{words[0]}"
    takes_value = False
    for word in words:
        if word.startswith("-"):
            takes_value = _check_option(word, text)
        elif takes_value:
            takes_value = False
        else:
            hint = did_you_mean(name, [*KNOWN, *OWN]) if word == words[0] else ". Quotes keep blanks within a value"
            raise UserError(f"--sbatch: got {text!r}, but {word!r} is no option. {_ALLOWED}{hint}.")
    if not words:
        raise UserError(f"--sbatch: got {text!r}. {_ALLOWED}.")
    return text


def _check_option(word: str, text: str) -> bool:
    """Refuse an option that the job sets itself; return True if the next word may be its value."""
    long = _LONG.fullmatch(word)
    if long is None:
        if not re.fullmatch(r"-[A-Za-z].*", word, re.ASCII | re.DOTALL):
            raise UserError(f"--sbatch: got {text!r}, but {word!r} is no option. {_ALLOWED}.")
        own = SHORT.get(word[1])
        is_whole = len(word) == 2
    else:
        name = long[1]
        # sbatch also takes the start of a name, so `--tim` is its --time.
        own = name if name in OWN else next((each for each in OWN if each.startswith(name)), None)
        own = None if name in KNOWN else own
        is_whole = long[2] is None
        if name == "gres" and re.search(r"(?:^|[=, ])gpu\b", long[2] or text.partition("--gres")[2]):
            own = "gpus-per-node"
    if own is not None:
        raise UserError(f"--sbatch: got {text!r}, but the job sets --{own} itself. Fix: {OWN[own]}.")
    return is_whole
