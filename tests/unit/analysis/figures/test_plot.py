"""Figures: the numbers in them worked out by hand, nothing cut off, and a reason where nothing can be drawn."""

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.four_rounds import THREE, write
from helpers.launching import ROOT
from helpers.runs_in_memory import made
from matplotlib.collections import LineCollection
from matplotlib.text import Text

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import figures
from fedh2l_mpi.analysis.figures import (
    domains,
    graph,
    overlay,
    partition,
    phases,
    reliability,
    simulated_time,
    style,
    traffic,
)
from fedh2l_mpi.analysis.outcome import Outcome
from fedh2l_mpi.analysis.run import Run, load_run
from fedh2l_mpi.cli import commands
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.world import World

NAN = np.nan


def with_arrays(run, **arrays) -> Run:
    changed = {**run.metrics.arrays, **{name: np.asarray(values) for name, values in arrays.items()}}
    return replace(run, metrics=metrics.RunMetrics(run.metrics.attributes, changed, True))


def unknown(run, *names) -> Run:
    return with_arrays(run, **{name: np.full(run.metrics[name].shape, NAN) for name in names})


def with_clock(run, slowest_s=(10.0, 20.0, 30.0, 40.0)) -> Run:
    """The run with simulated seconds, of which the last participant's are these."""
    before = run.metrics
    simulated_RP = np.array(slowest_s)[:, None] - np.arange(run.participants)[::-1]
    arrays = {**before.arrays, metrics.SIMULATED_SECONDS.name: simulated_RP}
    columns = metrics.Columns((metrics.SIMULATED_SECONDS,))
    return replace(run, metrics=metrics.RunMetrics(before.attributes, arrays, True, columns=columns))


def with_absences(run) -> Run:
    """The run with participants of which number i is absent in round i, i + 3, i + 6 and so on."""
    before, (rounds, count) = run.metrics, run.metrics["accuracy_all"].shape
    present_RP = (np.arange(rounds)[:, None] - np.arange(count)) % 3 != 0
    arrays = {**before.arrays, metrics.PRESENT.name: present_RP.astype(float)}
    columns = metrics.Columns((metrics.PRESENT,))
    return replace(run, metrics=metrics.RunMetrics(before.attributes, arrays, True, columns=columns))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plot"))


@pytest.mark.parametrize(
    ("name", "participants"),
    [(name, count) for name in figures.FIGURES for count in (1, 60) if count > 1 or name not in ("bytes", "graph")],
)
def test_nothing_of_a_figure_is_cut_off_unlabelled_or_too_small_to_read(tmp_path, name, participants):
    run = made(tmp_path, participants, [b"all"] if participants == 1 else [b"a$x$b", b"art & <b>", b"Real World", b"d"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        needed = {"time": with_clock, "presence": with_absences}.get(name, lambda run: run)
        figure = figures.draw(needed(run), name, figures.COLUMN_MM)
        figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert width * 25.4 == pytest.approx(figures.COLUMN_MM)
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -0.01
    assert min(text.get_size() for text in figure.findobj(Text)) >= 7
    for axes in figure.axes:
        if axes.axison and any(label.get_text() and label.get_visible() for label in axes.get_xticklabels()):
            assert axes.get_xlabel()


def test_all_figures_but_those_there_is_nothing_for_become_files_with_their_fonts(run, tmp_path):
    silent = with_arrays(run, bytes_sent=np.zeros((4, 3), np.int64))
    plotted = figures.plot(silent, ["all"], tmp_path / "all", "pdf")
    assert [path.name for path in plotted.files] == [
        f"{name}.pdf" for name in figures.FIGURES if name not in plotted.skipped
    ]
    assert set(plotted.skipped) == {"bytes", "time", "presence"}
    assert plotted.skipped["bytes"].endswith("nothing was sent (method fedh2l)")
    assert plotted.skipped["time"].endswith("the run's network has no clock (network.kind is none)")
    assert plotted.skipped["presence"].endswith("took part in every round (faults.participation.kind is always)")
    for path in plotted.files:
        pdf = path.read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
    with pytest.raises(UserError, match="nothing was sent"):
        figures.plot(silent, ["bytes", "curves"], tmp_path / "two")


def test_a_cell_is_coloured_where_its_participant_took_part(run):
    (axes,) = figures.draw(with_absences(run), "presence").axes
    (image,) = axes.get_images()
    # Three participants in four rounds: the first is absent in rounds 0 and 3, the others once.
    assert image.get_array().astype(int).tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1]]
    assert image.get_extent() == [0.5, 4.5, 2.5, -0.5]
    assert axes.get_title() == "present: 67% of participants and rounds"


