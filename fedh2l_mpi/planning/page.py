"""Format the page that `plan` prints, 80 columns wide, with notes on what the numbers do not include."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.config.execution import TopKExchange
from fedh2l_mpi.planning import memory_check, requirements
from fedh2l_mpi.planning.cluster_model import ClusterModel, Forecast
from fedh2l_mpi.planning.overhead import OFF_MEDIAN, OFF_MOST, OFF_SHARED
from fedh2l_mpi.planning.plan import RunPlan
from fedh2l_mpi.planning.simulated_time import network_text
from fedh2l_mpi.runtime import terminal
from fedh2l_mpi.runtime.processes import processor
from fedh2l_mpi.runtime.units import duration, size

WIDTH = 80
# A note appears if a participant has more than this factor times the timed number of neighbours.
FAR_MORE = 2


def print_page(plan: RunPlan) -> None:
    """Print the page, 80 columns wide, so that it can be pasted into applications for computing time."""
    terminal.open_console().print(build(plan), width=WIDTH, highlight=False)


def build(plan: RunPlan) -> RenderableType:
    """Return the page."""
    hosting = plan.hosting
    parts: list[RenderableType] = [
        Text(f"plan of {plan.name}: {hosting.participants:,} participants on {hosting.ranks:,} ranks", style="bold"),
    ]
    if plan.refused:
        parts.append(Text(f"A run would be refused: {plan.refused}", style="bold red"))
        parts.append(Text("The numbers below assume that there are enough data.", style="red"))
    parts += [_overview(plan), _memory(plan), _traffic(plan), _files(plan)]
    if plan.calibration is not None:
        parts += [_time(plan)]
    if plan.cluster is not None:
        parts += [_cluster(plan, plan.cluster)]
    return Group(*parts)


def _table(title: str, *numbers: str) -> Table:
    """Create a table with names on the left, and a column on the right for each heading in `numbers`."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, width=WIDTH, pad_edge=False)
    table.add_column(title, header_style="bold", ratio=1)
    for heading in numbers:
        table.add_column(heading, justify="right", header_style="bold", no_wrap=True)
    return table


def _notes(*texts: str) -> list[RenderableType]:
    return [Padding(Text(text, style="dim"), (0, 0, 0, 2)) for text in texts if text]


def _overview(plan: RunPlan) -> RenderableType:
    config, first, counts = plan.config, plan.schedule.first, plan.required.counts
    hosted = [len(plan.hosting.participants_of(rank)) for rank in (plan.hosting.ranks - 1, 0)]
    models = ", ".join(f"{count:,} x {name}" for name, count in requirements.architectures(config).items())
    changes = plan.schedule.count - 1
    drawn = "redrawn" if config.topology.redraw_every else "changed"
    again = f", {drawn} {changes:,} times" if changes else ""
    rows = {
        "participants": f"{models}; {_range(*hosted)} per rank",
        "parameters": ", ".join(f"{name} {model.parameters:,}" for name, model in plan.required.models.items()),
        "graph": f"{config.topology.kind}, {first.edges:,.0f} edges, degree "
        f"{_range(first.degree_P.min(), first.degree_P.max())}{again}",
        "data": f"{plan.source.name}, {counts.domains} domains; "
        f"{_range(counts.private_P.min(), counts.private_P.max())} private samples each, "
        f"{counts.seed:,} seed samples, {_round_samples(plan)}"
        + (f"; draw {counts.draws} of the partition" if counts.draws > 1 else ""),
        "method": f"{config.method.name}, {config.rounds:,} rounds, {plan.schedule.exchanges:,} with an exchange, "
        f"{plan.evaluations:,} with an evaluation"
        + ("; fewer if run.early_stop ends it" if config.run.early_stop.patience is not None else ""),
    }
    if config.network.kind != "none":
        rows["network"] = network_text(config, plan.simulated_s, plan.calibration is not None)
    if config.exchange.codec != "float32" and plan.required.message is not None:
        rows["codec"] = _codec(config.exchange)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), width=WIDTH, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return Group(table, "")


def _round_samples(plan: RunPlan) -> str:
    """Return the number of seed samples of a round, such as `320 per round in 2 views each`."""
    rows, views = plan.required.counts.seed_rows_per_round, plan.config.seed_set.views_per_sample
    return f"{rows // views:,} per round" + (f" in {views} views each" if views > 1 else "")


def _codec(config: ExchangeConfig) -> str:
    """Return the codec, such as `top_k, k = 3`."""
    return config.codec + (f", k = {config.top_k}" if isinstance(config, TopKExchange) else "")


