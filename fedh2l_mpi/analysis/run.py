"""Find runs on disk, and read one run for reports, plots and pages.

Shape letters: R rounds, P participants, D domains, E evaluated rounds.
"""

import contextlib
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis import sweep_folder
from fedh2l_mpi.config import Config, recipes, yaml_text
from fedh2l_mpi.config.comparison import flat
from fedh2l_mpi.errors import UserError, did_you_mean
from fedh2l_mpi.metrics import RunMetrics, RunState, infer_state, look
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.terminal import harmless

if TYPE_CHECKING:
    import xarray

    from fedh2l_mpi.analysis.summary import Summary

# A sweep renames the directory of an unfinished run so, before it starts the run again.
SET_ASIDE = re.compile(r"\.unfinished-\d+$")
# Figures and tables may lie next to the runs that a glob matches, so of files it means those with such an ending.
ENDINGS = (".h5", ".hdf5")


@dataclass(frozen=True, repr=False)
class Run:
    """A run that was read from its metrics file.

    Damaged values are NaN, or missing from the config; `problems` lists the damage.

    Attributes
    ----------
    file : Path
        Metrics file.
    metrics : RunMetrics
        Arrays and attributes of the file, read when they are used.
    config : mapping
        Resolved config as nested sections, with the classic values of keys that are younger than the run; empty if it
        cannot be read.
    """

    file: Path
    metrics: RunMetrics
    config: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.condition}, {self.participants} participants)"

    @property
    def name(self) -> str:
        """Name of the run directory, or of the metrics file if the file does not have its usual name."""
        return name_of(self.file)

    @property
    def problems(self) -> Sequence[str]:
        """Damage of the file; reading more arrays may reveal more."""
        return list(dict.fromkeys(self.metrics.problems))

    @property
    def path(self) -> Path:
        """Run directory, or the metrics file if the file does not have its usual name."""
        return self.file.parent if _has_usual_name(self.file) else self.file

    @property
    def state(self) -> str:
        """State in one word: complete, running, stopped, failed or crashed."""
        return self.condition.word

    @cached_property
    def condition(self) -> RunState:
        """State with its numbers of rounds."""
        return infer_state(self.metrics, self.file)

    @property
    def participants(self) -> int:
        """Number of participants, P."""
        return len(self.metrics["participant"])

    @cached_property
    def evaluated_E(self) -> NDArray[np.int64]:
        """Rows in which every participant was evaluated, int64 (E,). Rounds may be missing, so a row is no round."""
        accuracy_RP = self.metrics["accuracy_all"]
        return np.flatnonzero(~np.isnan(accuracy_RP).any(axis=1)) if accuracy_RP.size else np.empty(0, np.int64)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array of the metrics file by its name, such as `accuracy_all`, (rounds, participants).

        Raises
        ------
        UserError
            If there is no array of that name.
        """
        dimensions = self.metrics.dimensions
        if name not in dimensions:
            known = ", ".join(dimensions)
            raise UserError(f"{self.name}: no array {name!r}{did_you_mean(name, list(dimensions))}. Known: {known}.")
        return self.metrics[name]

    def summary(self) -> "Summary":
        """Return the numbers of the report: accuracies, traffic, times."""
        from fedh2l_mpi.analysis.summary import summarise

        with self.metrics.opened():
            return summarise(self)

    def dataset(self) -> "xarray.Dataset":
        """Return the run as labelled arrays, which are read when they are used.

        Raises
        ------
        UserError
            If xarray is not installed.
        """
        from fedh2l_mpi.analysis.dataset import run_dataset

        return run_dataset(self)

    def plot(self, *names: str, out: str | Path | None = None) -> list[Path]:
        """Draw figures and return their files; without names, the overview.

        Parameters
        ----------
        names : str
            Figures by their names, as `plot --list` prints them.
        out : path or None
            File for one figure, folder for several; None: next to the metrics file.

        Raises
        ------
        UserError
            If a name is unknown, a file cannot be written, or matplotlib is not installed.
        """
        from fedh2l_mpi.analysis import figures

        return list(figures.plot(self, names or ("overview",), Path(out) if out is not None else None).files)

    def after(self, row: int) -> int:
        """Return the number of rounds that had finished after the round in this row, counted from 1."""
        return int(self.metrics["round"][row]) + 1

    def key(self, dotted: str, default: Any = None) -> Any:
        """Return a value of the config by its dotted key, or `default` if there is none."""
        section: Any = self.config
        for word in dotted.split("."):
            if not isinstance(section, Mapping) or word not in section:
                return default
            section = section[word]
        return section

    def flat_config(self) -> dict[str, Any]:
        """Return the config with dotted keys."""
        return flat(self.config)

    def close(self) -> None:
        """Forget the metrics file: arrays that were not read before cannot be read any more."""
        self.metrics.close()


def name_of(file: Path) -> str:
    """Return `Run.name` of the run with this metrics file."""
    return file.absolute().parent.name if _has_usual_name(file) else file.stem


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each run; runs with the same name get as many parent folders as make it unique."""
    paths = [file.absolute().parent if _has_usual_name(file) else file.absolute() for file in files]
    names = [name_of(file) for file in files]
    longest = max((len(path.parts) for path in paths), default=0)
    for depth in range(2, longest + 1):
        if len(set(names)) == len(names):
            break
        twice = {name for name in names if names.count(name) > 1}
        names = [
            "/".join(path.parts[-depth:]) if name in twice else name for name, path in zip(names, paths, strict=True)
        ]
    return names


