"""`--check`: report everything about a run that is known without training and without MPI."""

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table

from fedh2l_mpi import methods
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.augmentation import AUTO
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.exchange.participation import build_participation
from fedh2l_mpi.methods import mixing
from fedh2l_mpi.planning import graph_schedule, memory_check, requirements
from fedh2l_mpi.planning.participant_limit import refuse_too_many
from fedh2l_mpi.planning.simulated_time import network_text, simulated_seconds
from fedh2l_mpi.planning.traffic import links
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.units import size
from fedh2l_mpi.sample_form import SampleKind
from fedh2l_mpi.topology import Topology, period

# Largest number of classes in a remark.
LISTED = 8


def check(config: Config) -> RenderableType:
    """Return a report on data, graph, models, memory and traffic of a resolved config.

    Raises
    ------
    UserError
        Like a run, if data, models or graph do not fit the config.
    """
    refuse_too_many(config)
    topology = Topology(config.topology, config.size, config.seed, config.rounds)
    participation = build_participation(config.faults.participation, topology, config.size, config.seed)
    source = open_source(config.data)
    plan = federated.plan(config, source)
    method = methods.build(config)
    run = requirements.compute(config, source, method, requirements.count_samples(plan))
    # Find a damaged download now.
    for table in source.tables:
        table.verify()

    report = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    edges = topology.graph(0).edges
    alone = links(edges, Hosting(config.size, 1))
    degrees, message = topology.graph(0).degrees(), run.message
    private = [len(share.private) for share in plan.shares]
    a_round = alone.edge_bytes(message) if message is not None else 0.0
    schedule = graph_schedule.draw_schedule(config, Hosting(config.size, 1), method.exchanges_in)
    total = schedule.edge_bytes(message) if message is not None else 0.0
    sharing = run.sharing_bytes(alone)
    tests = run.counts.tests
    rows = {
        "participants": f"{config.size}: "
        + ", ".join(f"{n} x {name}" for name, n in requirements.architectures(config).items()),
        "parameters": ", ".join(f"{name} {model.parameters:,}" for name, model in run.models.items()),
        "data": f"{source.name}, {source.form}, {source.classes} classes, "
        f"{plan.domains} domains, {config.data.partition.kind}" + (f" in draw {plan.draws}" if plan.draws > 1 else ""),
        "domains": ", ".join(plan.domain_names) + _unheld(plan),
        "classes": _classes(plan),
        **dict(source.details),
        "private samples": f"{_range(min(private), max(private))} per participant",
        "seed set": f"{len(plan.seed)} samples, {plan.seed_samples_per_round} per round"
        + (f" in {config.seed_set.views_per_sample} views each" if config.seed_set.views_per_sample > 1 else "")
        + f" ({_views(config, source.form.kind)}), "
        + f"{size(len(plan.seed) * run.counts.stored_bytes)} once",
        "test samples": f"{_range(min(tests), max(tests))} in each domain",
        "graph": f"{config.topology.kind}, {int(degrees.sum()) // 2} edges, "
        f"degree {_range(degrees.min(), degrees.max())}" + _changes(config) + _gap(config),
        "traffic": ("at most " if config.exchange.skip_below is not None else "")
        + f"{size(message.edge_bytes)} per edge and direction; {size(a_round)} per round, "
        f"{size(total)} in {schedule.exchanges} rounds"
        + (f", as {config.exchange.codec}" if config.exchange.codec != "float32" else "")
        if message is not None
        else f"none: method {config.method.name} exchanges nothing",
        "sharing parameters": f"{size(sharing)} per round as float32, {sharing / a_round:.1f} times as much"
        if a_round
        else f"{size(sharing)} per round",
        "memory of a rank": "; ".join(
            f"with {ranks} rank{'s' if ranks > 1 else ''} {size(_largest_rank(run, edges, ranks))}"
            for ranks in sorted({1, config.size})
        )
        + " for data, models, optimisers, messages and a step, plus about 300 MiB for Python and PyTorch",
        **_on_a_gpu(run, edges),
        "devices": f"{config.devices.kind}, {torch.cuda.device_count()} CUDA visible here",
    }
    if participation is not None:
        kind = config.faults.participation.kind
        rows["participation"] = f"{kind}; the traffic is that with everybody present, an upper bound"
    if config.network.kind != "none":
        run_s = simulated_seconds(config, method, message.edge_bytes if message is not None else 0)
        rows["network"] = network_text(config, run_s, with_speeds=False)
    for name, value in rows.items():
        report.add_row(name, value)
    return Group(report, "the config is sound")


def _largest_rank(run: requirements.Requirements, edges: list[tuple[int, int]], ranks: int) -> int:
    """Return the memory of the largest rank if there are `ranks` of them [bytes]."""
    hosting = Hosting(run.config.size, ranks)
    on_host = run.config.devices.kind == "cpu"
    return int(run.memory(hosting, links(edges, hosting), on_host).total.max())


def _on_a_gpu(run: requirements.Requirements, edges: list[tuple[int, int]]) -> dict[str, str]:
    """Return a line with the parts of the first rank's memory on a GPU if it hosts all participants; none on a CPU."""
    if run.config.devices.kind == "cpu":
        return {}
    alone = Hosting(run.config.size, 1)
    parts = run.memory(alone, links(edges, alone)).parts(0)
    listed = ", ".join(f"{kind.replace('_', ' ')} {size(parts[kind])}" for kind in memory_check.ON_DEVICE)
    outside = size(memory_check.CONTEXT_BYTES + memory_check.LIBRARIES_BYTES)
    return {"on a GPU": f"with 1 rank {listed}; about {outside} for CUDA itself on each rank (not measured)"}


def _unheld(plan: federated.Plan) -> str:
    """Return a remark on domains of which no participant has samples, and the way out; empty if there are none."""
    unheld = plan.unheld_domains()
    fewer = " or a smaller data.partition.domains" if plan.config.data.partition.domains is not None else ""
    return f"; held by nobody, but tested: {', '.join(unheld)} (fix: more participants{fewer})" if unheld else ""


def _classes(plan: federated.Plan) -> str:
    """Return how many participants hold the classes, as far as few of them hold one."""
    holders_C = (plan.label_histogram() > 0).sum(axis=0)
    nobody, one = np.flatnonzero(holders_C == 0).tolist(), plan.rare_classes().tolist()
    remarks = [
        f"held by {whom}: {', '.join(map(str, labels[:LISTED]))}{', ...' if len(labels) > LISTED else ''}"
        for whom, labels in (("nobody", nobody), ("one participant only", one))
        if labels
    ]
    return "; ".join(remarks) or f"each is held by {_range(int(holders_C.min()), int(holders_C.max()))} participants"


def _views(config: Config, kind: SampleKind) -> str:
    """Return the views of the seed set, those that `auto` chooses included."""
    views = config.seed_set.views
    return f"views auto: {AUTO[kind]}" if views == "auto" else f"views {views}"


def _changes(config: Config) -> str:
    """Return how often the graph changes; empty if it never does."""
    if config.topology.redraw_every:
        return f", redrawn every {config.topology.redraw_every} rounds"
    turns = period(config.topology, config.size)
    return f", {turns} graphs take turns round by round" if turns is not None and turns > 1 else ""


def _gap(config: Config) -> str:
    """Return the spectral gap of the graph, such as `; spectral gap 0.333`; empty with too many participants."""
    gap = mixing.spectral_gap_of(config)
    if gap is None:
        return ""
    return f"; spectral gap {gap[0]:.3g}" + (f" ({gap[1]})" if gap[1] != "graph" else "")


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"