def test_accuracy_stands_at_the_time_of_the_last_participant(run):
    (axes,) = figures.draw(with_clock(run), "time").axes
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [20.0, 40.0]
    assert line.get_ydata() == pytest.approx(run.metrics["accuracy_all"][[1, 3]].mean(axis=1))
    assert "40 s in 4 rounds" in line.get_label()
    with pytest.raises(UserError, match="steps take no time"):
        figures.draw(with_clock(run, (0.0, 0.0, 0.0, 0.0)), "time")


@pytest.mark.parametrize(("low", "high"), [(1e-5, 3e-5), (0.5, 70.0), (9.0, 9e3), (40.0, 4e6), (1e-3, 1e8)])
def test_an_axis_of_time_has_ticks_within_it(run, low, high):
    (axes,) = figures.draw(with_clock(run), "time").axes
    simulated_time.time_axis(axes, low, high, ticks=5)
    assert axes.get_xlim()[0] < low < high < axes.get_xlim()[1]
    assert 1 <= len(axes.get_xticks()) <= 5


def test_a_file_is_what_its_ending_says(run, tmp_path):
    figures.plot(run, ["bytes"], tmp_path / "plot.png", "pdf")
    figures.plot(run, ["bytes"], tmp_path / "plot.svg")
    png, svg = (tmp_path / "plot.png").read_bytes(), (tmp_path / "plot.svg").read_text()
    assert png.startswith(b"\x89PNG")
    # 85 mm at 300 dots per inch.
    assert int.from_bytes(png[16:20]) == 1003
    assert svg.startswith("<?xml")
    assert "<text" not in svg
    (path,) = figures.plot(run, ["bytes"], tmp_path / "picture", "svg").files
    assert path == tmp_path / "picture.svg"
    assert path.read_bytes() == (tmp_path / "plot.svg").read_bytes()


def test_the_same_run_gives_the_same_file(run, tmp_path):
    for ending in ("svg", "pdf"):
        for copy in ("a", "b"):
            figures.plot(run, ["bytes"], tmp_path / f"{copy}.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_figures_on_a_page_take_its_colours_and_share_no_ids(run):
    svgs = [figures.inline_svg(figures.draw(run, name), f'{name} of "<run>"') for name in ("domains", "graph", "bytes")]
    ids = [name for svg in svgs for name in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]*)", "".join(svgs))) <= set(ids)
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert (root.tag, root.get("role"), root.get("aria-label")[-10:]) == ("svg", "img", 'of "<run>"')
        assert root.get("viewBox").startswith("0 0 ")
        assert not {"width", "height"} & set(root.keys())
        assert "currentColor" in svg
        for unwanted in ("#000000", "http", "<style", "DejaVu", "<?xml", "<!"):
            assert unwanted not in svg
    assert ">tested on: domain (outlined: own)<" in svgs[0]
    # On their cells, numbers must stay dark or light whatever the page is.
    assert "fill: #111111" in svgs[0]
    assert svgs[2] == figures.inline_svg(figures.draw(run, "bytes"), 'bytes of "<run>"')


def test_a_user_s_own_settings_change_nothing_and_are_left_alone(run):
    import matplotlib

    plain = figures.inline_svg(figures.draw(run, "bytes"), "")
    with matplotlib.rc_context({"font.size": 20.0, "text.usetex": True, "axes.grid": True}):
        assert figures.inline_svg(figures.draw(run, "bytes"), "") == plain
        assert matplotlib.rcParams["text.usetex"]


