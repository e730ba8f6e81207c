"""`--check`: everything about a run that can be known without training, and without MPI."""

from collections import Counter

import torch
from rich.console import Group, RenderableType
from rich.table import Table

from fedh2l_mpi import methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.console import size
from fedh2l_mpi.data import federation
from fedh2l_mpi.data.catalogue import open_source
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.models.flat import shared_bytes
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.topology import Topology
from fedh2l_mpi.world import Hosting

# Weights and the optimiser's state: Adam keeps two moments, SGD at most a velocity.
COPIES = {"adam": 3, "sgd": 2}


def check(config: Config) -> RenderableType:
    """A report of data, graph, models, memory and traffic of a resolved config.

    Raises
    ------
    UserError
        If data, models or graph do not fit the config, as a run would.
    """
    models.check_weights(config.weights, [config.architecture(index) for index in range(config.size)])
    topology = Topology(config.topology, config.size, config.seed, config.rounds)
    source = open_source(config.data.name, config.data.root)
    plan = federation.plan(config, source)
    method = methods.build(config)
    # A damaged download is found now; a pack's two tables are one.
    for table in [source.train] if source.train is source.test else [source.train, source.test]:
        table.verify()
    zoo = {
        name: models.build(name, source.channels, source.side, source.classes, 0, config.weights.get(name))
        for name in sorted({config.architecture(index) for index in range(config.size)})
    }
    sizes = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in zoo.items()}

    report = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    degrees = topology.graph(0).degrees()
    private = [len(share.private) for share in plan.shares]
    samples = plan.seed_samples_per_round
    array = method.array(stand_in(config, plan, zoo[config.architecture(0)]), samples, plan.classes)
    message = array.message_bytes() if array is not None else 0
    a_round = int(degrees.sum()) * message
    exchanges = sum(map(method.exchanges_in, range(config.rounds)))
    sharing = sum(int(degree) * shared_bytes(zoo[config.architecture(index)]) for index, degree in enumerate(degrees))
    image = plan.image_bytes()
    tests, pooled = [len(test) for test in plan.tests], method.pools_private_data
    rows = {
        "participants": f"{config.size}: "
        + ", ".join(f"{n} x {name}" for name, n in Counter(map(config.architecture, range(config.size))).items()),
        "parameters": ", ".join(f"{name} {count:,}" for name, count in sizes.items()),
        "data": f"{source.name}, {source.channels} x {source.side} x {source.side}, {source.classes} classes, "
        f"{plan.domains} domains, {config.data.partition.kind}",
        "domains": ", ".join(plan.domain_names),
        "private samples": f"{_range(min(private), max(private))} a participant",
        "seed set": f"{len(plan.seed)} samples, {samples} a round, {size(len(plan.seed) * (image + 8))} once",
        "test samples": f"{_range(min(tests), max(tests))} in each domain",
        "graph": f"{config.topology.kind}, {int(degrees.sum()) // 2} edges, "
        f"degree {_range(degrees.min(), degrees.max())}"
        + (f", redrawn every {config.topology.redraw_every} rounds" if config.topology.redraw_every else ""),
        "traffic": f"{size(message)} an edge and direction; {size(a_round)} a round, "
        f"{size(a_round * exchanges)} in {exchanges} rounds"
        if array is not None
        else f"none: method {config.method.name} exchanges nothing",
        "sharing parameters": f"{size(sharing)} a round, {sharing / a_round:.1f} times as much"
        if a_round
        else f"{size(sharing)} a round",
        "memory of a rank": "; ".join(
            f"with {ranks} rank{'s' if ranks > 1 else ''} {size(held + _messages(topology, ranks, array))}"
            for ranks, held in ((n, _memory(config, plan, sizes, n, pooled)) for n in sorted({1, config.size}))
        )
        + " for data, models, optimisers and messages, plus some 300 MiB for Python and PyTorch",
        "devices": f"{config.devices.kind}, {torch.cuda.device_count()} CUDA visible here",
    }
    for name, value in rows.items():
        report.add_row(name, value)
    return Group(report, "the config is sound")


def stand_in(config: Config, plan: federation.Plan, model: torch.nn.Module) -> Participant:
    """A participant without data: for what a method wants to know of a model."""
    source = plan.source
    blank = Labelled(torch.zeros(1, source.channels, source.side, source.side), torch.zeros(1, dtype=torch.int64))
    return Participant(0, config.architecture(0), model, blank, blank, config.optimizer, config.evaluation, config.seed)


def _memory(config: Config, plan: federation.Plan, sizes: dict[str, int], ranks: int, pooled: bool) -> int:
    """Largest rank's data, models and optimisers, and one step's two gradients; not the activations [bytes]."""
    image = plan.image_bytes() + 8
    shared = image * (len(plan.seed) + sum(map(len, plan.tests))) + 8 * max(sizes.values())
    if pooled:
        shared += image * sum(len(share.private) for share in plan.shares)
    hosting, largest = Hosting(config.size, ranks), 0
    for rank in range(ranks):
        own = 0
        for index in hosting.of(rank):
            held = len(plan.shares[index].validation) + (0 if pooled else len(plan.shares[index].private))
            own += image * held + 4 * COPIES[config.optimizer.name] * sizes[config.architecture(index)]
        largest = max(largest, own)
    return shared + largest


def _messages(topology: Topology, ranks: int, array: ArraySpec | None) -> int:
    """Largest rank's arrays that are published, sent and received in round 0, and one participant's view of them."""
    if array is None:
        return 0
    near, largest = topology.graph(0).neighbours, 0
    hosting = Hosting(len(near), ranks)
    for rank in range(ranks):
        hosted = hosting.of(rank)
        crossing = {(i, j) for i in hosted for j in near[i] if hosting.rank_of(j) != rank}
        received = {j for _, j in crossing}
        sent = {(i, hosting.rank_of(j)) for i, j in crossing}
        arrays = len(hosted) + len(received) + len(sent) + max(len(near[i]) for i in hosted)
        largest = max(largest, arrays * array.message_bytes())
    return largest


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"
