"""The page that `plan` prints: 80 columns, and what the numbers leave out."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedh2l_mpi.config import ExchangeConfig
from fedh2l_mpi.config.execution import TopKExchange
from fedh2l_mpi.planning import requirements
from fedh2l_mpi.planning.cluster_model import ClusterModel, Forecast
from fedh2l_mpi.planning.overhead import OFF_MEDIAN, OFF_MOST, OFF_SHARED
from fedh2l_mpi.planning.plan import RunPlan
from fedh2l_mpi.runtime import terminal
from fedh2l_mpi.runtime.processes import processor
from fedh2l_mpi.runtime.units import size

WIDTH = 80
# A participant with so many times the neighbours that were timed is told of.
FAR_MORE = 2


def print_page(told: RunPlan) -> None:
    """Print it, 80 columns wide: it is pasted into applications for computing time."""
    terminal.open_console().print(build(told), width=WIDTH, highlight=False)


def build(told: RunPlan) -> RenderableType:
    """The page."""
    hosting = told.hosting
    parts: list[RenderableType] = [
        Text(f"plan of {told.name}: {hosting.participants:,} participants on {hosting.ranks:,} ranks", style="bold"),
    ]
    if told.refused:
        parts.append(Text(f"A run would be refused: {told.refused}", style="bold red"))
        parts.append(Text("The numbers below are as if there were enough data.", style="red"))
    parts += [_who(told), _memory(told), _traffic(told), _files(told)]
    if told.calibration is not None:
        parts += [_time(told)]
    if told.cluster is not None:
        parts += [_cluster(told, told.cluster)]
    return Group(*parts)


def _table(title: str, *numbers: str) -> Table:
    """Names on the left, one column for each heading in `numbers` on the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, width=WIDTH, pad_edge=False)
    table.add_column(title, header_style="bold", ratio=1)
    for heading in numbers:
        table.add_column(heading, justify="right", header_style="bold", no_wrap=True)
    return table


def _notes(*texts: str) -> list[RenderableType]:
    return [Padding(Text(text, style="dim"), (0, 0, 0, 2)) for text in texts if text]


def _who(told: RunPlan) -> RenderableType:
    config, first, held = told.config, told.schedule.first, told.required.counts
    hosted = [len(told.hosting.participants_of(rank)) for rank in (told.hosting.ranks - 1, 0)]
    models = ", ".join(f"{count:,} x {name}" for name, count in requirements.architectures(config).items())
    again = f", redrawn {told.schedule.count - 1:,} times" if told.schedule.count > 1 else ""
    rows = {
        "participants": f"{models}; {_range(*hosted)} a rank",
        "parameters": ", ".join(f"{name} {model.parameters:,}" for name, model in told.required.models.items()),
        "graph": f"{config.topology.kind}, {first.edges:,.0f} edges, degree "
        f"{_range(first.degree_P.min(), first.degree_P.max())}{again}",
        "data": f"{told.source.name}, {held.domains} domains; "
        f"{_range(held.private_P.min(), held.private_P.max())} private samples each, "
        f"{held.seed:,} seed samples, {held.seed_per_round:,} a round",
        "method": f"{config.method.name}, {config.rounds:,} rounds, {told.schedule.exchanges:,} with an exchange, "
        f"{told.evaluations:,} with an evaluation",
    }
    if config.exchange.codec != "float32" and told.required.message is not None:
        rows["codec"] = _codec(config.exchange)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), width=WIDTH, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return Group(table, "")


def _codec(config: ExchangeConfig) -> str:
    """The codec, such as `top_k, k = 3`."""
    return config.codec + (f", k = {config.top_k}" if isinstance(config, TopKExchange) else "")