def test_accuracy_is_drawn_over_what_was_sent_and_parameters_would_cost(run):
    axes = figures.draw(run, "bytes").axes[0]
    accuracy, sharing = axes.get_lines()
    # 1,024 bytes a round, evaluated after rounds 2 and 4; sharing sends two copies of 8,192 bytes in each of four.
    assert accuracy.get_xdata().tolist() == [2048, 4096]
    assert accuracy.get_ydata() == pytest.approx(run.metrics["accuracy_all"][[1, 3]].mean(axis=1))
    assert sharing.get_xdata()[0] == 4 * 2 * 8192
    assert sharing.get_label() == "sharing parameters instead: 64 KiB"


@pytest.mark.parametrize(("low", "high"), [(300, 300), (2048, 65536), (1e5, 3e12), (1e9, 2e9)])
def test_an_axis_of_bytes_has_a_few_round_ticks(run, low, high):
    axes = figures.draw(run, "bytes").axes[0]
    traffic.bytes_axis(axes, low, high, ticks=5)
    ticks = axes.get_xticks()
    assert 2 <= len(ticks) <= 5
    assert axes.get_xlim()[0] < low <= high < axes.get_xlim()[1]


def test_an_edge_carries_what_its_ends_divide_among_theirs(run):
    # A path 0-1-2: participant 1 shares its 60 bytes out over two edges.
    run = with_arrays(run, graph_edges=[[0, 1], [1, 2]], graph_since_round=[0, 0], bytes_sent=[[10, 60, 30], [1, 2, 4]])
    edges_E2, since = graph.last_graph(run)
    assert graph.edge_bytes(run, edges_E2, np.array([0])).tolist() == [10 + 30, 30 + 30]
    assert graph.edge_bytes(run, edges_E2, np.array([0, 1])).tolist() == [42, 65]
    assert since == 0


def test_a_redrawn_graph_is_the_last_one_with_its_own_rounds(run):
    run = with_arrays(
        run,
        graph_edges=[[0, 1], [1, 2], [0, 2]],
        graph_since_round=[0, 0, 3],
        bytes_sent=np.array([[9, 9, 9]] * 3 + [[512, 0, 512]]),
    )
    edges_E2, since = graph.last_graph(run)
    assert (edges_E2.tolist(), since) == ([[0, 2]], 3)
    legend = figures.draw(run, "graph").legends[0]
    assert legend.get_title().get_text() == "sent over an edge, both ways,\nround 4"
    assert [text.get_text() for text in legend.get_texts()] == ["1 KiB each"]


def test_the_hub_of_a_star_is_in_its_centre_and_a_ring_is_a_circle_in_its_own_order():
    star = graph.layout(5, np.array([[2, 0], [2, 1], [2, 3], [2, 4]]))
    assert star[2].tolist() == [0, 0]
    assert np.linalg.norm(star[[0, 1, 3, 4]], axis=1) == pytest.approx(1)
    ring_E2 = np.array([[0, 2], [2, 4], [4, 1], [1, 3], [3, 0]])
    # So many that forces would not end.
    far = graph.layout(graph.LAID_OUT + 1, np.array([[0, 1], [1, 2]]))
    assert np.allclose(np.linalg.norm(far, axis=1), 1)
    ring = graph.layout(5, ring_E2)
    lengths = np.linalg.norm(ring[ring_E2[:, 0]] - ring[ring_E2[:, 1]], axis=1)
    assert lengths == pytest.approx(2 * np.sin(np.pi / 5))


def test_a_complete_graph_of_a_thousand_is_drawn_by_a_sample_of_its_edges(tmp_path):
    edges_E2 = np.stack(np.triu_indices(300, 1), axis=1).astype(np.int32)
    run = made(tmp_path, 300, graph_edges=edges_E2, graph_since_round=np.zeros(len(edges_E2), np.int64))
    svg = figures.inline_svg(figures.draw(run, "graph"), "")
    assert "(5,000 of 44,850 edges drawn)" in svg
    assert len(svg) < 500_000


