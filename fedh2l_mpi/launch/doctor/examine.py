"""Run all checks, in the order of the page and on all ranks together."""

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import EXIT_FAULT, LateRankError, UserError
from fedh2l_mpi.launch.doctor import launcher, messages, ranks, software, storage
from fedh2l_mpi.launch.doctor.findings import Finding, failure, good, refused
from fedh2l_mpi.launch.doctor.page import Page
from fedh2l_mpi.runtime.clocks import Timer, stay
from fedh2l_mpi.runtime.launcher import Launch
from fedh2l_mpi.runtime.world import World, connect

if TYPE_CHECKING:
    from fedh2l_mpi.config import Config

# Loading PyTorch on many nodes from one file system may take minutes; a message does not.
DEADLINE_S = 180.0
MESSAGE_DEADLINE_S = 30.0
SPEAK_S = 1.0
NETWORK = "check that the nodes can reach each other over the network that MPI chose, and that no rank is stopped"


class Watchdog:
    """End this process if a step takes too long, because MPI itself would wait forever.

    Parameters
    ----------
    who : str
        Name of this process in the message.
    """

    def __init__(self, who: str, deadline_s: float = DEADLINE_S) -> None:
        self._who, self._deadline_s = who, deadline_s
        self._timer: Timer | None = None

    def step(self, what: str) -> None:
        """Start the time limit of the next step, named `what` in the message."""
        self._cancel()
        self._timer = Timer(self._deadline_s, lambda: self._expire(what))

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self, what: str) -> None:
        print(
            f"fedh2l_mpi: error: doctor, {self._who}: {what} took longer than {self._deadline_s:g} s, so a run would "
            f"not work here. Fix: {NETWORK}.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        # sys.exit would not end the main thread, which is inside MPI. The launcher ends the other ranks.
        os._exit(EXIT_FAULT)


def connect_ranks(environ: Mapping[str, str] = os.environ) -> World:
    """Connect the ranks, or return a world of one process if they cannot connect. **Collective.**"""
    launch = Launch.from_environment(environ)
    # Asking for the MPI library starts a process, so it is done only for launchers that speak PMIx.
    if "PMIX_RANK" in environ and (caution := launcher.may_not_join(launch, software.mpi_of_mpi4py())):
        if launch.rank == 0:
            print(f"fedh2l_mpi: doctor: {caution}", file=sys.stderr, flush=True)
        else:
            # The first rank that MPI ends takes the others with it, so rank 0 needs time to print.
            stay(SPEAK_S)
    with Watchdog(f"process {launch.rank}") as watchdog:
        watchdog.step("connecting the ranks")
        try:
            return connect(environ)
        except UserError:
            # `examine` prints this error on the page.
            return World(None)


def examine(
    world: World,
    config_path: str | None,
    overrides: Sequence[str],
    out: str | None,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Print the page on rank 0; return 0 if a run would work here, else 1. **Collective.**

    Raises
    ------
    UserError
        If the config cannot be read, or `out` cannot be a directory.
    """
    launch = Launch.from_environment(environ)
    refusal = _refusal(world, launch, environ)
    if refusal and launch.rank != 0:
        # Unconnected ranks all run alone, and rank 0 prints for all. An error exit here would end rank 0 too early.
        return 0
    page = Page(launch.launched) if world.rank == 0 else None
    with Watchdog(str(world)) as watchdog:
        try:
            _Visit(world, launch, refusal, environ, watchdog, page).make(config_path, overrides, out)
        except LateRankError as error:
            _end_late(world, page, error)
        watchdog.step("the verdict")
        if page is not None:
            page.close()
        failed = world.from_first(lambda: page is not None and page.failed)
    return EXIT_FAULT if failed else 0


@dataclass(frozen=True)
class _Visit:
    """Shared state of all checks; `refusal` is the reason why the ranks could not connect, or empty."""

    world: World
    launch: Launch
    refusal: str
    environ: Mapping[str, str]
    watchdog: Watchdog
    page: Page | None

    def make(self, config_path: str | None, overrides: Sequence[str], out: str | None) -> None:
        """Run all checks, each with its own time limit. **Collective.**"""
        world, step = self.world, self.watchdog.step
        step("reading the config")
        config = world.from_first(lambda: loading.load(config_path, overrides))
        folder = world.from_first(lambda: storage.folder_for(out))
        step("comparing versions")
        self._software()
        # Unconnected ranks would show the cores and GPUs of rank 0 only.
        if not self.refusal:
            step("looking at cores and GPUs")
            self._show("cores and GPUs", ranks.examine(world, config.devices, self.environ))
        step("trying the file system")
        self._show("files", storage.examine(world, folder, self.environ))
        step("trying the config")
        size = self.launch.size if self.refusal else world.size
        load, lines = world.from_first(lambda: _load(config, config_path, size, self.launch.launched))
        self._show("run", lines)
        if not self.refusal:
            step("sending messages")
            self._show("network", messages.examine(world, load, MESSAGE_DEADLINE_S))

    def _software(self) -> None:
        world = self.world
        alone = world.comm is None and world.rank == 0
        mpi_library = software.mpi_of_mpi4py() if alone else world.mpi_library
        versions = world.collect(software.versions_here(mpi_library))
        hosts = world.collect(world.host)
        if self.page is None:
            return
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._show(f"software on {world.host}, {now}", software.findings(versions[0], needs_mpi=self.launch.size > 1))
        lines = [launcher.started(self.launch, self.refusal, hosts), *launcher.slurm_job(self.environ)]
        if not self.launch.launched:
            lines += launcher.ways_to_start(mpi_library)
        self._show("start", [*lines, *software.differences(versions, hosts)])

    def _show(self, section: str, findings: Sequence[Finding]) -> None:
        if self.page is not None:
            self.page.show(section, findings)


def _refusal(world: World, launch: Launch, environ: Mapping[str, str]) -> str:
    """Return the reason why the launcher's ranks did not connect, or an empty string if they did."""
    if world.comm is not None or launch.size == 1:
        return ""
    try:
        connect(environ)
    except UserError as error:
        return str(error)
    return ""


def _load(config: "Config", path: str | None, size: int, launched: bool) -> tuple[messages.Load | None, list[Finding]]:
    """Return what the config would send, or None if it cannot run here, and a finding about that."""
    name = Path(path).name if path is not None else "the default config"
    try:
        resolved = config.resolved(size, launched)
        load = messages.load_of(resolved)
    except UserError as error:
        return None, [refused("config", error)]
    except (ImportError, OSError) as error:
        # An OSError is a library that PyTorch lacks.
        return None, [failure("config", f"{name} cannot be tried: {error}", "install what is missing above")]
    text = f"{name}: {resolved.size} participants; data, models and graph fit"
    return load, [good("config", text)]


def _end_late(world: World, page: Page | None, error: LateRankError) -> None:
    """Abort the job: ranks that cannot exchange messages cannot agree on a verdict either."""
    # The config key has no effect here, where the time limit is fixed.
    text = str(error).removesuffix(" (exchange.deadline_s)")
    found = failure("messages", f"{text}, so a run would not work here", NETWORK)
    if page is not None:
        page.show("network", [found])
        page.close()
    else:
        print(f"fedh2l_mpi: error: doctor, {world}: {found.text}", file=sys.stderr, flush=True)
    world.abort(EXIT_FAULT)
