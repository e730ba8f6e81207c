"""Put a run together and run it. The command line, scripts and notebooks all come through here.

`run` is the front door; `execute` is the same for a caller that has joined the ranks already; `assemble` is the one
place where the parts of a run meet.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import run_config
from fedh2l_mpi.lifecycle.run_config import MODES, Mode
from fedh2l_mpi.lifecycle.signals import Signals, StopRequest
from fedh2l_mpi.runtime.libraries import name_missing_library
from fedh2l_mpi.runtime.world import World, connect

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedh2l_mpi.lifecycle.progress import Progress
    from fedh2l_mpi.lifecycle.result import Run
    from fedh2l_mpi.lifecycle.start import RunReservation
    from fedh2l_mpi.run_directory import RunDirectory
    from fedh2l_mpi.runtime.logs import RunLog
    from fedh2l_mpi.simulation import Simulation

log = logging.getLogger("fedh2l_mpi")
ConfigSource = str | Path | Mapping[str, Any] | Config | None
OnRound = Callable[[int, dict[str, "NDArray[np.float64]"]], None]


@dataclass(frozen=True)
class Ended:
    """The end of a run that nobody's error ended.

    Attributes
    ----------
    request : StopRequest
        The request that stopped it; NOTHING if it is complete.
    was_complete : bool
        All its rounds were finished before, so nothing was done.
    verdict : str
        A line about a complete run that has not learned anything; empty for every other run, and on other ranks.
    """

    directory: "RunDirectory"
    request: StopRequest
    was_complete: bool = False
    verdict: str = ""


def run(
    config: ConfigSource = None,
    *,
    set: str | Sequence[str] = (),
    out: str | Path | None = None,
    resume: Mode = "never",
    trace: str | Path | None = None,
    on_round: OnRound | None = None,
    quiet: bool | None = None,
) -> "Run":
    """Run a simulation and return its results. **Collective** under mpirun: every rank calls it, and gets the result.

    It installs no signal handlers. The number of PyTorch's threads, the state of its random generators and its flags
    are restored afterwards. The one environment variable that it sets is CUBLAS_WORKSPACE_CONFIG, for a GPU, which a
    process reads once.

    Parameters
    ----------
    config : dict, path, Config or None
        Sections and keys as in a YAML file, the path of such a file, or None for the built-in default.
    set : sequence of str
        Overrides such as `"topology.kind=complete"`, as `--set` takes them.
    out : path or None
        The run directory; None: a new one, `runs/<config>-<time>`.
    resume : {"never", "auto", "require"}
        Whether a run in `out` is resumed from its newest checkpoint: never, if there is one, or it must be there.
    trace : path or None
        A new file for the trace of all ranks, for Perfetto or chrome://tracing.
    on_round : callable, optional
        Rank 0 calls it after each round, with the round's index from 0 and a dict of named arrays: (participants,) or
        (participants, domains), as in the metrics file.
    quiet : bool or None
        None: rank 0 shows a progress bar on a terminal or in a notebook. False: it also prints log lines. True: it
        prints nothing.

    Returns
    -------
    Run
        The results, as the metrics file has them.

    Raises
    ------
    UserError
        If the config, the data or the directory are wrong. A single process stays usable after any exception. On
        several ranks, an error that not all ranks share ends the job.

    Examples
    --------
    >>> import fedh2l_mpi as fh
    >>> result = fh.run({"rounds": 2}, out="runs/short", quiet=True)  # doctest: +SKIP
    >>> result["accuracy_all"].shape  # doctest: +SKIP
    (2, 4)
    """
    if resume not in MODES:
        raise UserError(f"resume: got {resume!r}. Known: {', '.join(MODES)}.")
    if resume != "never" and out is None:
        raise UserError(f"resume={resume!r} needs out, the directory of the run to resume.")
    place = str(out) if out is not None else None
    world = connect()
    resolved = world.from_first(
        lambda: run_config.load(config, _items(set), place, resume).resolved(world.size, world.launched)
    )
    with name_missing_library():
        from fedh2l_mpi.lifecycle.failure import end_job_on_error
        from fedh2l_mpi.lifecycle.result import Run
        from fedh2l_mpi.runtime.logs import RunLog

        with RunLog() as run_log, _torch_as_it_was(), end_job_on_error(world):
            ended = execute(
                resolved,
                world,
                run_log,
                out=place,
                name=default_name(config),
                resume=resume,
                trace=Path(trace) if trace is not None else None,
                on_round=on_round,
                shows_progress=not quiet,
                prints=quiet is False,
            )
            # Rank 0 answers after it has closed the files, so that every rank finds the run complete.
            path = world.from_first(lambda: ended.directory.path)
            world.close()
            return Run.open(path)


def load_config(config: ConfigSource = None, *, set: str | Sequence[str] = ()) -> Config:
    """Return a checked config from a dict, a YAML file or nothing, with overrides as `--set` takes them.

    Raises
    ------
    UserError
        If a key or a value is wrong; the message has one line for each mistake.
    """
    return loading.load(config, _items(set))


def default_name(config: ConfigSource) -> str:
    """Return the name of a run that is given no directory, from the file of its config."""
    if config is None:
        return "default"
    return Path(config).stem if isinstance(config, str | Path) else "run"


def execute(
    config: Config,
    world: World,
    run_log: "RunLog",
    *,
    out: str | None = None,
    name: str = "default",
    resume: Mode = "never",
    trace: Path | None = None,
    signals: Signals | None = None,
    on_round: OnRound | None = None,
    shows_progress: bool = False,
    prints: bool = False,
    note: str = "",
) -> Ended:
    """Start or resume a run and run its rounds. **Collective.**

    Parameters
    ----------
    config : Config
        A resolved config, the same on every rank.
    run_log : RunLog
        Keeps what is logged until the run directory exists.
    name : str
        The run's name where `out` is None.
    signals : Signals or None
        Signals that may ask the run to stop; None: no signal is looked at.
    shows_progress, prints : bool
        Whether rank 0 shows a progress bar, where one can be shown, and prints log lines.
    note : str
        A line for the log.

    Raises
    ------
    UserError
        On every rank alike, if data, models, graph, devices or the directory do not fit the config.
    """
    from fedh2l_mpi import run_directory
    from fedh2l_mpi.lifecycle import progress, start
    from fedh2l_mpi.metrics.trace import check

    world.deadline_s = config.exchange.deadline_s
    requested = world.from_first(lambda: run_directory.choose(out, name, resume != "never"))
    with start.reserve(world, requested, config, resume) as reservation:
        if reservation.kind == "done":
            return Ended(requested, StopRequest.NOTHING, was_complete=True)
        if trace is not None:
            path = trace
            world.from_first(lambda: check(path, requested, resumes=reservation.kind == "resume"))
        config = _with_measured_speeds(config, world)
        shown = progress.Progress(config, shows_progress and world.rank == 0)
        simulation = assemble(config, world, reservation, signals, trace, _listener(shown, on_round))
        supervisor, setup = simulation.supervisor, simulation.setup
        run_log.open(supervisor.directory.log(world.rank), world.rank, world.size, prints and world.rank == 0)
        progress.log_start(config, world, setup.everyone, setup.plan)
        progress.log_notes(world, note, simulation.method.caution, supervisor.first_round, config)
        with shown.after(supervisor.first_round):
            request = simulation.run()
        verdict = _verdict(supervisor.directory) if world.rank == 0 and not request.stops else ""
        return Ended(supervisor.directory, request, verdict=verdict)


def _with_measured_speeds(config: Config, world: World) -> Config:
    """Return the config of a new run with the speeds that rank 0 measures, if it asks for them. **Collective.**"""
    from fedh2l_mpi.config.network import MEASURE, ClockedNetwork
    from fedh2l_mpi.planning.timing import measured_speeds

    network = config.network
    if not isinstance(network, ClockedNetwork) or network.speed_steps_per_s != MEASURE:
        return config
    speeds = world.from_first(lambda: measured_speeds(config))
    measured = network.model_copy(update={"speed_steps_per_s": speeds})
    return config.model_copy(update={"network": measured})


def _verdict(directory: "RunDirectory") -> str:
    """Return a line about a complete run that has not learned anything, which its log gets, too."""
    from fedh2l_mpi.analysis import learning
    from fedh2l_mpi.analysis.run import load_run

    loaded = load_run(directory.path)
    try:
        text = learning.verdict(loaded)
    finally:
        loaded.close()
    if text:
        log.warning(text, extra={"file_only": True})
    return text


def assemble(
    config: Config,
    world: World,
    reservation: "RunReservation",
    signals: Signals | None = None,
    trace: Path | None = None,
    listener: "Callable[[int, dict[str, NDArray[np.float64]]], None]" = lambda index, arrays: None,
) -> "Simulation":
    """Build the parts of a run and join them into a simulation. **Collective.**

    The directory of a new run is made only after data, models and graph have proved to fit.

    Parameters
    ----------
    listener : callable
        Rank 0 calls it with each round and its arrays by name, (P,) or (P, D), after the round is in the file.

    Raises
    ------
    UserError
        On every rank alike, if data, models, graph or devices do not fit the config.
    """
    import torch

    from fedh2l_mpi.build import build_rank
    from fedh2l_mpi.exchange import Exchange, NoExchange
    from fedh2l_mpi.lifecycle import early_stop, resume, run_metadata
    from fedh2l_mpi.lifecycle.supervisor import Supervisor
    from fedh2l_mpi.metrics import posteriors, unpack_table
    from fedh2l_mpi.metrics.run_recorder import RunRecorder
    from fedh2l_mpi.metrics.trace import Trace
    from fedh2l_mpi.network import SimulatedClock
    from fedh2l_mpi.simulation import Simulation

    torch.set_num_threads(config.devices.threads)
    deadline_s = config.exchange.deadline_s
    setup = build_rank(config, world)
    hosting, topology, array, participants = setup.hosting, setup.topology, setup.array, setup.participants
    world.handshake(run_metadata.digests(config, setup))
    facts = run_metadata.facts(config, world, setup)
    first = 0
    if reservation.kind == "resume":
        first = resume.restore(world, reservation.requested, participants, facts, config.rounds)
    directory = world.from_first(lambda: reservation.settle(config))

    tracing = Trace(world, hosting, directory, trace, deadline_s) if trace is not None else None
    exchange: Exchange | NoExchange = NoExchange(hosting.participants_of(world.rank))
    if array is not None:
        arrived = tracing.messages if tracing is not None else None
        exchange = Exchange(world, hosting, array, deadline_s, setup.device.type == "cuda", arrived)
        rounds_before = (index for index in reversed(range(first)) if setup.method.exchanges_in(index))
        last = next(rounds_before, None)
        before = (last, setup.graph(last)) if last is not None else None
        exchange.share_cache({participant.index: participant.kept for participant in participants}, before)
    ending, rule = None, config.run.early_stop
    if rule.patience is not None:
        # From the file as it was left, because the recorder replaces it.
        so_far = world.from_first(lambda: early_stop.read(directory.metrics, rule, first))
        ending = early_stop.EarlyStop(world, config.size, rule, so_far, deadline_s)
    header = run_metadata.header(config, world, setup) if world.rank == 0 else None
    domains, columns, method = setup.plan.domains, setup.columns, setup.method
    clock = None
    if setup.network is not None:
        clock = SimulatedClock(setup.network, method.phase_steps, method.publishes_first)
    every, keeping = config.exchange.keep_posteriors, None
    if every is not None and array is not None:
        keeping = posteriors.Keeping(every, config.rounds, array.name, (config.size, array.rows, array.columns))
    recorder = RunRecorder(
        world,
        hosting,
        topology,
        directory.metrics,
        header,
        domains,
        first,
        deadline_s,
        tracing,
        columns,
        clock,
        keeping,
    )

    def listen(index: int, table: "NDArray[np.float64]") -> None:
        listener(index, unpack_table(table, domains, columns))

    supervisor = Supervisor(
        config, world, hosting, directory, participants, facts, recorder, first, listen, signals, tracing, ending
    )
    return Simulation(config, world, setup, exchange, recorder, supervisor)


def _listener(shown: "Progress", on_round: OnRound | None) -> OnRound:
    def listen(index: int, arrays: "dict[str, NDArray[np.float64]]") -> None:
        shown.round(index, arrays)
        if on_round is not None:
            on_round(index, arrays)

    return listen


def _items(set: str | Sequence[str]) -> tuple[str, ...]:
    """Return overrides as a tuple; a single text is one override."""
    return (set,) if isinstance(set, str) else tuple(set)


@contextlib.contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Restore PyTorch's number of threads and flags, and the random generators of PyTorch, NumPy and Python."""
    import torch

    from fedh2l_mpi.rng import restored_global_generators
    from fedh2l_mpi.runtime import arithmetic

    threads = torch.get_num_threads()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    generators = restored_global_generators(range(torch.cuda.device_count()) if cuda else ())
    with arithmetic.restored(), generators:
        try:
            yield
        finally:
            torch.set_num_threads(threads)