def test_seconds_are_summed_over_rounds_and_waiting_is_told(run):
    seconds = {f"seconds_{phase}": np.full((4, 3), 1.0) for phase in phases.PHASES}
    seconds["seconds_evaluate"][[0, 2]] = NAN
    run = with_arrays(run, **{**seconds, "seconds_wait": np.full((4, 3), 2.0)})
    assert phases.phase_seconds(run).tolist() == [[4] * 3, [4] * 3, [8] * 3, [4] * 3, [2] * 3]
    axes = figures.draw(run, "phases").axes[0]
    assert axes.get_title() == f"waiting: {8 / 22:.1%} of the time"
    assert axes.get_xlabel() == "a participant's time in 4 rounds [s]"


def test_the_times_of_many_participants_are_those_of_their_ranks(tmp_path):
    run = made(tmp_path, 60, rank=np.arange(60) // 20)
    axes = figures.draw(run, "phases").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["rank 0", "rank 1", "rank 2"]
    first = phases.phase_seconds(run)[0, :20].sum()
    assert axes.patches[0].get_width() == pytest.approx(first / (60 if "[min]" in axes.get_xlabel() else 1))


def test_reliability_is_pooled_over_samples_not_over_participants():
    share_PK = np.array([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]])
    accuracy_PK = np.array([[1.0, 0.2, NAN], [0.4, NAN, 0.9]])
    assert reliability.pooled(share_PK, accuracy_PK) == pytest.approx([(0.5 + 0.1) / 0.75, 0.2, 0.9])
    assert np.isnan(reliability.pooled(np.array([[1.0, 0.0]]), np.array([[0.5, NAN]])))[1]


def test_a_band_goes_from_lowest_to_highest_and_of_many_leaves_out_the_odd_ones():
    few = style.spread(np.array([[0.2, NAN, 0.8], [NAN, NAN, NAN]]))
    assert (few.mean_R[0], few.low_R[0], few.high_R[0]) == pytest.approx((0.5, 0.2, 0.8))
    assert np.isnan(few.mean_R[1])
    many = style.spread(np.array([np.arange(101.0), [NAN, *np.arange(1.0, 101.0)]]))
    assert (many.low_R[0], many.high_R[0]) == pytest.approx((10, 90))
    assert (many.low_R[1], many.high_R[1]) == pytest.approx((10.9, 90.1))


def test_the_worst_curve_is_of_whoever_is_lowest_in_the_end(run):
    accuracy_RP = np.array([[NAN] * 3, [0.1, 0.5, 0.9], [NAN] * 3, [0.8, 0.3, 0.9]])
    panels = figures.draw(with_arrays(run, accuracy_all=accuracy_RP), "curves").axes
    mean, worst = panels[1].get_lines()
    assert (panels[1].get_title(), mean.get_xdata().tolist()) == ("all domains", [2, 4])
    assert worst.get_ydata().tolist() == [0.5, 0.3]


def test_cells_hold_numbers_and_unknown_ones_a_question_mark(run):
    accuracy_RPD = run.metrics["accuracy"].copy()
    accuracy_RPD[3] = [[0.25, 0.5], [NAN, 1.0], [0.75, 0.125]]
    (axes,) = figures.draw(with_arrays(run, accuracy=accuracy_RPD), "domains").axes
    texts = {tuple(text.get_position()): text for text in axes.texts}
    assert [text.get_text() for text in texts.values()] == ["0.25", "0.50", "?", "1.00", "0.75", "0.12"]
    # The second participant's own domain is the second.
    assert texts[1.5, 1.5].get_weight() == "bold"
    assert texts[0.5, 1.5].get_weight() == "normal"


