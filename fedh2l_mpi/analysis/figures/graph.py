"""Draw the graph of a run, with the traffic of its edges and the accuracy of its participants.

Shape letters: R rounds, P participants, E edges.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedh2l_mpi.analysis.figures.figure import FigureKind
from fedh2l_mpi.analysis.figures.style import (
    COLOUR_MAP,
    COLUMN_MM,
    GREY,
    LISTED,
    SMALL,
    WIDE_MM,
    colour_bar,
    ink_on,
    limits,
    new_figure,
    rounds_text,
    shown,
)
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.libraries import missing
from fedh2l_mpi.runtime.units import size

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Shapes with room for a number.
MARKERS = ("o", "s", "D", "h", "^", "v")
# Largest number of nodes, their diameter [pt], and the widths of edges [pt] from little to much traffic.
SIZES = ((LISTED, 13.0, (0.6, 1.4, 2.6)), (150, 6.0, (0.4, 0.9, 1.6)), (10**9, 3.0, (0.15, 0.3, 0.6)))
# A sample of this many edges is drawn if there are more: a thousand participants may have half a million.
DRAWN = 5000
# Edges in one path: matplotlib fails to draw a path that is too long.
IN_A_PATH = 500
# Sum of length (the graph is about 2 wide) times width [pt] over all lines, which leaves half of the area free.
MOST_INK = 200.0
# With more participants, edges of a circle could not be distinguished.
CIRCLE = 12
# With more participants, no layout by forces ends in time.
LAID_OUT = 5000
# With more nodes, the full layout by forces between all pairs would take too long.
FEW = 100


def drawn(run: Run, width_mm: float) -> "Figure":
    """Draw the last graph of the run."""
    edges_E2, since = last_graph(run)
    participants = run.participants
    positions_P2 = layout(participants, edges_E2)
    diameter_pt, widths = next((pt, widths) for most, pt, widths in SIZES if participants <= most)
    rows = np.flatnonzero(run.metrics["round"] >= since)
    accuracy_P = run.metrics["accuracy_all"][run.evaluated_E[-1]] if len(run.evaluated_E) else None

    is_wide = width_mm >= WIDE_MM
    figure = new_figure(width_mm, 100.0 if is_wide else width_mm + 10.0)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.margins(0.06)
    bytes_E, drawn_E = edge_bytes(run, edges_E2, rows), _sample(len(edges_E2))
    traffic = _edges(axes, positions_P2, edges_E2[drawn_E], bytes_E[drawn_E], widths)
    shapes = _nodes(axes, positions_P2, accuracy_P, run.metrics.texts("architecture"), diameter_pt)
    if participants <= LISTED:
        _labels(axes, positions_P2, accuracy_P)
    if accuracy_P is not None:
        after = rounds_text(run.after(run.evaluated_E[-1]))
        colour_bar(figure, axes.collections[-1], axes, f"all-domain test accuracy after {after}")
    numbers = run.metrics["round"][rows] + 1
    if len(numbers):
        when = f"round {numbers[0]:,}" + (f" to {numbers[-1]:,}" if len(numbers) > 1 else "")
    else:
        when = "before the first round"
    places: Any = ("outside lower left", "outside lower right")
    if is_wide:
        places = ("outside left lower", "outside left upper")
    if traffic:
        title = f"sent over an edge, both ways,\n{when}"
        if len(drawn_E) < len(edges_E2):
            title += f"\n({len(drawn_E):,} of {len(edges_E2):,} edges drawn)"
        figure.legend(handles=traffic, title=title, loc=places[0], alignment="left")
    if shapes:
        figure.legend(handles=shapes, title="architecture", loc=places[1], alignment="left")
    return figure


def last_graph(run: Run) -> tuple[NDArray[np.int64], int]:
    """Return the edges of the run's last graph, int64 (E, 2), and the first round (from 0) that used it.

    Raises
    ------
    UserError
        If there is none, or it cannot be read.
    """
    if run.participants < 2:
        raise UserError("one participant has no neighbours")
    edges_E2, since_E = run.metrics["graph_edges"], run.metrics["graph_since_round"]
    if edges_E2.dtype.kind != "i" or since_E.dtype.kind != "i":
        raise UserError("the graph cannot be read")
    if len(edges_E2) == 0:
        return np.empty((0, 2), np.int64), 0
    since = int(since_E.max())
    edges_E2 = edges_E2[since_E == since].astype(np.int64)
    if edges_E2.min() < 0 or edges_E2.max() >= run.participants:
        raise UserError("the graph cannot be read")
    return edges_E2, since


def edge_bytes(run: Run, edges_E2: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the bytes over each edge in these rounds, both ways, float64 (E,).

    The bytes of a participant are divided evenly among its edges.
    """
    degree_P = np.bincount(edges_E2.ravel(), minlength=run.participants)
    sent_P = run.metrics["bytes_sent"][rows].sum(axis=0, dtype=np.float64)
    each_P = sent_P / np.maximum(degree_P, 1)
    return each_P[edges_E2].sum(axis=1)