def _has_usual_name(file: Path) -> bool:
    return file.name == RunDirectory(file.parent).metrics.name


def load_run(path: Path) -> Run:
    """Open a run by its directory or its metrics file, even if it is still being written or damaged.

    Raises
    ------
    UserError
        If there is no metrics file, or none of it can be read.
    """
    file = metrics_file(path)
    measured = look(file)
    try:
        config = yaml_text.read(str(measured.attributes.get("config", "")))
    except yaml_text.YamlError:
        config = None
    if not isinstance(config, dict):
        measured.problems.append("attribute 'config' is missing or damaged")
        config = {}
    # Readers find every key, also one that is younger than the run.
    config = _harmless(config)
    return Run(file, measured, recipes.complete(Config, config) if config else config)


def _harmless(value: Any) -> Any:
    """Return a value of a config, whose quoted texts may stand for codes of a terminal, without such codes."""
    if isinstance(value, dict):
        return {_harmless(key): _harmless(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    return harmless(value) if isinstance(value, str) else value


def metrics_file(path: Path) -> Path:
    """Return the metrics file of a run directory, or the path itself if it is no directory."""
    with readable(path):
        if path.is_dir():
            file = RunDirectory(path).metrics
            if not file.exists():
                missing = f"{path}: this directory contains no run, because {file.name} is missing."
                raise UserError(f"{missing}{_runs_below(path)}")
            return file
        return path


def _runs_below(path: Path) -> str:
    """Say what to do with a folder of runs, such as one of a sweep, where a single run is needed."""
    names = unique_names(_below(path))
    if not names:
        return ""
    return (
        f" The {len(names)} runs below it are {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}. Fix: name one "
        f"of them, or draw all of them by compare {path} --plot curves.png."
    )


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn an OSError inside the block into a UserError that names the user's own path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None


def find(patterns: Sequence[str]) -> list[Path]:
    """Return the metrics files of all runs that the patterns name, in the order of names, or of a folder's sweep.

    A pattern is a run directory, a metrics file, a folder that contains runs at any depth, or a glob. What else a glob
    matches, such as the figures and tables of a sweep, is left out. A shell resolves globs itself, so of several
    patterns, those that name what a sweep writes next to its runs are left out as well.

    Raises
    ------
    UserError
        If a pattern leads to no run, or cannot be read.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        with readable(pattern):
            if len(patterns) > 1 and sweep_folder.is_next_to_runs(Path(pattern)):
                continue
            paths = [Path(pattern)] if Path(pattern).exists() else _matches(pattern)
            files = sweep_folder.in_order([file for path in paths for file in _below(path)])
        if not files:
            raise UserError(
                f"{pattern}: there is no run. Name run directories, metrics files, or folders that contain runs."
            )
        found |= dict.fromkeys(files)
    if not found:
        raise UserError("there is no run among what was named. Name run directories, or folders that contain runs.")
    return list(found)


def _matches(pattern: str) -> list[Path]:
    paths = [Path(match) for match in sorted(glob.glob(pattern))]
    return [path for path in paths if path.suffix in ENDINGS or (path.is_dir() and not SET_ASIDE.search(path.name))]


def _below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    name = RunDirectory(path).metrics.name
    if (path / name).exists():
        return [path / name]
    return [file for file in sorted(path.rglob(name)) if not SET_ASIDE.search(file.parent.name)]
