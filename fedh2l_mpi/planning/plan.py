"""Plan a run: all numbers that follow from a resolved config and a number of ranks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedh2l_mpi import losses, methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.metrics import row_width
from fedh2l_mpi.planning import (
    disk,
    graph_schedule,
    memory_check,
    requirements,
    sample_counts,
    simulated_time,
    timing,
    traffic,
)
from fedh2l_mpi.planning.cluster_model import ClusterModel, Forecast, Rows, Steps, forecast
from fedh2l_mpi.planning.disk import Files
from fedh2l_mpi.planning.graph_schedule import GraphSchedule
from fedh2l_mpi.planning.memory import RankMemory
from fedh2l_mpi.planning.overhead import FITTED, count_loads
from fedh2l_mpi.planning.participant_limit import refuse_too_many
from fedh2l_mpi.planning.timing import Calibration, PhaseSeconds
from fedh2l_mpi.planning.traffic import MessageSize
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.processes import processor, resident_bytes
from fedh2l_mpi.sample_form import SampleForm


@dataclass(frozen=True)
class RunPlan:
    """Estimated resources of a run.

    Attributes
    ----------
    refused : str
        Reason why a run would be refused; empty if it would not.
    base_bytes : int
        Memory of a process of this machine with Python and PyTorch after one small step.
    calibration : Calibration or None
        None: nothing was timed.
    publishes_first, shares_parameters : bool
        True if messages travel during the local phase; true if they contain parameters.
    cluster : ClusterModel or None
        None: the user gave no cluster.
    simulated_s : float or None
        Simulated time of the run [s]; None: the network has no clock, or the graphs are too large.
    """

    config: Config
    name: str
    source: Source
    hosting: Hosting
    required: requirements.Requirements
    schedule: GraphSchedule
    memory: RankMemory
    files: Files
    refused: str
    base_bytes: int
    calibration: Calibration | None
    publishes_first: bool
    shares_parameters: bool
    cluster: ClusterModel | None
    simulated_s: float | None = None

    @property
    def largest_rank(self) -> int:
        """Rank that needs the most memory."""
        return int(self.memory.total.argmax())

    @property
    def record_bytes(self) -> int:
        """Size of a participant's metrics row in the message to rank 0 [bytes]."""
        return 8 * row_width(self.required.counts.domains, self.required.columns)

    @property
    def recorded(self) -> int:
        """Number of participants whose rows cross ranks: all except those of rank 0."""
        return self.hosting.participants - len(self.hosting.participants_of(0))

    @property
    def evaluations(self) -> int:
        """Number of rounds with an evaluation: every k-th, and the last."""
        return -(-self.config.rounds // self.config.evaluation.every)

    @property
    def seed_draws(self) -> int:
        """Number of times that a rank draws a round's seed rows: in every round, and to calibrate at an evaluation."""
        return self.config.rounds + (self.evaluations if self.config.evaluation.calibration == "seed_set" else 0)

    def traffic(self) -> dict[str, float]:
        """Return bytes and messages of a round (with the first graph) and of the whole run."""
        size, first, schedule = self.required.message, self.schedule.first, self.schedule
        numbers = {
            "sharing_bytes_per_round": self.required.sharing_bytes(first),
            "sharing_bytes": schedule.total(self.required.sharing_bytes),
            "record_messages_per_round": float(self.hosting.ranks - 1),
            "record_bytes_per_round": float(self.recorded * self.record_bytes),
        }
        if size is None:
            return numbers | dict.fromkeys(("edge_bytes_per_round", "edge_bytes", "mpi_bytes", "mpi_messages"), 0.0)
        return numbers | {
            "edge_bytes_each_way": float(size.edge_bytes),
            "edge_bytes_per_round": first.edge_bytes(size),
            "edge_bytes": schedule.edge_bytes(size),
            "mpi_messages_per_round": float(first.messages_R.sum()),
            "mpi_messages": schedule.total(lambda graph: float(graph.messages_R.sum())),
            "mpi_messages_per_round_busiest_rank": float(first.messages_R.max()),
            "mpi_bytes_per_round": float(first.mpi_bytes_R(size).sum()),
            "mpi_bytes": schedule.total(lambda graph: float(graph.mpi_bytes_R(size).sum())),
            "mpi_bytes_per_round_busiest_rank": float(first.mpi_bytes_R(size).max()),
        }

    def seconds(self) -> dict[str, float]:
        """Return the slowest rank's mean time of a round and of the run [s]; empty if nothing was timed."""
        if self.calibration is None:
            return {}
        rounds = self.config.rounds
        of_R = self._per_rank(
            self.calibration.phases, lambda one: one.run_s(rounds, self.schedule.exchanges, self.evaluations)
        )
        of_R += self.seed_draws * self.calibration.seed_round_s
        return {"round": float(of_R.max() / rounds), "run": float(of_R.max()), "cpu": float(of_R.sum())}

    def _per_rank(
        self, phases: dict[str, PhaseSeconds], seconds: Callable[[PhaseSeconds], float]
    ) -> NDArray[np.float64]:
        """Return the sum over the participants of each rank, (R,) [s]."""
        each = {name: seconds(one) for name, one in phases.items()}
        of_P = np.array([each[self.config.architecture(index)] for index in range(self.config.size)])
        return np.add.reduceat(of_P, traffic.first_participants(self.hosting))

    def forecasts(self) -> dict[str, Forecast]:
        """Return forecasts of a round on the cluster, as configured and sharing parameters; empty without a cluster.

        Sharing parameters means the E + M steps of `d_psgd` with `publish: start`. Averaging is not included.
        """
        if self.cluster is None or self.calibration is None:
            return {}
        phases, notes = self.calibration.phases, self.calibration.notes
        configured = self._forecast(self.required.message, self.schedule.exchanges, self.publishes_first, phases, notes)
        if self.shares_parameters:
            return {"parameters": configured}
        mean_bytes = self.required.sharing_bytes(self.schedule.first) / max(
            1.0, float(self.schedule.first.degree_P.sum())
        )
        # A message has a header, and the number of every sender in it.
        fixed, array = ArraySpec("parameters", 1, 1).message_bytes(0), round(mean_bytes)
        parameters = MessageSize(fixed, 4 + array, array)
        steps = self.config.method.local_steps + self.config.method.mutual_steps
        sharing = {name: one.sharing(steps) for name, one in phases.items()}
        # A step on private data records its loss only.
        shared = self._forecast(parameters, self.config.rounds, True, sharing, steps)
        return {
            "as configured" if self.required.message is not None else "without exchange": configured,
            "parameters": shared,
        }

    def _forecast(
        self,
        message: MessageSize | None,
        exchanges: int,
        publishes_first: bool,
        phases: dict[str, PhaseSeconds],
        notes: float,
    ) -> Forecast:
        """Compute a round with messages of this size and these phases of each architecture."""
        if self.cluster is None or self.calibration is None:
            raise RuntimeError("a forecast needs a cluster and a calibration")
        rounds = self.config.rounds
        all_R = self._per_rank(phases, lambda one: one.run_s(rounds, exchanges, self.evaluations)) / rounds
        hiding_R = self._per_rank(phases, lambda one: one.local if publishes_first else 0.0)
        steps = Steps(all_R + self.seed_draws / rounds * self.calibration.seed_round_s, hiding_R)
        rows = Rows(self.hosting.ranks - 1, float(self.recorded * self.record_bytes))
        loads = count_loads(self.schedule.first, self.hosting, message, notes, self.record_bytes)
        return forecast(self.cluster, loads, steps, rows, exchanges / rounds, FITTED)

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as a dict for JSON."""
        first, rank = self.schedule.first, self.largest_rank
        base_all = self.base_bytes * self.hosting.ranks
        return {
            "config": self.name,
            "participants": self.hosting.participants,
            "ranks": self.hosting.ranks,
            "architectures": {
                name: {"participants": count, **asdict(self.required.models[name])}
                for name, count in requirements.architectures(self.config).items()
            },
            "refused": self.refused or None,
            "graph": {
                "kind": self.config.topology.kind,
                "edges": first.edges,
                "degree_min": float(first.degree_P.min()),
                "degree_mean": float(first.degree_P.mean()),
                "degree_max": float(first.degree_P.max()),
                "graphs": self.schedule.count,
                "caution": self.schedule.caution or None,
            },
            "rounds": self.config.rounds,
            "exchanges": self.schedule.exchanges,
            "evaluations": self.evaluations,
            "memory_bytes": {
                "largest_rank": rank,
                **self.memory.parts(rank),
                "base": self.base_bytes,
                "total": int(self.memory.total[rank]) + self.base_bytes,
                "on_device": int(self.memory.on_device.max()),
                "outside_allocator": memory_check.CONTEXT_BYTES + memory_check.LIBRARIES_BYTES,
                "all_ranks": int(self.memory.total.sum()) + base_all,
            },
            "traffic": self.traffic(),
            "simulated_seconds": None
            if self.simulated_s is None
            else {"round": self.simulated_s / self.config.rounds, "run": self.simulated_s},
            "files": {**asdict(self.files), "kept_checkpoints_bytes": self.files.kept_bytes},
            "seconds": {
                **self.seconds(),
                "machine": processor(),
                "phases": {name: asdict(phases) for name, phases in self.calibration.phases.items()},
                "seed_samples_of_a_round": self.calibration.seed_round_s,
                "neighbours_timed": self.calibration.neighbours,
            }
            if self.calibration is not None
            else None,
            "cluster": {
                **asdict(self.cluster),
                **{
                    name: {**asdict(one), "round": one.round, "bottleneck": one.bottleneck[0]}
                    for name, one in self.forecasts().items()
                },
            }
            if self.cluster is not None
            else None,
        }


def plan_run(config: Config, name: str, ranks: int, calibrates: bool, cluster: ClusterModel | None = None) -> RunPlan:
    """Estimate the resources of a resolved config on this number of ranks.

    Parameters
    ----------
    name : str
        Name of the config, for the page.
    calibrates : bool
        Time the phases of a round on this machine.

    Raises
    ------
    UserError
        If data files, models, method or graph are wrong. If there are too few data, `refused` states the reason.
    """
    refuse_too_many(config, draws_graph=False)
    torch.set_num_threads(config.devices.threads)
    base_bytes = _base_bytes()
    hosting = Hosting(config.size, ranks)
    method = methods.build(config)
    models.check_weights(config.weights, list(requirements.architectures(config)))
    source = open_source(config.data)
    schedule = graph_schedule.draw_schedule(config, hosting, method.exchanges_in)
    counts, refused = sample_counts.count_or_assume(config, source)
    required = requirements.compute(config, source, method, counts)
    memory = required.memory(hosting, schedule.first, on_host=config.devices.kind == "cpu")
    files = disk.files(config, hosting, counts, required.models, schedule.edges, required.kept_bytes, required.columns)
    calibration = None
    if calibrates:
        degree = float(schedule.first.degree_P.mean())
        calibration = timing.calibrate(
            config, source, counts, degree, required.message.held_bytes if required.message is not None else 0
        )
    edge_bytes = required.message.edge_bytes if required.message is not None else 0
    speeds = timing.speeds_of(config, calibration) if calibration is not None else None
    simulated_s = simulated_time.simulated_seconds(config, method, edge_bytes, speeds)
    return RunPlan(
        config,
        name,
        source,
        hosting,
        required,
        schedule,
        memory,
        files,
        refused,
        base_bytes,
        calibration,
        method.publishes_first,
        method.shares_parameters,
        cluster,
        simulated_s,
    )


def _base_bytes() -> int:
    """Return the memory of this process after one small step: that of a rank before its own data and models.

    The MPI library is not included; it needs 15 to 30 MiB more.
    """
    model = models.build("lenet5", SampleForm.image(1, 28), 10, 0)
    loss = losses.cross_entropy(model(torch.zeros(32, 1, 28, 28)), torch.zeros(32, dtype=torch.int64))
    torch.autograd.grad(loss, list(model.parameters()))
    return resident_bytes()