def layout(participants: int, edges_E2: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the position of every participant, float64 (P, 2), which depends on the graph only.

    Raises
    ------
    UserError
        If the graph needs SciPy to be laid out, and it is missing.
    """
    import networkx

    is_complete = len(edges_E2) == participants * (participants - 1) // 2
    if is_complete or len(edges_E2) == 0:
        return _circle(range(participants), participants)
    graph = networkx.empty_graph(participants)
    graph.add_edges_from(edges_E2.tolist())
    degree_P = np.array([graph.degree(i) for i in range(participants)])
    if participants > 3 and len(edges_E2) == participants - 1 and degree_P.max() == participants - 1:
        hub = int(degree_P.argmax())
        return _circle([i for i in range(participants) if i != hub], participants)
    is_connected = networkx.is_connected(graph)
    if is_connected and (degree_P == 2).all():
        return _circle(list(networkx.dfs_preorder_nodes(graph, 0)), participants)
    if participants <= CIRCLE or participants > LAID_OUT:
        return _circle(range(participants), participants)
    return _by_forces(graph, is_connected)


def _circle(around: Sequence[int], participants: int) -> NDArray[np.float64]:
    """Place the participants `around` on a circle, clockwise from the top, and all others at its centre."""
    positions_P2 = np.zeros((participants, 2))
    angles = 2 * np.pi * np.arange(len(around)) / len(around)
    positions_P2[list(around)] = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return positions_P2


def _by_forces(graph: "networkx.Graph", is_connected: bool) -> NDArray[np.float64]:
    import networkx

    try:
        if is_connected and len(graph) <= FEW:
            positions = networkx.kamada_kawai_layout(graph)
        else:
            # Many nodes settle faster if they start on a circle.
            start = dict(enumerate(_circle(range(len(graph)), len(graph))))
            turns = 50 if len(graph) <= 5 * FEW else 15
            positions = networkx.spring_layout(graph, pos=start, seed=0, iterations=turns)
    except ImportError as error:
        # NetworkX imports SciPy for its layouts.
        raise missing(error, "--figure graph", "analysis") or error from None
    return np.array([positions[i] for i in range(len(graph))])


def _sample(edges: int) -> NDArray[np.int64]:
    """Return the edges to draw: all, or a sample that is the same every time."""
    if edges <= DRAWN:
        return np.arange(edges)
    return np.sort(np.random.default_rng(0).choice(edges, DRAWN, replace=False))


def _edges(
    axes: "Axes",
    positions_P2: NDArray[np.float64],
    edges_E2: NDArray[np.int64],
    bytes_E: NDArray[np.float64],
    widths: Sequence[float],
) -> list[Any]:
    """Draw the edges in at most three widths, many in one path, because thousands of paths make a page slow."""
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D
    from matplotlib.path import Path

    lengths_E = np.linalg.norm(positions_P2[edges_E2[:, 0]] - positions_P2[edges_E2[:, 1]], axis=1)
    # Dense graphs have thinner lines; the legend keeps their proportions.
    thinner = min(1.0, MOST_INK / max(float(lengths_E.sum()) * widths[1], 1e-9))
    handles = []
    for label, chosen_E, width in _levels(bytes_E, widths):
        pieces = np.array_split(positions_P2[edges_E2[chosen_E]], -(-int(chosen_E.sum()) // IN_A_PATH))
        paths = [Path(ends.reshape(-1, 2), [Path.MOVETO, Path.LINETO] * len(ends)) for ends in pieces]
        lines = PathCollection(paths, facecolors="none", edgecolors=GREY, linewidths=width * thinner, zorder=1)
        axes.add_collection(lines)
        # The thinnest lines would be invisible in a legend.
        handles.append(Line2D([], [], color=GREY, linewidth=max(width, 0.5), label=label))
    return handles


def _levels(bytes_E: NDArray[np.float64], widths: Sequence[float]) -> list[tuple[str, NDArray[np.bool_], float]]:
    """Group the edges by traffic; return each group's label, its edges and its line width."""
    if len(bytes_E) == 0:
        return []
    unknown_E = np.isnan(bytes_E)
    if unknown_E.all():
        return [("not known", unknown_E, widths[0])]
    low, high = float(np.nanmin(bytes_E)), float(np.nanmax(bytes_E))
    if high == 0:
        return [("nothing", ~unknown_E, widths[0])]
    if high <= 1.1 * low:
        return [(f"{size(float(np.nanmean(bytes_E)))} each", ~unknown_E, widths[1])]
    bounds = np.linspace(low, high, len(widths) + 1)
    level_E = np.clip(np.digitize(bytes_E, bounds) - 1, 0, len(widths) - 1)
    levels = []
    for level, width in enumerate(widths):
        chosen_E = (level_E == level) & ~unknown_E
        if chosen_E.any():
            levels.append((f"{size(bounds[level])} to {size(bounds[level + 1])}", chosen_E, width))
    return levels


def _nodes(
    axes: "Axes",
    positions_P2: NDArray[np.float64],
    accuracy_P: NDArray[np.float64] | None,
    architectures: Sequence[str],
    diameter_pt: float,
) -> list[Any]:
    """Draw the participants, and return the legend's handles; few architectures get one shape each."""
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(architectures))
    has_shapes = 1 < len(names) <= len(MARKERS)
    low, high = limits(accuracy_P) if accuracy_P is not None else (0.0, 1.0)
    handles = []
    for number, name in enumerate(names if has_shapes else [""]):
        chosen = np.array([i for i, kind in enumerate(architectures) if not has_shapes or kind == name])
        x, y = positions_P2[chosen].T
        axes.scatter(
            x,
            y,
            c=accuracy_P[chosen] if accuracy_P is not None else GREY,
            cmap=COLOUR_MAP if accuracy_P is not None else None,
            vmin=low if accuracy_P is not None else None,
            vmax=high if accuracy_P is not None else None,
            marker=MARKERS[number],
            s=diameter_pt**2,
            edgecolors="black",
            linewidths=0.5 if diameter_pt > 4 else 0.0,
            zorder=2,
        )
        if has_shapes:
            handles.append(
                Line2D([], [], marker=MARKERS[number], linestyle="", color=GREY, markersize=5.5, label=shown(name, 14))
            )
    return handles


def _labels(axes: "Axes", positions_P2: NDArray[np.float64], accuracy_P: NDArray[np.float64] | None) -> None:
    low, high = limits(accuracy_P) if accuracy_P is not None else (0.0, 1.0)
    for i, (x, y) in enumerate(positions_P2):
        shade = (accuracy_P[i] - low) / (high - low) if accuracy_P is not None else 1.0
        axes.text(x, y, str(i), ha="center", va="center_baseline", size=SMALL, color=ink_on(shade), zorder=3)


GRAPH = FigureKind(
    "graph",
    "Graph",
    "The last graph of the run: participants coloured by their accuracy on all domains, shaped by architecture, and "
    "edges as wide as their traffic. What a participant sent is divided evenly among its edges and summed over the "
    "rounds of this graph.",
    COLUMN_MM,
    drawn,
)