def _memory(plan: RunPlan) -> RenderableType:
    rank, memory = plan.largest_rank, plan.memory
    named = {
        "data": "data of its participants, seed set, test sets",
        "models": "models",
        "optimisers": "optimisers",
        "seed_rows": "a round's seed samples in their views",
        "step": "the largest phase: a step, an evaluation, or drawing views",
        "messages": "messages",
        "records": "metrics in transit to the file",
        "checkpoint": "a checkpoint while it is written",
        "bookkeeping": "samples and neighbours of all participants",
    }
    table = _table(f"memory of the largest rank ({rank:,})", "")
    for part, count in memory.parts(rank).items():
        table.add_row(f"  {named[part]}", size(count))
    table.add_row("  Python and PyTorch, as measured here; MPI needs more", size(plan.base_bytes))
    table.add_row("  together", size(int(memory.total[rank]) + plan.base_bytes), style="bold")
    table.add_row("  all ranks", size(int(memory.total.sum()) + plan.base_bytes * plan.hosting.ranks))
    table.add_row("  on a GPU, if it has one: the first five, on the largest rank", size(int(memory.on_device.max())))
    outside = memory_check.CONTEXT_BYTES + memory_check.LIBRARIES_BYTES
    table.add_row("    CUDA's context and libraries of each rank there, not measured", size(outside))
    return Group(table, "")


def _traffic(plan: RunPlan) -> RenderableType:
    traffic, exchanges = plan.traffic(), plan.schedule.exchanges
    table = _table("traffic", "per round", f"{exchanges:,} rounds")
    if plan.required.message is None:
        table.add_row(f"  none: method {plan.config.method.name} exchanges nothing", "", "")
    else:
        even = traffic["edge_bytes_per_round"] / plan.hosting.participants
        in_all = traffic["edge_bytes"] / plan.hosting.participants
        table.add_row("  over the graph's edges", size(traffic["edge_bytes_per_round"]), size(traffic["edge_bytes"]))
        table.add_row("  sent by a participant, on average", size(even), size(in_all))
        table.add_row(
            f"  sharing parameters instead{_as_float32(plan)}{_ratio(traffic)}",
            size(traffic["sharing_bytes_per_round"]),
            size(traffic["sharing_bytes"]),
        )
        for name, unit in (("messages", _count), ("bytes", size)):
            table.add_row(
                f"  between ranks, MPI {name}", unit(traffic[f"mpi_{name}_per_round"]), unit(traffic[f"mpi_{name}"])
            )
            busiest = traffic[f"mpi_{name}_per_round_busiest_rank"]
            table.add_row("    sent by the rank that sends most", unit(busiest), unit(busiest * exchanges))
    each = f"{size(plan.record_bytes)} per participant"
    rounds = plan.config.rounds
    table.add_row(
        f"  metrics to rank 0, {each}",
        size(traffic["record_bytes_per_round"]),
        size(traffic["record_bytes_per_round"] * rounds),
    )
    caution, within = plan.schedule.caution, plan.config.exchange.skip_below
    notes = (
        f"Graph: {caution}." if caution else "",
        "" if within is None else f"Upper limit: rows within {within:g} of the neighbours' copy are not sent again.",
    )
    return Group(table, *_notes(*notes), "")


def _as_float32(plan: RunPlan) -> str:
    """Return a note that parameters are counted as float32 if the exchange uses another codec."""
    return "" if plan.config.exchange.codec == "float32" else ", as float32"


def _ratio(traffic: dict[str, float]) -> str:
    even = traffic["edge_bytes"]
    return f", {traffic['sharing_bytes'] / even:.3g} times" if even else ""


def _files(plan: RunPlan) -> RenderableType:
    files = plan.files
    table = _table("files at the end", "")
    table.add_row("  metrics.h5", size(files.metrics_bytes))
    if files.predictions_bytes:
        table.add_row("  predictions.h5", size(files.predictions_bytes))
    if files.posteriors_bytes:
        table.add_row("  posteriors.h5", size(files.posteriors_bytes))
    table.add_row(f"  a checkpoint, {plan.hosting.ranks + 1:,} files", size(files.checkpoint_bytes))
    table.add_row("    the largest rank's file of it", size(files.rank_checkpoint_bytes))
    table.add_row(f"  checkpoints that are kept, {files.checkpoints}", size(files.kept_bytes))
    table.add_row("  number of files, with a log for each rank", _count(files.count))
    return Group(table, *_notes("While a checkpoint is written, there is one more of them."), "")