def _memory(told: RunPlan) -> RenderableType:
    rank, memory = told.largest_rank, told.memory
    named = {
        "data": "data of its participants, seed set, test sets",
        "models": "models",
        "optimisers": "optimisers",
        "step": "a step: gradients, activations, the neighbours' arrays",
        "messages": "messages",
        "records": "metrics on their way to the file",
        "checkpoint": "a checkpoint while it is written",
        "bookkeeping": "who holds what, and who is whose neighbour, of all",
    }
    table = _table(f"memory of the largest rank ({rank:,})", "")
    for part, count in memory.parts(rank).items():
        table.add_row(f"  {named[part]}", size(count))
    table.add_row("  Python and PyTorch, as measured here; MPI comes on top", size(told.base_bytes))
    table.add_row("  together", size(int(memory.total[rank]) + told.base_bytes), style="bold")
    table.add_row("  all ranks", size(int(memory.total.sum()) + told.base_bytes * told.hosting.ranks))
    table.add_row("  on a GPU, if it has one, without CUDA's own", size(int(memory.on_device.max())))
    return Group(table, "")


def _traffic(told: RunPlan) -> RenderableType:
    traffic, exchanges = told.traffic(), told.schedule.exchanges
    table = _table("traffic", "a round", f"{exchanges:,} rounds")
    if told.required.message is None:
        table.add_row(f"  none: method {told.config.method.name} exchanges nothing", "", "")
    else:
        even = traffic["edge_bytes_per_round"] / told.hosting.participants
        in_all = traffic["edge_bytes"] / told.hosting.participants
        table.add_row("  over the graph's edges", size(traffic["edge_bytes_per_round"]), size(traffic["edge_bytes"]))
        table.add_row("  sent by a participant, on average", size(even), size(in_all))
        table.add_row(
            f"  sharing parameters instead{_as_float32(told)}{_ratio(traffic)}",
            size(traffic["sharing_bytes_per_round"]),
            size(traffic["sharing_bytes"]),
        )
        for name, unit in (("messages", _count), ("bytes", size)):
            table.add_row(
                f"  between ranks, MPI {name}", unit(traffic[f"mpi_{name}_per_round"]), unit(traffic[f"mpi_{name}"])
            )
            busiest = traffic[f"mpi_{name}_per_round_busiest_rank"]
            table.add_row("    sent by the rank that sends most", unit(busiest), unit(busiest * exchanges))
    each = f"{size(told.record_bytes)} a participant"
    rounds = told.config.rounds
    table.add_row(
        f"  metrics to rank 0, {each}",
        size(traffic["record_bytes_per_round"]),
        size(traffic["record_bytes_per_round"] * rounds),
    )
    caution, within = told.schedule.caution, told.config.exchange.skip_below
    notes = (
        f"Of the graph: {caution}." if caution else "",
        "" if within is None else f"At most: rows within {within:g} of what the neighbours hold are not sent again.",
    )
    return Group(table, *_notes(*notes), "")


def _as_float32(told: RunPlan) -> str:
    """The word that says that parameters are counted as they are, where what is exchanged is not."""
    return "" if told.config.exchange.codec == "float32" else ", as float32"


def _ratio(traffic: dict[str, float]) -> str:
    even = traffic["edge_bytes"]
    return f", {traffic['sharing_bytes'] / even:.3g} times" if even else ""


def _files(told: RunPlan) -> RenderableType:
    files = told.files
    table = _table("files at the end", "")
    table.add_row("  metrics.h5", size(files.metrics_bytes))
    table.add_row(f"  a checkpoint, {told.hosting.ranks + 1:,} files", size(files.checkpoint_bytes))
    table.add_row("    the largest rank's file of it", size(files.rank_checkpoint_bytes))
    table.add_row(f"  checkpoints that are kept, {files.checkpoints}", size(files.kept_bytes))
    table.add_row("  number of files, with a log for each rank", _count(files.count))
    return Group(table, *_notes("While a checkpoint is written, there is one more."), "")


def _time(told: RunPlan) -> RenderableType:
    calibration, seconds, threads = told.calibration, told.seconds(), told.config.devices.threads
    if calibration is None:
        raise RuntimeError("the plan was made without a calibration")
    table = _table("time of a participant's phases", "publish", "local", "mutual", "evaluate")
    for name, phases in calibration.phases.items():
        times = (phases.publish, phases.local, phases.mutual, phases.evaluate)
        table.add_row(f"  {name}", *(f"{1e3 * value:,.1f} ms" for value in times))
    rank = _table("time of the slowest rank", "a round", f"{told.config.rounds:,} rounds")
    cores = "a core" if threads == 1 else f"{threads} cores"
    rank.add_row(
        f"  {told.hosting.ranks:,} ranks with {cores} each", _seconds(seconds["round"]), _seconds(seconds["run"])
    )
    rank.add_row("  CPU time of all ranks", _seconds(seconds["cpu"] / told.config.rounds), _seconds(seconds["cpu"]))
    return Group(
        table,
        rank,
        *_notes(
            f"Timed on this machine's CPU ({processor()}), {threads} thread{'s' if threads > 1 else ''}, random data. "
            "A round has its share of the evaluations. Not in it: start-up, reading data, waiting for messages, "
            "writing metrics and checkpoints, ranks that share a core or its caches."
            f"{_few(told, calibration.neighbours)}"
        ),
    )