def test_strips_of_many_participants_never_mix_two_domains():
    own_P = np.repeat([0, 1], [301, 299])
    edges_B, accuracy_BD = domains.strips(own_P[:, None] * np.ones((600, 2)), own_P)
    assert set(np.unique(accuracy_BD)) == {0.0, 1.0}
    assert 301 in edges_B
    assert (edges_B[0], edges_B[-1], np.diff(edges_B).max()) == (0, 600, 3)


def test_the_usual_place_is_beside_the_file_and_no_torch_is_loaded(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from helpers.runs_in_memory import made\n"
        "from fedh2l_mpi.analysis import figures\n"
        "run = made(Path(sys.argv[1]))\n"
        "for names in (['overview'], ['graph'], ['curves', 'bytes']):\n"
        "    print(*(path.relative_to(sys.argv[1]) for path in figures.plot(run, names).files))\n"
        "assert not {'torch', 'mpi4py', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(ROOT / "tests")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "plot.png\nplot-graph.png\nplots/curves.png plots/bytes.png\n"
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("overview", ["accuracy_all"], "no round has been evaluated yet"),
        ("reliability", ["calibration_share"], "calibration was not recorded"),
        ("graph", ["graph_edges"], "the graph cannot be read"),
        ("phases", [f"seconds_{phase}" for phase in phases.PHASES], "no times were recorded"),
        ("bytes", ["bytes_sent"], "the bytes that were sent cannot be read"),
    ],
)
def test_what_a_run_has_nothing_for_is_told(run, name, fields, reason):
    with pytest.raises(UserError, match=f"metrics.h5: nothing to draw for '{name}': {reason}"):
        figures.draw(unknown(run, *fields), name)


def test_a_run_that_has_not_finished_a_round_has_no_figure_but_its_graph_and_who_holds_what(run, tmp_path):
    begun = {
        name: values[:0] if metrics.DIMENSIONS.get(name, (name,))[0] == "round" else values
        for name, values in run.metrics.arrays.items()
    }
    plotted = figures.plot(with_arrays(run, **begun), ["all"], tmp_path)
    assert [path.name for path in plotted.files] == ["graph.png", "partition.png"]
    alone = with_arrays(run, **{**begun, "participant": np.arange(1)})
    with pytest.raises(UserError, match="no round has been evaluated yet"):
        figures.plot(alone, ["curves"], tmp_path)
    assert [path.name for path in figures.plot(alone, ["all"], tmp_path).files] == ["partition.png"]


def test_what_cannot_be_asked_for_is_told(run, tmp_path):
    with pytest.raises(UserError, match=r"got 'grahp'. Known: overview, .*did you mean 'graph'"):
        figures.draw(run, "grahp")
    with pytest.raises(UserError, match="got 'grahp'. Known: "):
        figures.plot(run, ["all", "grahp"], tmp_path / "all")
    with pytest.raises(UserError, match="--format: got 'svg', but --out ends in .png"):
        commands.execute(commands.parse(["plot", "run", "--format", "svg", "--out", "x.PNG"]), World(None))
    with pytest.raises(UserError, match="got 20 mm, must be from 60 to 500"):
        figures.draw(run, "graph", 20)
    with pytest.raises(UserError, match=r"cannot write a figure with the ending 'docx'. Allowed: png, svg, pdf"):
        figures.plot(run, ["bytes"], tmp_path / "plot.docx")
    with pytest.raises(UserError, match=r"cannot write the figure: No such file"):
        figures.plot(run, ["bytes"], tmp_path / "nowhere" / "plot.png")
    with pytest.raises(UserError, match="several figures need a folder"):
        figures.plot(run, ["bytes", "graph"], tmp_path / "plot.png")
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="cannot be a folder for figures"):
        figures.plot(run, ["bytes", "graph"], tmp_path / "taken")


def outcome(seed, accuracy, sent=0.0) -> Outcome:
    accuracy_E = np.array(accuracy)
    rounds_E = np.arange(len(accuracy_E)) + 1
    return Outcome(seed, {"accuracy_all": accuracy[-1]}, rounds_E, accuracy_E, sent * rounds_E, 0.1 * rounds_E, 1.5)


