"""Build one rank's share of a run from its config: participants with data and models, method and graph."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fedh2l_mpi import evaluation, methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.exchange.participation import Participation, build_participation
from fedh2l_mpi.methods import batched
from fedh2l_mpi.metrics import NO_COLUMNS, Columns
from fedh2l_mpi.models import mixed_precision
from fedh2l_mpi.models.flat_parameters import shared_bytes
from fedh2l_mpi.network import Network, build_network
from fedh2l_mpi.participant import Participant, TrainingUnit
from fedh2l_mpi.planning import memory_check
from fedh2l_mpi.planning.participant_limit import refuse_too_many
from fedh2l_mpi.rng import Purpose, torch_seed
from fedh2l_mpi.runtime import arithmetic
from fedh2l_mpi.runtime.devices import AssignedDevice, assign_device
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.step_graphs import Graphs, UnitGraphs
from fedh2l_mpi.runtime.step_recording import CudaRecorder
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph, Topology


@dataclass(frozen=True)
class RankSetup:
    """One rank's share of a run, before the first round.

    Attributes
    ----------
    device : torch.device
        Device of this rank's data and models.
    hosting : Hosting
        The ranks of all participants.
    topology, plan, method : Topology, federated.Plan, methods.Method
        Equal on every rank.
    federation : federated.Federation
        Seed set and test sets, which every rank holds whole, and the hosted participants' samples.
    array : ArraySpec or None
        The array that participants publish; None: nothing is ever exchanged.
    participants : list of Participant
        The participants hosted here, in the order of their numbers.
    training_units : sequence of TrainingUnit
        The same participants; those that step together as one batch.
    columns : Columns
        The run's own arrays by round.
    metrics : tuple of evaluation.Metric
        The metrics that the config asks for.
    everyone : list of dict
        Of each participant of the run, on any rank: the metrics file's fields of a participant, `pid` of the process,
        and `gpu`, the model of the GPU; empty on a CPU.
    network : Network or None
        The simulated network, equal on every rank; None: the run has no simulated seconds.
    participation : Participation or None
        Who takes part in each round, equal on every rank; None: everybody does.
    """

    device: torch.device
    hosting: Hosting
    topology: Topology
    plan: federated.Plan
    method: methods.Method
    federation: federated.Federation
    array: ArraySpec | None
    participants: list[Participant]
    training_units: Sequence[TrainingUnit]
    columns: Columns = NO_COLUMNS
    metrics: tuple[evaluation.Metric, ...] = ()
    everyone: list[dict[str, Any]] = field(default_factory=list)
    network: Network | None = None
    participation: Participation | None = None

    def graph(self, round_index: int) -> Graph:
        """Return the graph of a round, without the edges of those who are absent."""
        return (self.participation or self.topology).graph(round_index)

    @property
    def private_samples(self) -> tuple[int, ...]:
        """Number of private training samples of each participant of the run, (P,)."""
        return tuple(len(share.private) for share in self.plan.shares)


def build_rank(config: Config, world: World) -> RankSetup:
    """Build this rank's data, models and graph from a resolved config. **Collective.**

    Raises
    ------
    UserError
        On every rank alike, if data, models, graph or devices do not fit the config, or a device is too small.
    """
    assigned = assign_device(world, config.devices)
    prepared = world.together(lambda: _prepare(config, world, assigned))
    setup = world.together(lambda: _build(config, world, prepared))
    _refuse_other_data(config, world.collect(setup.plan.source.digest))
    everyone = [row for rows in world.collect(_describe(world, setup)) for row in rows]
    return replace(setup, everyone=everyone)


def _refuse_other_data(config: Config, digests: list[bytes]) -> None:
    """Raise UserError on every rank if a rank has read other data than rank 0."""
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise UserError(
                f"data.name: {config.data.name!r} gives rank {rank} other data than rank 0. Fix: all ranks must read "
                "the same files, and a function must seed every generator of random numbers that it makes."
            )


@dataclass(frozen=True)
class _Prepared:
    """A rank before it reads samples; `built` are the models that the memory check has measured."""

    device: torch.device
    hosting: Hosting
    here: range
    method: methods.Method
    topology: Topology
    network: Network | None
    participation: Participation | None
    plan: federated.Plan
    built: dict[int, nn.Module]


def _prepare(config: Config, world: World, assigned: AssignedDevice) -> _Prepared:
    """Check everything that can be checked before samples are read."""
    refuse_too_many(config)
    device = torch.device(assigned.name)
    mixed_precision.refuse_without_hardware(device, config.optimizer.precision)
    arithmetic.set_up(device, config.optimizer.precision)
    models.check_weights(config.weights, [config.architecture(index) for index in range(config.size)])
    hosting = Hosting(config.size, world.size)
    here, method = hosting.participants_of(world.rank), methods.build(config)
    topology = Topology(config.topology, config.size, config.seed, config.rounds)
    network = build_network(config)
    participation = build_participation(config.faults.participation, topology, config.size, config.seed)
    plan = federated.plan(config, open_source(config.data))
    built = _first_models(config, plan, here, method.shares_parameters)
    memory_check.check_memory(config, plan, method, topology, world, assigned, built)
    return _Prepared(device, hosting, here, method, topology, network, participation, plan, built)


def _build(config: Config, world: World, prepared: _Prepared) -> RankSetup:
    """Read this rank's samples, and build its participants. **Collective**: no rank may have refused the config."""
    device, here, method, built = prepared.device, prepared.here, prepared.method, prepared.built
    begin_alike, pooled, network = method.shares_parameters, method.pools_private_data, prepared.network
    plan = federated.read_files(prepared.plan, here, pooled, world.read_once_per_node)
    federation = federated.load(plan, here, device, pooled)
    participants = [
        _participant(
            index,
            config,
            method,
            federation,
            plan.has_local_test,
            built.pop(index) if index in built else _model(index, config, plan, begin_alike),
        )
        for index in here
    ]
    metrics = evaluation.chosen_metrics(config.evaluation, plan.classes)
    array = method.array(participants[0], plan.seed_rows_per_round, plan.classes)
    together = batched.may_batch(config, method.takes_batches, device.type == "cpu")
    units = batched.training_units(participants) if together else participants
    _record_steps(config, device, method, units)
    return RankSetup(
        device=device,
        hosting=prepared.hosting,
        topology=prepared.topology,
        # What a user's function has returned would stay in memory next to the participants' own samples.
        plan=replace(plan, source=plan.source.without_samples()),
        method=method,
        federation=federation,
        columns=evaluation.columns_of(
            config.method.name,
            method.notes,
            plan.has_local_test,
            metrics,
            config.size,
            plan.classes,
            network is not None,
            prepared.participation is not None,
        ),
        network=network,
        participation=prepared.participation,
        metrics=metrics,
        array=array.coded(config.exchange) if array is not None else None,
        participants=participants,
        training_units=units,
    )