def _time(plan: RunPlan) -> RenderableType:
    calibration, seconds, threads = plan.calibration, plan.seconds(), plan.config.devices.threads
    if calibration is None:
        raise RuntimeError("the plan was made without a calibration")
    table = _table("time of a participant's phases", "publish", "local", "mutual", "evaluate")
    for name, phases in calibration.phases.items():
        times = (phases.publish, phases.local, phases.mutual, phases.evaluate)
        table.add_row(f"  {name}", *(f"{1e3 * value:,.1f} ms" for value in times))
    rank = _table("time of the slowest rank", "per round", f"{plan.config.rounds:,} rounds")
    cores = "one core" if threads == 1 else f"{threads} cores"
    rank.add_row(
        f"  {plan.hosting.ranks:,} ranks with {cores} each", duration(seconds["round"]), duration(seconds["run"])
    )
    rank.add_row("  CPU time of all ranks", duration(seconds["cpu"] / plan.config.rounds), duration(seconds["cpu"]))
    return Group(
        table,
        rank,
        *_notes(
            f"Timed on this machine's CPU ({processor()}), {threads} thread{'s' if threads > 1 else ''}, random data. "
            "A round includes its share of the evaluations. It does not include start-up, reading data, waiting for "
            "messages, writing metrics and checkpoints, or ranks that share a core or its caches."
            f"{_few(plan, calibration.neighbours)}"
        ),
    )


def _few(plan: RunPlan, timed: int) -> str:
    """Return a note on the timed number of neighbours if participants have more, or one has far more than the mean."""
    degree_P = plan.schedule.first.degree_P
    mean, most = float(degree_P.mean()), float(degree_P.max())
    if plan.required.message is None or (mean <= timed and most <= FAR_MORE * timed):
        return ""
    if most <= FAR_MORE * mean:
        return f" Timed with {timed:,} neighbours of {mean:,.0f}."
    return (
        f" Timed with {timed:,} neighbours. The mean is {mean:,.3g}, but one participant has {most:,.0f}: it and its "
        "rank take longer than shown here."
    )


def _cluster(plan: RunPlan, cluster: ClusterModel) -> RenderableType:
    forecasts = plan.forecasts()
    table = _table("a round on the cluster, slowest rank", *forecasts)

    def row(name: str, value: Callable[[Forecast], str], style: str = "") -> None:
        table.add_row(f"  {name}", *(value(one) for one in forecasts.values()), style=style)

    row("training steps", lambda one: duration(one.steps))
    row("bookkeeping on its core", lambda one: duration(one.bookkeeping))
    row("  part of it for messages and neighbours' arrays", lambda one: duration(one.exchange_core_s))
    row("messages that no local phase hides", lambda one: duration(one.exposed))
    row("  total time in transit", lambda one: duration(one.messages))
    row("writing all rows (rank 0)", lambda one: duration(one.write))
    row("together", lambda one: duration(one.path), "bold")
    row("rows on their way to rank 0, meanwhile", lambda one: duration(one.rows))
    row(f"{plan.config.rounds:,} rounds", lambda one: duration(one.round * plan.config.rounds), "bold")
    row("sent by the rank that sends most", lambda one: size(one.sent_bytes))
    takes_most = "; ".join(
        f"{name}: {one.bottleneck[0]} ({one.bottleneck[1]:.0%}, rank {one.rank:,})" for name, one in forecasts.items()
    )
    device = (
        f"devices that make the steps {cluster.speedup:g} times as fast as this core"
        if cluster.speedup != 1
        else "steps as fast as on this core (--speedup is 1)"
    )
    return Group(
        table,
        *_notes(
            f"Longest part: {takes_most}.",
            f"Latency {duration(cluster.latency_s)}, bandwidth {cluster.bandwidth_bytes_s / 1e9:.3g} GB/s, {device}. "
            "Bookkeeping is a fit to CPU seconds of runs with 4 to 1,000 participants. Runs left out of the fit were "
            f"off by {OFF_MEDIAN:.0%} in the median and {OFF_MOST:.0%} at most, or {OFF_SHARED:.0%} with ranks that "
            "share a core. Larger runs are extrapolated, for a core like the one of the fit. The local phase hides "
            "messages only if they move while a rank computes. The times do not include start-up, checkpoints, "
            "congestion of the network, copies to and from a device, or waiting for random delays of other ranks.",
            ""
            if plan.shares_parameters
            else "The column `parameters` has the same number of steps, all on private data, without averaging.",
        ),
        "",
    )


def _range(low: float, high: float) -> str:
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def _count(number: float) -> str:
    return f"{number:,.0f}"