def _few(told: RunPlan, timed: int) -> str:
    """With how many neighbours phases were timed, where participants have more, or one has far more than the mean."""
    degree_P = told.schedule.first.degree_P
    mean, most = float(degree_P.mean()), float(degree_P.max())
    if told.required.message is None or (mean <= timed and most <= FAR_MORE * timed):
        return ""
    if most <= FAR_MORE * mean:
        return f" Timed with {timed:,} neighbours of {mean:,.0f}."
    return (
        f" Timed with {timed:,} neighbours; there are {mean:,.3g} on average, but {most:,.0f} at most: such a "
        "participant, and its rank, take longer than told here."
    )


def _cluster(told: RunPlan, cluster: ClusterModel) -> RenderableType:
    forecasts = told.forecasts()
    table = _table("a round on the cluster, of its slowest rank", *forecasts)

    def row(name: str, value: Callable[[Forecast], str], style: str = "") -> None:
        table.add_row(f"  {name}", *(value(one) for one in forecasts.values()), style=style)

    row("training steps", lambda one: _seconds(one.steps))
    row("bookkeeping on its core", lambda one: _seconds(one.bookkeeping))
    row("  of it for messages and the neighbours' arrays", lambda one: _seconds(one.exchange_core_s))
    row("messages that no local phase hides", lambda one: _seconds(one.exposed))
    row("  on their way", lambda one: _seconds(one.messages))
    row("writing everyone's rows (rank 0)", lambda one: _seconds(one.write))
    row("together", lambda one: _seconds(one.path), "bold")
    row("rows on their way to rank 0, meanwhile", lambda one: _seconds(one.rows))
    row(f"{told.config.rounds:,} rounds", lambda one: _seconds(one.round * told.config.rounds), "bold")
    row("sent by the rank that sends most", lambda one: size(one.sent_bytes))
    takes_most = "; ".join(
        f"{name}: {one.bottleneck[0]} ({one.bottleneck[1]:.0%}, rank {one.rank:,})" for name, one in forecasts.items()
    )
    device = (
        f"devices that make the steps {cluster.speedup:g} times as fast as this core"
        if cluster.speedup != 1
        else "steps as fast as on this core (--speedup was not given, or 1)"
    )
    return Group(
        table,
        *_notes(
            f"Takes most: {takes_most}.",
            f"Latency {_seconds(cluster.latency_s)}, bandwidth {cluster.bandwidth_bytes_s / 1e9:.3g} GB/s, {device}. "
            "Bookkeeping is a fit to CPU seconds of runs with 4 to 1,000 participants; a run left out of it was off by "
            f"{OFF_MEDIAN:.0%} in the median and {OFF_MOST:.0%} at most, or {OFF_SHARED:.0%} with ranks that share a "
            "core. Beyond that it is extrapolated, for a core like the one of the fit. "
            "Hiding needs messages that move while a rank computes. Not in it: start-up, checkpoints, networks that "
            "messages share, copies to and from a device, ranks that wait for each other's chance delays.",
            ""
            if told.shares_parameters
            else "With parameters: as many steps, all on private data; averaging is not in it.",
        ),
        "",
    )


def _range(low: float, high: float) -> str:
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _seconds(seconds: float) -> str:
    """Such as 21 us, 34 ms, 2.7 s, 12 min, 3.4 h or 21 days."""
    if seconds < 1e-4:
        return f"{1e6 * seconds:.3g} us"
    for limit, unit, scale in ((1.0, "ms", 1e-3), (120.0, "s", 1.0), (7200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 86_400:,.1f} days"
