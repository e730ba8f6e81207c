"""Rehearse a run with a user's own model or method, before it is planned, submitted or started.

The rehearsal does, on a few random samples, all that a run will do: it stores the parameters in one vector, takes steps
in training, publishes, evaluates, and writes and restores a checkpoint. What a run would find in round 0, or at its
first checkpoint, is found here. So is what would make its numbers depend on the number of ranks, or on a restart.
"""

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedh2l_mpi import losses, methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods import Method, Round, batched
from fedh2l_mpi.metrics import Columns
from fedh2l_mpi.models import mixed_precision
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.rng import global_generators
from fedh2l_mpi.runtime.plugins import Plugin, reporting
from fedh2l_mpi.topology import Graph, Topology

# Samples of a minibatch: enough for every layer, and as few as the memory estimate's passes have.
SAMPLES = 4
# Participants of the rehearsed run: the last one and its neighbours.
PARTICIPANTS = 3
# Two results of training differ if their distance is more than this share of what training changed.
APART = 0.01
# Largest share of the logits' length that rounding makes. A rehearsal runs on a CPU, where tf32 is float32.
ROUNDING = {"float32": 1e-5, "tf32": 1e-5, "bfloat16": 0.02}


@dataclass(frozen=True)
class Minibatches:
    """Smallest sizes of a run's passes for one architecture.

    Attributes
    ----------
    private : int
        Smallest number of private samples of a participant.
    seed : int
        Rows of the seed set in a round.
    evaluates_one : bool
        True if some pass of an evaluation has a single image.
    """

    private: int
    seed: int
    evaluates_one: bool


