"""Record a training step once, and replay it with one call: CUDA graphs, for small models on a fast GPU.

A small model's step is some hundred kernels, and starting one from Python takes longer than running it. A CUDA graph
starts all of them with one call. It repeats exactly what was recorded: the same kernels on the same memory with the
same Python numbers. So everything that differs from step to step, or from phase to phase, comes from memory:

- rows of minibatches, random draws and numbers of the optimiser are tables on the device, with a row for each step;
- a counter on the device says which row is next, and where a step's notes go;
- tensors among the arguments of a step are copied to the memory that the recorded step reads, and other arguments
  (numbers, names) choose the recorded step.

A step that cannot be recorded is taken call by call, as without graphs. None of this has been verified on a GPU; tests
replay steps on the CPU, call by call, from the memory that they were recorded with.
"""

import logging
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any, Protocol

import torch
from torch import Tensor

from fedh2l_mpi.runtime.step_arguments import is_composite, kind_of, refuse_closure
from fedh2l_mpi.runtime.step_notes import StepNotes
from fedh2l_mpi.runtime.step_recording import NotRepeatableError, Recorder, Replayable, Waits, host_draws_restored
from fedh2l_mpi.runtime.transfers import PHASE_BYTES, to_device

log = logging.getLogger("fedh2l_mpi")

# Steps that are taken call by call before one is recorded: the first one, and one that is watched.
WARM_UP = 2
# Recorded steps that a unit keeps, because their arguments may come back: a participant's number of neighbours may
# change from round to round, and there are few different ones.
KEPT = 8
# A place in the code that takes steps, and the kind of their arguments.
Place = tuple[CodeType | None, Hashable]


class StepSource(Protocol):
    """Source of minibatches or numbers that differ from step to step, in host memory.

    Attributes
    ----------
    count : int
        How often steps have taken something so far.
    """

    count: int

    def announce(self, steps: int) -> None:
        """Prepare for this many steps that are taken call by call."""

    def prepare(self) -> None:
        """Let what the next step takes be where it takes it from."""

    def release(self) -> None:
        """Free what was prepared."""

    def drawn(self, steps: int, largest_bytes: int) -> list[Tensor]:
        """Return what the next steps take, each (steps, ...) in host memory; of fewer steps if it is too large."""

    def bind(self, row: Sequence[Tensor] | None) -> None:
        """Let steps take these tensors on the device; None: take from the host again."""


class Unit(Protocol):
    """One participant, or several that step together."""

    @property
    def noting(self) -> Sequence[StepNotes]:
        """The notes of each of its participants."""

    @property
    def sources(self) -> Sequence[StepSource]:
        """The sources from which its steps take minibatches and numbers."""

    @property
    def parts(self) -> list[Tensor]:
        """The tensors of its model, as they are now; steps may change them, but not replace them."""


class Graphs:
    """Common part of the recorded steps of a rank: the way to record them, and the memory of their arguments.

    The units of a rank step one after another, so arguments of one shape need memory once.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        # Recorded steps keep their arguments alive, and nothing else does.
        self._static: weakref.WeakValueDictionary[Hashable, Tensor] = weakref.WeakValueDictionary()
        # The tensor that each is a copy of, and its version.
        self._loaded: dict[Hashable, tuple[weakref.ref[Tensor], int]] = {}
        self._told: set[str] = set()

    @torch.no_grad()
    def load(self, place: Hashable, value: Tensor) -> Tensor:
        """Return the static tensor of a place and a shape, with the values of an argument."""
        key = (place, value.shape, value.stride(), value.dtype)
        static = self._static.get(key)
        if static is None:
            self._static[key] = static = torch.empty_like(value)
            self._loaded.pop(key, None)
        source, version = self._loaded.get(key, (None, 0))
        if source is None or source() is not value or version != value._version:
            static.copy_(value)
            self._loaded[key] = (weakref.ref(value), value._version)
        return static

    def tell(self, reason: str) -> None:
        """Log once why steps are taken call by call."""
        if reason not in self._told:
            self._told.add(reason)
            log.info(f"devices.graphs: some steps are taken call by call: {reason}")


@dataclass(frozen=True)
class Uses:
    """Record of the sources and notes that a step was seen to use.

    Attributes
    ----------
    parts : list of int
        How often it takes something from each source.
    notes : list of Counter
        How many numbers each participant notes, by name.
    """

    parts: list[int]
    notes: list[Counter[str]]


class UnitGraphs:
    """The recorded steps of a unit.

    Attributes
    ----------
    refused : dict of code to str
        Why the steps of a place in the code cannot be recorded.
    recorded, replayed : int
        Number of recordings, and of steps that were replayed.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        # By place in the code and kind of arguments, the ones used last at the end. None: one step was taken so far.
        self._kept: OrderedDict[Place, Uses | StepGraph | None] = OrderedDict()
        self.refused: dict[CodeType | None, str] = {}
        self.recorded = self.replayed = 0

    def take(self, unit: Unit, steps: int | Tensor, step: Callable[..., None], reads: Sequence[Any]) -> int:
        """Take the steps if they can be recorded, and return how many of them were taken; the others were not."""
        code, count = getattr(step, "__code__", None), count_of(steps)
        if code in self.refused or count == 0:
            return 0
        done = 0
        try:
            refuse_closure(step)
            key = (code, (_kind_of_steps(steps), *map(kind_of, reads)))
            if key not in self._kept:
                # Libraries initialise themselves in the first step, and some values are computed once.
                take_each(unit, steps, 0, 1, step, reads)
                done = 1
                self._keep(key, None)
            if self._kept[key] is None and done < count:
                done += 1
                self._keep(key, _watched(unit, steps, done - 1, step, reads))
            if isinstance(uses := self._kept[key], Uses) and done < count:
                self._keep(key, StepGraph(self._graphs, unit, uses, steps, count - done, step, reads))
                self.recorded += 1
            kept = self._keep(key, self._kept[key])
        except NotRepeatableError as error:
            self.refused[code] = str(error)
            self._graphs.tell(str(error))
            return done
        if not isinstance(kept, StepGraph):
            return done
        kept.run(unit, steps, done, count, reads)
        self.replayed += count - done
        return count

    def _keep(
        self, key: tuple[CodeType | None, Hashable], kept: "Uses | StepGraph | None"
    ) -> "Uses | StepGraph | None":
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return kept