def curve(label, runs) -> figures.Curve:
    return figures.Curve(label, "fedh2l", runs)


@pytest.mark.parametrize("rows", [1, 30])
def test_the_runs_of_a_sweep_are_laid_over_each_other(tmp_path, rows):
    many = [curve(f"row {i} & $x$", [outcome(seed, [0.1 * seed, 0.2], i) for seed in range(3)]) for i in range(rows)]
    notes = figures.plot_overlay([*many, curve("none yet", [])], "A title", tmp_path / "curves.png")
    assert notes[0] == "not drawn: none yet has no finished run"
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_single_evaluated_round_of_several_seeds_shows_the_band_that_the_heading_speaks_of(tmp_path, monkeypatch):
    figure = []
    monkeypatch.setattr(overlay, "save", lambda drawn, out: figure.append(drawn))
    rows = [
        curve(name, [outcome(seed, [0.2 + 0.1 * seed]) for seed in range(seeds)])
        for name, seeds in (("a", 2), ("b", 3))
    ]
    figures.plot_overlay(rows, "", tmp_path / "curves.png")
    assert figure[0].get_suptitle() == "mean over 2 to 3 seeds (band: lowest to highest)"
    lines = [shape for shape in figure[0].axes[0].collections if isinstance(shape, LineCollection)]
    ends = [line.get_segments()[0][:, 1] for line in lines]
    np.testing.assert_allclose(ends, [[0.2, 0.3], [0.2, 0.4]])


def test_a_third_panel_is_of_simulated_time_where_a_run_has_it():
    timed = [replace(outcome(seed, [0.2, 0.4], 8.0), simulated_s_E=np.array([3.0, 5.0]) + 2 * seed) for seed in (0, 1)]
    drawn = figures.draw_overlay([curve("timed", timed), curve("untimed", [outcome(0, [0.3, 0.5], 8.0)])], "")
    assert [axes.get_xlabel() for axes in drawn.figure.axes] == [
        "rounds done",
        "sent by a participant [bytes]",
        "simulated time",
    ]
    assert drawn.figure.axes[2].get_lines()[0].get_xdata().tolist() == [4.0, 6.0]
    assert list(drawn.notes) == ["not drawn in accuracy_all against simulated time: untimed, no simulated time"]


def test_an_overlay_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot write the figure"):
        figures.plot_overlay([curve("a", [outcome(0, [0.5])])], "", tmp_path / "nowhere" / "curves.png")


def test_the_area_of_a_bubble_is_the_number_of_samples(tmp_path):
    run = made(
        tmp_path, label_histogram=[[40, 10, 0], [0, 20, 0], [0, 0, 5]], domain_histogram=[[50, 0], [0, 20], [5, 0]]
    )
    figure = figures.draw(run, "partition")
    classes, held_domains = (axes.collections[0] for axes in figure.axes)
    assert classes.get_offsets().tolist() == [[0, 0], [1, 0], [1, 1], [2, 2]]
    sizes = classes.get_sizes()
    assert (sizes / sizes[0]).tolist() == pytest.approx([1, 10 / 40, 20 / 40, 5 / 40])
    assert held_domains.get_offsets().tolist() == [[0, 0], [1, 1], [0, 2]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["40", "10", "20", "5"]


def test_a_file_without_the_samples_by_domain_shows_those_of_participants_with_an_own_domain(tmp_path):
    # Files that were written before have no array `domain_histogram`.
    write(tmp_path / "old", THREE)
    run = load_run(tmp_path / "old")
    own_P, samples_P = run.metrics["own_domain"], run.metrics["private_samples"]
    samples_PD = partition.domain_samples(run)
    assert samples_PD is not None
    assert samples_PD[np.arange(len(own_P)), own_P].tolist() == samples_P.tolist()
    assert samples_PD.sum() == samples_P.sum()
    assert partition.domain_samples(with_arrays(made(tmp_path), own_domain=[0, -1, 0])) is not None