class Rehearsal:
    """Rehearsal of a run with one architecture.

    Parameters
    ----------
    config : Config
        A resolved config.
    name : str
        The architecture.
    model : nn.Module
        A model of this architecture on the CPU, as `models.build` returns it. It is not changed.
    sizes : Minibatches
        The sizes of minibatches are the run's, if they are below SAMPLES.
    classes : int
    samples : Labelled
        SAMPLES random samples of the source.
    columns : Columns
        The run's own arrays, among them what the method declares to note.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        model: nn.Module,
        classes: int,
        sizes: Minibatches,
        samples: Labelled,
        columns: Columns,
    ) -> None:
        steps = {key: min(1, getattr(config.method, key)) for key in ("local_steps", "mutual_steps")}
        self._config = config.model_copy(update={"method": config.method.model_copy(update=steps)})
        self._name, self._model, self._classes, self._sizes = name, model, classes, sizes
        self._samples, self._columns = samples, columns
        own = [("models", name, models.is_own(name)), ("method.name", config.method.name, self._has_own_method)]
        self._plugins = [Plugin(key, what) for key, what, is_own in own if is_own] or [Plugin("models", name)]
        views = config.seed_set.views_per_sample
        per_round = max(1, min(sizes.seed // views, SAMPLES))
        self._seed_set = SeedSet(samples, per_round, classes, config.seed_set, config.seed)
        self._people = min(config.size, PARTICIPANTS)
        self._shares, self._when = False, ""

    def play(self) -> ArraySpec | None:
        """Play two rounds, and the second one again from a checkpoint; return what participants publish.

        Raises
        ------
        UserError
            If the run would fail, or its numbers would depend on the number of ranks or on a restart.
        """
        with global_generators(0):
            method = self._method()
            self._shares = method.shares_parameters
            if models.is_own(self._name):
                self._try_passes()
            participant = self._participant(self._people - 1)
            with self._doing("asked for what it publishes"):
                array = method.array(participant, len(self._round(0).seed), self._classes)
            if array is not None and not isinstance(array, ArraySpec):
                raise UserError(f"{self._last}: array() returned a {type(array).__name__}, must return an ArraySpec.")
            before = participant.parameters.vector.clone()
            last = self._config.rounds - 1
            self._play_round(method, participant, self._round(0), array)
            stored = self._stored(participant)
            self._play_round(method, participant, self._round(last), array)
            self._try_evaluation(method, participant)
            after = participant.parameters.vector
            del participant
            again = self._replayed(stored, last, array)
            if _differ(again, after, (after - before).norm()):
                raise UserError(
                    f"{self._last}: a step after a resume gives other weights than the same step without it, or on "
                    "another rank. Something is kept outside of checkpoints, or drawn from a generator of its own. "
                    "Fix: keep it in the model's state_dict or in participant.kept, and draw from global generators "
                    "or now.draw."
                )
            if self._has_own_method:
                self._try_without_neighbours(array)
                if batched.may_batch(self._config, method.takes_batches):
                    self._try_batch(array)
        return array

    @property
    def _has_own_method(self) -> bool:
        return methods.is_own(self._config.method.name)

    @property
    def _last(self) -> str:
        return f"{self._plugins[-1].key}: {self._plugins[-1].name!r}"

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        with reporting(f"fails when it is {what}{self._when}", *self._plugins):
            yield

    def _method(self) -> Method:
        return methods.build(self._config)

    def _participant(self, index: int) -> Participant:
        """Return a participant with a copy of the model and random private data."""
        private = self._part(min(self._sizes.private, SAMPLES))
        with self._doing("copied and given to a participant"):
            model = copy.deepcopy(self._model)
            return Participant.of_run(self._config, index, self._name, model, private, private, self._shares)

    def _part(self, samples: int) -> Labelled:
        whole = self._samples
        return Labelled(whole.stored[:samples], whole.labels[:samples], whole.normalisation)

    def _round(self, index: int, is_alone: bool = False) -> Round:
        everyone = range(0 if is_alone else self._people)
        graph = Graph(self._people, [(one, other) for one in everyone for other in everyone if one < other])
        counts = (self._sizes.private,) * self._people
        return Round(index, graph, self._seed_set.of_round(index), counts, self._seed_set, self._config.rounds)

    def _try_passes(self) -> None:
        """Check one pass in training and one in evaluation: the output, and what the passes change."""
        participant, where = self._participant(0), f"models: {self._name!r}"
        model, before = participant.model, _shapes(participant.model)
        participant.begin(0, phase=0)
        images, labels = participant.private_minibatch()
        with self._doing("trained"):
            logits = model(images)
        models.check_logits(self._name, logits, tuple(images.shape), (len(images), self._classes), " in training")
        if not logits.requires_grad:
            raise UserError(f"{where}: its logits in training do not depend on a trainable parameter.")
        with self._doing("trained"):
            participant.gradient(losses.cross_entropy(logits, labels))
        trained = [value for value in model.parameters() if value.requires_grad]
        if list(map(id, trained)) != list(map(id, participant.parameters.trainable)):
            raise UserError(
                f"{where}: a pass in training adds, replaces or freezes parameters, so they would not be trained as "
                "they were. Fix: make them in the constructor, or in the first pass in eval mode."
            )
        after = _shapes(model)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            key = changed[0]
            raise UserError(
                f"{where}: a pass in training changes {key!r} of its state_dict from {before.get(key, 'nothing')} to "
                f"{after.get(key, 'nothing')}, so no checkpoint would fit. Fix: make it whole in the constructor."
            )
        held = [buffer.detach().clone() for buffer in model.buffers()]
        for count in (2, 1) if self._sizes.evaluates_one else (2,):
            some = self._part(count).inputs()
            with self._doing(f"evaluated on inputs of shape {tuple(some.shape)}"):
                logits = participant.logits(some)
            models.check_logits(self._name, logits, tuple(some.shape), (count, self._classes), " in evaluation")
        for (key, now), then in zip(model.named_buffers(), held, strict=True):
            if now.is_floating_point() and not torch.allclose(now, then, rtol=0.0, atol=0.0, equal_nan=True):
                raise UserError(f"{where}: a pass in eval mode changes {key!r}. Fix: check self.training first.")

    def _play_round(self, method: Method, participant: Participant, now: Round, array: ArraySpec | None) -> None:
        """Play a round of one participant, whose neighbours publish what it publishes."""
        theirs = torch.empty(0, 0, 0)
        exchanges = array is not None and method.exchanges_in(now.index)
        if exchanges and method.publishes_first:
            theirs = self._published(method, participant, now, array)
        with self._doing("in its local phase"):
            method.local_phase(participant, now)
        if exchanges and not method.publishes_first:
            theirs = self._published(method, participant, now, array)
        with self._doing("in its mutual phase"):
            method.mutual_phase(participant, now, theirs)
            participant.end_round()
        if strange := self._columns.undeclared(participant.noted):
            raise UserError(
                f"method.name: {self._config.method.name!r} notes {strange[0]!r}, which it does not declare. Fix: add "
                f"it to the class: notes = {{{strange[0]!r}: 'what it is'}}."
            )

    def _published(self, method: Method, participant: Participant, now: Round, array: ArraySpec | None) -> Tensor:
        with self._doing("published"):
            published = method.published(participant, now)
            if array is not None:
                array.check_published(published, participant.index)
            return published.repeat(len(now.graph.neighbours[participant.index]), 1, 1)

    def _try_without_neighbours(self, array: ArraySpec | None) -> None:
        """Play a round without an exchange and a round of a participant without neighbours, if the run has such."""
        if array is None:
            return
        config, method = self._config, self._method()
        silent = next((index for index in range(config.rounds) if not method.exchanges_in(index)), None)
        if silent is not None:
            self._play_round(method, self._participant(0), self._round(silent), array)
        topology = Topology(config.topology, config.size, config.seed, config.rounds)
        may_be_alone = config.faults.participation.kind != "always"
        if may_be_alone or topology.graph(0).degrees().min() == 0:
            self._play_round(self._method(), self._participant(0), self._round(0, is_alone=True), array)

    def _try_batch(self, array: ArraySpec | None) -> None:
        """Play a round of two participants that step together, and compare each with one that steps alone."""
        method, now = self._method(), self._round(0)
        members = [self._participant(index) for index in range(min(2, self._people))]
        together = batched.training_units(members)
        if len(together) == len(members):
            return
        theirs: Tensor = torch.empty(0, 0, 0)
        exchanges, batch = array is not None and method.exchanges_in(0), "given a batch of participants (takes_batches)"
        if exchanges and method.publishes_first:
            theirs = torch.stack([self._published(method, member, now, array) for member in members], dim=1)
        with self._doing(batch):
            method.local_phase(together[0], now)  # type: ignore[arg-type]
        if exchanges and not method.publishes_first:
            theirs = torch.stack([self._published(method, member, now, array) for member in members], dim=1)
        with self._doing(batch):
            method.mutual_phase(together[0], now, theirs)  # type: ignore[arg-type]
        for member in members:
            alone = self._participant(member.index)
            self._play_round(self._method(), alone, now, array)
            if not torch.equal(member.parameters.vector, alone.parameters.vector):
                raise UserError(
                    f"{self._last}: participants that step together get other weights than each alone. Fix: sum over "
                    "samples only, never over participants, or leave takes_batches False."
                )

    def _stored(self, participant: Participant) -> dict[str, Any]:
        """Return a participant's state as a checkpoint gives it back."""
        with self._doing("copied for a checkpoint"):
            state = participant.state()
        for key, place, values in (
            ("models", self._name, state["model"]),
            ("method.name", self._config.method.name, state["kept"]),
        ):
            for entry, value in values.items():
                try:
                    _reread(value)
                # torch.save and torch.load raise whatever pickle does.
                except Exception as error:
                    what = "state_dict" if key == "models" else "participant.kept"
                    raise UserError(
                        f"{key}: {place!r} keeps {entry!r} in {what}, which a checkpoint cannot give back "
                        f"({type(error).__name__}). Allowed: tensors, numbers, texts, and dicts and lists of them."
                    ) from error
        stored: dict[str, Any] = _reread(state)
        return stored

    def _try_evaluation(self, method: Method, participant: Participant) -> None:
        """Evaluate, and compare with a new model that gets the state of a checkpoint."""
        images = self._samples.inputs()
        with self._doing("evaluated"), method.evaluating(participant):
            participant.logits(images)
        with participant.averaged():
            logits = participant.logits(images)
        state = self._stored(participant)
        with self._doing("given the state of a checkpoint"), torch.no_grad():
            model = copy.deepcopy(self._model).eval()
            if self._config.optimizer.precision == "bfloat16":
                mixed_precision.mix(model)
            untrained = model(images)
            model.load_state_dict({**state["model"], **state.get("average", {})})
            expected = model(images)
            rounding = ROUNDING[self._config.optimizer.precision]
        if _differ(logits, expected, (expected - untrained).norm() + rounding / APART * expected.norm()):
            raise UserError(
                f"models: {self._name!r}: a new model with the trained state_dict gives other logits, so a part that "
                "changes in training is not in its state_dict. Fix: register it as a persistent buffer."
            )

    def _replayed(self, stored: dict[str, Any], index: int, array: ArraySpec | None) -> Tensor:
        """Return the weights after a round that follows a resume, with a method that served another participant."""
        method = self._method()
        if self._has_own_method:
            other = self._participant(0)
            for number in (0, index):
                self._play_round(method, other, self._round(number), array)
        self._when = " after a resume"
        participant = self._participant(self._people - 1)
        with self._doing("given the state of a checkpoint"):
            participant.restore(stored)
        self._play_round(method, participant, self._round(index), array)
        self._when = ""
        return participant.parameters.vector


def _reread(value: Any) -> Any:
    """Return what a checkpoint's file gives back for a value."""
    content = io.BytesIO()
    torch.save(value, content)
    content.seek(0)
    return torch.load(content, weights_only=True)


def _shapes(model: nn.Module) -> dict[str, str]:
    return {
        key: f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        for key, value in model.state_dict().items()
    }


def _differ(one: Tensor, other: Tensor, length: Tensor) -> bool:
    """Return True if the distance of two results is more than a share of a length; what is no number is ignored."""
    return bool((one - other).norm() > APART * length)