class StepGraph:
    """A recorded step, with its tables, its arguments and its notes.

    Parameters
    ----------
    uses : Uses
        What the step was seen to use.
    count : int
        Number of steps to come, for which the tables are made; later phases may have more or fewer.

    Raises
    ------
    NotRepeatableError
        If the step cannot be recorded. Then the unit is as it was before.
    """

    def __init__(
        self,
        graphs: Graphs,
        unit: Unit,
        uses: Uses,
        steps: int | Tensor,
        count: int,
        step: Callable[..., None],
        reads: Sequence[Any],
    ) -> None:
        if any(parts > 1 for parts in uses.parts):
            raise NotRepeatableError("it uses several private minibatches, or makes several updates")
        self._graphs, self._uses = graphs, uses
        device = unit.parts[0].device
        drawn = [source.drawn(count, PHASE_BYTES) for source in self._taking(unit)]
        # Steps that the tables have rows for.
        self._capacity = min([count, *(len(values[0]) for values in drawn)])
        self._tables = [[_table(values, self._capacity, device) for values in parts] for parts in drawn]
        self._rows = None if isinstance(steps, int) else _table(steps, self._capacity, device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)
        self._places = torch.arange(self._capacity, device=device)
        # float64 holds a number of any type.
        self._notes = [
            {
                name: [torch.zeros(self._capacity, dtype=torch.float64, device=device) for _ in range(number)]
                for name, number in names.items()
            }
            for names in uses.notes
        ]
        self._arguments = self._loaded(reads)
        self._recorded = self._record(unit, step)

    def run(self, unit: Unit, steps: int | Tensor, done: int, count: int, reads: Sequence[Any]) -> None:
        """Take the steps from `done` to before `count`."""
        self._loaded(reads)
        while done < count:
            number = self._fill(unit, steps, done, min(self._capacity, count - done))
            for _ in range(number):
                self._recorded.replay()
            for source, parts in zip(unit.sources, self._uses.parts, strict=True):
                source.count += parts * number
            for notes, names in zip(unit.noting, self._notes, strict=True):
                for name, buffers in names.items():
                    for buffer in buffers:
                        notes.add(name, buffer[:number].clone())
            done += number

    def _taking(self, unit: Unit) -> list[StepSource]:
        return [source for source, parts in zip(unit.sources, self._uses.parts, strict=True) if parts]

    def _loaded(self, reads: Sequence[Any]) -> list[Any]:
        """Return the arguments, with the values of their tensors in static memory."""
        loaded = []
        for place, read in enumerate(reads):
            if isinstance(read, Tensor):
                loaded.append(self._graphs.load(place, read))
            elif is_composite(read):
                tensors = {
                    name: None if value is None else self._graphs.load((place, name), value)
                    for name, value in read.tensors().items()
                }
                loaded.append(read.with_tensors(tensors))
            else:
                loaded.append(read)
        return loaded

    def _fill(self, unit: Unit, steps: int | Tensor, done: int, number: int) -> int:
        """Fill the tables for the steps after `done`, and return for how many of them."""
        drawn = [source.drawn(number, PHASE_BYTES) for source in self._taking(unit)]
        number = min([number, *(len(values[0]) for values in drawn)])
        for tables, parts in zip(self._tables, drawn, strict=True):
            for table, values in zip(tables, parts, strict=True):
                table[:number].copy_(to_device(values[:number], table.device))
        if self._rows is not None and isinstance(steps, Tensor):
            self._rows[:number].copy_(steps[done : done + number])
        self._next.zero_()
        return number

    def _record(self, unit: Unit, step: Callable[..., None]) -> Replayable:
        """Return the recorded step. Everything is as before afterwards, whether it can be recorded or not."""
        counts, parts = [source.count for source in unit.sources], unit.parts
        taking = self._taking(unit)

        def whole() -> None:
            for source, tables in zip(taking, self._tables, strict=True):
                source.bind([table.index_select(0, self._next).squeeze(0) for table in tables])
            rows = [] if self._rows is None else [self._rows.index_select(0, self._next).squeeze(0)]
            step(*rows, *self._arguments)
            self._next.add_(1)

        try:
            with host_draws_restored(self._next.device) as draws, self._notes_redirected(unit):
                recorded = self._graphs.recorder.record(whole)
        except NotRepeatableError:
            raise
        except Exception as error:
            # Whatever it is, the step can be taken call by call, where a mistake in it shows again.
            first = error.__context__ or error
            text = " ".join(str(first).split())[:200]
            raise NotRepeatableError(f"it cannot be recorded ({type(first).__name__}: {text})") from error
        finally:
            for source, count in zip(unit.sources, counts, strict=True):
                source.count = count
                source.bind(None)
        if draws:
            raise NotRepeatableError("it draws random numbers on the host")
        if any(one is not other for one, other in zip(parts, unit.parts, strict=True)):
            raise RuntimeError(
                "a recorded step replaced a tensor of the model. Fix: set devices.graphs=off, or let the step change "
                "the tensor in place."
            )
        return recorded

    @contextmanager
    def _notes_redirected(self, unit: Unit) -> Iterator[None]:
        """Let the step write its notes to their buffers, at the place of the step."""
        made = [Counter[str]() for _ in unit.noting]

        def sink(counter: Counter[str], buffers: Mapping[str, list[Tensor]]) -> Callable[[str, Tensor], None]:
            def write(name: str, value: Tensor) -> None:
                place, counter[name] = counter[name], counter[name] + 1
                if place >= len(buffers.get(name, [])):
                    raise NotRepeatableError(f"it notes {name!r} in some steps only")
                buffer = buffers[name][place]
                buffer.copy_(torch.where(self._places == self._next, value.to(buffer.dtype), buffer))

            return write

        for notes, counter, buffers in zip(unit.noting, made, self._notes, strict=True):
            notes.redirect(sink(counter, buffers))
        try:
            yield
        finally:
            for notes in unit.noting:
                notes.redirect(None)
        if made != self._uses.notes:
            raise NotRepeatableError("it notes some numbers in some steps only")