def _record_steps(config: Config, device: torch.device, method: methods.Method, units: Sequence[TrainingUnit]) -> None:
    """Let units record their steps by `devices.graphs`, if the device is a GPU, and method and model allow it."""
    if config.devices.graphs == "off" or device.type != "cuda":
        return
    graphs = Graphs(CudaRecorder(device))
    if not method.records_steps:
        graphs.tell(f"method {config.method.name!r} does not set records_steps")
        return
    for unit in units:
        refusing = [one.architecture for one in unit.members if not _allows_records(one)]
        if refusing:
            graphs.tell(f"model {refusing[0]!r} does not set records_steps")
        else:
            unit.graphs = UnitGraphs(graphs)


def _allows_records(participant: Participant) -> bool:
    """Return whether a model's steps may be recorded; a user's own model has to ask for it, by `records_steps`."""
    return bool(getattr(participant.model, "records_steps", not models.is_own(participant.architecture)))


def _first_models(config: Config, plan: federated.Plan, here: range, begin_alike: bool) -> dict[int, nn.Module]:
    """The model of the first participant of each architecture hosted here: the memory check measures these."""
    first: dict[str, int] = {}
    for index in here:
        first.setdefault(config.architecture(index), index)
    return {index: _model(index, config, plan, begin_alike) for index in first.values()}


def _model(index: int, config: Config, plan: federated.Plan, begin_alike: bool) -> nn.Module:
    architecture, source = config.architecture(index), plan.source
    seed = initial_seed(config, index, begin_alike)
    weights = config.weights.get(architecture)
    return models.build(architecture, source.form, source.classes, seed, weights)


def initial_seed(config: Config, index: int, begin_alike: bool) -> int:
    """Return the seed of a participant's constructor; `begin_alike` if the method shares parameters."""
    # An average of weights makes sense only if all participants began with the same weights.
    return torch_seed(config.seed, Purpose.INITIALISATION, 0 if begin_alike else index)


def _participant(
    index: int,
    config: Config,
    method: methods.Method,
    federation: federated.Federation,
    has_local_test: bool,
    model: nn.Module,
) -> Participant:
    private, validation = federation.private[index], federation.validation[index]
    local_test = federation.local_test[index] if has_local_test else None
    architecture, shares = config.architecture(index), method.shares_parameters
    return Participant.of_run(config, index, architecture, model, private, validation, shares, local_test)


def _describe(world: World, setup: RankSetup) -> list[dict[str, Any]]:
    """Return the fields of the participants hosted here."""
    gpu = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else ""
    return [
        {
            "architecture": participant.architecture,
            "parameters": participant.parameter_count,
            "parameter_bytes": shared_bytes(participant.model),
            "private_samples": setup.private_samples[participant.index],
            "own_domain": setup.plan.own_domain(participant.index),
            "rank": world.rank,
            "host": world.host,
            "device": str(setup.device),
            "pid": os.getpid(),
            "gpu": gpu,
        }
        for participant in setup.participants
    ]
