"""Draw figures of a run, for a paper or a page, as PNG, SVG or PDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from fedh2l_mpi.analysis.figures.conflict import CONFLICT
from fedh2l_mpi.analysis.figures.curves import CURVES
from fedh2l_mpi.analysis.figures.domains import DOMAINS
from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.graph import GRAPH
from fedh2l_mpi.analysis.figures.output import ENDINGS, checked_ending, inline_svg, save
from fedh2l_mpi.analysis.figures.overlay import Curve, draw_overlay, plot_overlay
from fedh2l_mpi.analysis.figures.overview import OVERVIEW
from fedh2l_mpi.analysis.figures.partition import PARTITION
from fedh2l_mpi.analysis.figures.phases import PHASES_KIND
from fedh2l_mpi.analysis.figures.presence import PRESENCE
from fedh2l_mpi.analysis.figures.reliability import RELIABILITY
from fedh2l_mpi.analysis.figures.simulated_time import TIME
from fedh2l_mpi.analysis.figures.style import COLUMN_MM, PAGE_MM, check_width, house_style
from fedh2l_mpi.analysis.figures.traffic import BYTES
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLUMN_MM",
    "ENDINGS",
    "FIGURES",
    "PAGE_MM",
    "Curve",
    "FigureKind",
    "Plotted",
    "draw",
    "draw_overlay",
    "inline_svg",
    "plot",
    "plot_overlay",
    "save",
]

FIGURES: Mapping[str, FigureKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            *(OVERVIEW, CURVES, DOMAINS, BYTES, TIME, GRAPH, PRESENCE, PHASES_KIND, CONFLICT),
            *(RELIABILITY, PARTITION),
        )
    }
)
ALL = "all"


@dataclass(frozen=True)
class Plotted:
    """Files that were written, and for each figure that was skipped the reason."""

    files: Sequence[Path]
    skipped: Mapping[str, str]


def draw(run: Run, name: str, width_mm: float | None = None) -> "Figure":
    """Draw a figure of a run.

    Parameters
    ----------
    name : str
        One of FIGURES.
    width_mm : float or None
        Width, such as COLUMN_MM and PAGE_MM, one and two columns of a paper; None: the figure's default.

    Raises
    ------
    UserError
        If there is no such figure, matplotlib is missing, or this run has nothing to draw for it.
    """
    kind = _kind(name)
    width_mm = kind.width_mm if width_mm is None else width_mm
    check_width(width_mm)
    with house_style():
        try:
            return kind.drawn(run, width_mm)
        except UserError as error:
            raise UserError(f"{run.file}: nothing to draw for {name!r}: {error}") from None


def plot(
    run: Run,
    names: Sequence[str],
    out: Path | None = None,
    ending: str = "png",
    width_mm: float | None = None,
) -> Plotted:
    """Draw figures into files.

    Parameters
    ----------
    names : sequence of str
        Names in FIGURES. `all` means every figure that this run has data for; the others are skipped.
    out : Path or None
        A file for one figure; a folder, which is made, for several or `all`; None: next to the metrics file.
    ending : {"png", "svg", "pdf"}
        File type, unless `out` has an ending.

    Raises
    ------
    UserError
        If a figure that is named, or every figure of `all`, has nothing to draw, or one cannot be written.
    """
    ending = checked_ending(ending, "plot")
    is_all = ALL in names
    asked = [_kind(name).name for name in dict.fromkeys(names) if name != ALL]
    chosen = list(FIGURES) if is_all else asked
    if len(chosen) == 1:
        (name,) = chosen
        file = _file(run, name, out, ending)
        save(draw(run, name, width_mm), file)
        return Plotted([file], {})
    folder = run.file.parent / "plots" if out is None else out
    if folder.suffix.removeprefix(".") in ENDINGS and not folder.is_dir():
        raise UserError(f"{folder}: several figures need a folder, but this is the name of a file. Name a folder.")
    files, skipped = [], {}
    for name in chosen:
        try:
            figure = draw(run, name, width_mm)
        except UserError as error:
            if not is_all:
                raise
            skipped[name] = str(error)
            continue
        _make(folder)
        save(figure, folder / f"{name}.{ending}")
        files.append(folder / f"{name}.{ending}")
    if not files:
        raise UserError(next(iter(skipped.values()), "plot: no figure was named."))
    return Plotted(files, skipped)


def _kind(name: str) -> FigureKind:
    if name not in FIGURES:
        hint = did_you_mean(name, list(FIGURES))
        raise UserError(f"figure: got {name!r}. Known: {', '.join(FIGURES)}{hint}")
    return FIGURES[name]


def _file(run: Run, name: str, out: Path | None, ending: str) -> Path:
    usual = f"plot.{ending}" if name == OVERVIEW.name else f"plot-{name}.{ending}"
    if out is None:
        return run.file.parent / usual
    if out.is_dir():
        return out / usual
    return out if out.suffix else out.with_name(f"{out.name}.{ending}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be a folder for figures: {error.strerror}") from None