def count_of(steps: int | Tensor) -> int:
    """Return the number of steps."""
    return steps if isinstance(steps, int) else len(steps)


def take_each(
    unit: Unit, steps: int | Tensor, first: int, end: int, step: Callable[..., None], reads: Sequence[Any]
) -> None:
    """Take the steps from `first` to before `end`, call by call."""
    for source in unit.sources:
        source.announce(end - first)
    try:
        for index in range(first, end):
            step(*_first(steps, index), *reads)
    finally:
        for source in unit.sources:
            source.release()


def _watched(unit: Unit, steps: int | Tensor, index: int, step: Callable[..., None], reads: Sequence[Any]) -> Uses:
    """Take a step call by call, and return what it uses.

    Raises
    ------
    NotRepeatableError
        After the step, if the host waits for the device in it.
    """
    counts, noted, waits = [source.count for source in unit.sources], [one.counts for one in unit.noting], Waits()
    for source in unit.sources:
        source.announce(1)
        # Otherwise its own copy to the device would be found.
        source.prepare()
    try:
        with waits:
            step(*_first(steps, index), *reads)
    finally:
        for source in unit.sources:
            source.release()
    if waits.found:
        raise NotRepeatableError(f"the host waits for the device in it ({waits.found[0]})")
    return Uses(
        [source.count - before for source, before in zip(unit.sources, counts, strict=True)],
        [one.counts - before for one, before in zip(unit.noting, noted, strict=True)],
    )


def _first(steps: int | Tensor, index: int) -> list[Tensor]:
    """Return the first argument of a step, its rows, if it has any."""
    return [] if isinstance(steps, int) else [steps[index]]


def _table(values: Tensor, steps: int, device: torch.device) -> Tensor:
    return torch.zeros((steps, *values.shape[1:]), dtype=values.dtype, device=device)


def _kind_of_steps(steps: int | Tensor) -> Hashable:
    return None if isinstance(steps, int) else tuple(steps.shape[1:])
