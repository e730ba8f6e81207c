"""Base class of learning methods: the interface to the round loop, and the defaults that most methods share.

Shape letters: B minibatch, N neighbours, S seed rows of the round, C classes, K gradients, W weights of the model. A
published array has rows and columns.
"""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedh2l_mpi import losses
from fedh2l_mpi.config import MethodConfig
from fedh2l_mpi.config.method import (
    CombineOptions,
    DPsgdOptions,
    LabelOptions,
    LocalLabelOptions,
    OwnMethodOptions,
    PublishOptions,
)
from fedh2l_mpi.errors import DivergedError, UserError
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods.gradients import COMBINERS, InnerProducts, nearest_in_cone
from fedh2l_mpi.methods.notes import declared_notes
from fedh2l_mpi.methods.options import checked_options
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import REMEDY, Participant


class Method:
    """Base class of learning methods.

    A subclass defines what is exchanged (`array`, `publish`) and how participants learn (`local_phase`,
    `mutual_phase`). One object serves all participants of a rank, so a method stores its state in `participant.kept`.
    Both phases together make `local_steps + mutual_steps` optimiser steps per round, so that methods compare fairly.

    Parameters
    ----------
    config : MethodConfig
        The method's options: section `method` of the config, as an object of the method's own class of options.
    labelled : bool
        True if the seed labels may be used.

    Attributes
    ----------
    options : mapping
        In a class, the names and defaults of its own options, in addition to those of its base classes. In an object,
        their values: the defaults, replaced by those of the key `method.options`.

    notes : mapping
        In a class, the names and meanings of its own numbers that it passes to `participant.note`, in addition to those
        of its base classes; a meaning may end with a unit, such as `[s]`. In an object, those of all its classes. Each
        becomes an array (round, participant) of the run.

    Raises
    ------
    UserError
        If `method.options` has a name that the class does not declare or a value of another kind than its default, or
        if the options need seed labels and there are none.
    """

    options: Mapping[str, Any] = MappingProxyType({})
    notes: Mapping[str, str] = MappingProxyType({})

    # Participants exchange parameters, so all need one architecture and start with the same weights. They publish the
    # trained weights, and an average of the weights (`optimizer.average`) moves once a round, after the exchange.
    shares_parameters = False
    # Every participant averages with all others, so the graph must be complete.
    needs_complete_graph = False
    # In the mutual phase, everyone adopts the same mean, which a rank computes once (`mean`, `adopt`).
    averages_everyone = False
    # Every participant trains on the private data of all.
    pools_private_data = False
    # A row of the published array belongs to a class instead of a seed sample.
    publishes_classes = False
    # Some steps use seed minibatches, so a model that cannot train on one sample is refused if one has a single sample.
    trains_on_seed_set = False
    # Every participant keeps a copy of the array that it published; the memory estimate counts it.
    keeps_published = False
    # The copy is dropped before the round ends, so checkpoints do not contain it.
    drops_published = False
    # The mutual phase moves the neighbours' arrays to the device one at a time, and gets one participant at a time; the
    # memory estimate counts one array instead of all.
    takes_theirs_one_by_one = False
    # One phase makes all E + M steps; `plan` times fewer steps there, and scales the time up.
    all_steps_in: Literal["local", "mutual"] | None = None
    # The method supports `method.combine: gem_neighbours`, a constraint for each neighbour, by `step_within_cone`.
    constrains_each_neighbour = False
    # Both phases accept `BatchedParticipants` in place of a participant; if the method takes the neighbours' arrays one
    # at a time, only the local phase needs to.
    takes_batches = False
    # Steps taken by `participant.repeat` depend on its arguments and the models alone, so they can be recorded and
    # replayed (`devices.graphs`). A subclass must set it again.
    records_steps = False
    # Warning that is printed when a run starts.
    caution = ""

    def __init_subclass__(cls) -> None:
        """Reset inherited flags about phases and steps that the subclass replaces: it must set them again."""
        super().__init_subclass__()
        cls.records_steps = vars(cls).get("records_steps", False)
        if {"local_phase", "mutual_phase", "local_step"} & vars(cls).keys():
            cls.constrains_each_neighbour = vars(cls).get("constrains_each_neighbour", False)
            cls.takes_batches = vars(cls).get("takes_batches", False)
        if "mutual_phase" in vars(cls):
            cls.averages_everyone = vars(cls).get("averages_everyone", False)

    def __init__(self, config: MethodConfig, labelled: bool) -> None:
        self.config, self.labelled = config, labelled
        self.options = checked_options(type(self), config)
        self.notes = declared_notes(type(self), config.name)
        if self.uses_local_labels and not labelled:
            raise UserError(
                "method.local_labels: got 'private_and_seed', but seed_set.labelled is false. Fix: set it to true, or "
                "method.local_labels to private."
            )

    def check_model(self, architecture: str, model: nn.Module, classes: int) -> None:
        """Raise `UserError` if participants with this model could not learn by the method; any model can by default."""

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec | None:
        """Return the name and shape of the array that a participant publishes, or None if nothing is ever exchanged.

        Parameters
        ----------
        participant : Participant
            Any participant; if parameters are shared, all have the same shape.
        samples, classes : int
            S, rows of a round (its seed samples times the views of each), and C.
        """
        return None

    def exchanges_in(self, round_index: int) -> bool:
        """Return True if participants publish in this round; the answer must depend on the round alone."""
        return True

    @property
    def publishes_first(self) -> bool:
        """True if the exchange starts before the local phase, which then hides it; False if it starts after it."""
        return not isinstance(self.config, PublishOptions | DPsgdOptions) or self.config.publish == "start"

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return the array for the neighbours, float32 (rows, columns) in host memory.

        Nothing may write to it until the round ends. The loop copies a view of the participant's own parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} defines array(), so it must define publish(), too")

    def published(self, participant: Participant, now: Round) -> Tensor:
        """Return what `publish` returns within `publishing`, copied if it is a view of the participant's parameters.

        Neighbours on this rank get it without a further copy, while the participant learns on.
        """
        with self.publishing(participant):
            array = self.publish(participant, now)
            if not isinstance(array, Tensor):
                raise TypeError(f"publish() returned a {type(array).__name__}, must return a float32 tensor")
            return array.clone() if participant.parameters.share_memory_with(array) else array

    def publishing(self, participant: Participant) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a participant publishes: its model holds the weights that publish.

        These are the averaged weights, if there are any; the trained ones if parameters are exchanged, because the
        others' parameters are mixed into those.
        """
        return contextlib.nullcontext() if self.shares_parameters else participant.averaged()

    def evaluating(self, participant: Participant) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a participant is evaluated, on test and validation samples.

        The model holds the averaged weights in it, if there are any.
        """
        return participant.averaged()

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E steps on private minibatches, and on seed labels too if `method.local_labels` says so.

        In both phases, `participant` may be a batch of participants (`TrainingUnit`) if `takes_batches` is True.
        """
        participant.begin(now.index, phase=0)
        self.labelled_steps(participant, now, self.config.local_steps)

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps with the neighbours' arrays.

        Parameters
        ----------
        theirs : float32 tensor (N, rows, columns)
            Arrays in host memory, in the order of `now.graph.neighbours[participant.index]`. N is 0 without neighbours
            and in a round without an exchange.
        """
        raise NotImplementedError(f"{type(self).__name__} must define mutual_phase()")

    def mean(self, states: Mapping[int, Tensor], now: Round, device: torch.device) -> Tensor:
        """Return the mean that every participant adopts, float32 (columns,), if `averages_everyone`.

        Parameters
        ----------
        states : mapping
            From every participant of the run to its published row, float32 (columns,) in host memory.
        device : torch.device
            Where the mean is computed and returned.
        """
        raise NotImplementedError(f"{type(self).__name__} sets averages_everyone, so it must define mean()")

    def adopt(self, participant: Participant, mean: Tensor) -> None:
        """Replace a participant's parameters by the mean, if `averages_everyone`."""
        raise NotImplementedError(f"{type(self).__name__} sets averages_everyone, so it must define adopt()")

    @property
    def second_model(self) -> str | None:
        """Architecture of a model that every participant trains next to its own; the memory estimate counts it."""
        return None

    @property
    def phase_memory(self) -> PhaseMemory:
        """Tensors that the phases hold on the device, for the memory estimate.

        A rule for two gradients holds both of them. A user's own method may do so with any options.
        """
        config = self.config
        apart = isinstance(config, CombineOptions) and config.combine != "joint"
        return PhaseMemory(gradients=2 if apart or isinstance(config, OwnMethodOptions) else 1)

    @property
    def uses_local_labels(self) -> bool:
        """True if the steps before the mutual phase use seed labels as well."""
        return isinstance(self.config, LocalLabelOptions) and self.config.local_labels == "private_and_seed"

    @property
    def phase_steps(self) -> tuple[int, int]:
        """Optimiser steps of a round in the local and in the mutual phase."""
        local, mutual = self.config.local_steps, self.config.mutual_steps
        if self.all_steps_in == "local":
            return local + mutual, 0
        return (0, local + mutual) if self.all_steps_in == "mutual" else (local, mutual)

    @property
    def seed_steps(self) -> int:
        """Number of a round's steps that use a seed minibatch."""
        mutual = self.config.mutual_steps if self.trains_on_seed_set or self.uses_local_labels else 0
        return mutual + (self.config.local_steps if self.uses_local_labels else 0)

    @property
    def corrects_priors(self) -> bool:
        """True if losses leave out the prior of the labels that they are computed on."""
        return self.config.prior_correction == "balanced"

    def mutual_minibatches(self, participant: Participant, now: Round) -> Tensor:
        """Return rows of the round's seed samples for each of the M mutual steps, int64 (M, B).

        If the E local steps use seed labels, they use the first minibatches of the round, and these are the next ones.
        """
        before = self.config.local_steps if self.uses_local_labels else 0
        return participant.seed_minibatches(len(now.seed), now.index, self.config.mutual_steps, before)

    def private_loss(self, participant: Participant) -> Tensor:
        """Return the loss on the next private minibatch, in nats. Gradients flow into the model."""
        images, labels = participant.private_minibatch()
        return self.private_loss_of(participant, participant.model(images), labels)

    def private_loss_of(self, participant: Participant, own_logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the loss on a private minibatch from its logits, in nats, and note it.

        It is CE(z + tau log pi, y) with the prior pi of the private training labels if `method.prior_correction` is
        balanced, else CE(z, y). The labels are smoothed by `optimizer.label_smoothing`, after the correction.
        """
        loss = self.label_loss(participant, own_logits_BC, labels_B)
        participant.note("loss_private", loss)
        return loss

    def label_loss(self, participant: Participant, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the loss of `private_loss_of` for logits of any model, without noting it."""
        if self.corrects_priors:
            log_prior_C = participant.log_prior(logits_BC.shape[-1])
            logits_BC = losses.under_prior(logits_BC, log_prior_C, self.config.prior_strength)
        return losses.cross_entropy(logits_BC, labels_B, smoothing=participant.label_smoothing)

    def seed_loss(
        self,
        participant: Participant,
        now: Round,
        own_logits_BC: Tensor,
        rows_B: Tensor,
        extra_B: Tensor | None = None,
    ) -> Tensor:
        """Return w_ce times the loss on a seed minibatch from its logits, in nats, and note the loss itself.

        The loss is CE(z + tau log pi_S, y) with the prior pi_S of the whole seed set if `method.prior_correction` is
        balanced, else CE(z, y). The targets, mixed ones included, are smoothed by `optimizer.label_smoothing`. A
        method without the key `weight_ce` has w_ce = 1.

        Parameters
        ----------
        extra_B : float tensor (B,)
            Weight that each sample's loss has in addition to w_ce.
        """
        own_logits_BC, targets = self.under_seed_prior(now, own_logits_BC), now.seed.targets[rows_B]
        smoothing = participant.label_smoothing
        loss = losses.cross_entropy(own_logits_BC, targets, smoothing=smoothing)
        participant.note("loss_seed", loss)
        weighted = loss if not isinstance(self.config, LabelOptions) else self.config.weight_ce * loss
        if extra_B is None:
            return weighted
        return weighted + losses.cross_entropy(own_logits_BC, targets, extra_B, smoothing)

    def label_terms(self, participant: Participant, now: Round, rows_B: Tensor) -> Callable[[Tensor], list[Tensor]]:
        """Return the seed terms of a step with seed labels and without teachers, for `paired_step`."""
        return lambda own_logits_BC: [self.seed_loss(participant, now, own_logits_BC, rows_B)]

    def under_seed_prior(self, now: Round, own_logits_BC: Tensor) -> Tensor:
        """Return z + tau log pi_S, the scores for a loss on seed samples; z without correction or without labels."""
        if not (self.corrects_priors and self.labelled):
            return own_logits_BC
        return losses.under_prior(own_logits_BC, now.seed_set.log_prior, self.config.prior_strength)

    def seed_prior(self, now: Round) -> Tensor:
        """Return tau log pi_S (C,), what `under_seed_prior` adds to any logits; 0 without correction."""
        return self.under_seed_prior(now, torch.zeros(now.seed_set.classes, device=now.seed.inputs.device))

    def private_steps(self, participant: Participant, steps: int) -> None:
        """Take optimiser steps on private minibatches."""
        participant.repeat(steps, lambda: participant.step(participant.gradient(self.private_loss(participant))))

    def labelled_steps(self, participant: Participant, now: Round, steps: int) -> None:
        """Take a round's first steps on private minibatches, and on seed labels if `method.local_labels` says so."""
        if not self.uses_local_labels:
            self.private_steps(participant, steps)
        else:
            self.label_steps(participant, now, participant.seed_minibatches(len(now.seed), now.index, steps))

    def label_steps(self, participant: Participant, now: Round, rows_MB: Tensor) -> None:
        """Take a step on private data and seed labels for each minibatch of the round's seed samples, int64 (M, B)."""

        def step(rows_B: Tensor, now: Round) -> None:
            self.paired_step(participant, now, rows_B, self.label_terms(participant, now, rows_B))

        participant.repeat(rows_MB, step, now)

    def paired_step(
        self, participant: Participant, now: Round, rows_B: Tensor, seed_terms: Callable[[Tensor], list[Tensor]]
    ) -> None:
        """Take one step on a private and a seed minibatch, by the rule `method.combine`; `joint` without that key.

        Parameters
        ----------
        rows_B : int64 (B,)
            Rows of the round's seed samples.
        seed_terms : callable
            From the logits (B, C) of these samples to the terms of the seed loss, at least one. Under the rule
            `gem_neighbours`, each term is a constraint; otherwise, only their sum matters.
        """
        combine = self.config.combine if isinstance(self.config, CombineOptions) else "joint"
        if combine == "joint":
            participant.step(participant.gradient(self.joint_loss(participant, now, rows_B, seed_terms)))
            return
        g_private = participant.gradient(self.private_loss(participant))
        terms = seed_terms(participant.model(now.seed.inputs[rows_B]))
        if combine == "gem_neighbours":
            self.step_within_cone(participant, g_private, [participant.gradient(term, True) for term in terms])
        else:
            self.combined_step(participant, g_private, participant.gradient(torch.stack(terms).sum(dim=0)))

    def joint_loss(
        self, participant: Participant, now: Round, rows_B: Tensor, seed_terms: Callable[[Tensor], list[Tensor]]
    ) -> Tensor:
        """Return the sum of the private and the seed loss, from one forward pass of both minibatches."""
        inputs, labels_B = participant.private_minibatch()
        axis = labels_B.dim() - 1
        logits = participant.model(torch.cat([inputs, now.seed.inputs[rows_B]], dim=axis))
        private, seed = logits.split([labels_B.shape[-1], rows_B.shape[-1]], dim=axis)
        return self.private_loss_of(participant, private, labels_B) + torch.stack(seed_terms(seed)).sum(dim=0)

    def combined_step(self, participant: Participant, g_private: Tensor, g_seed: Tensor) -> None:
        """Take one step along a combination of the two gradients: `method.combine`, or their sum without that key."""
        products = self._noted_products(participant, g_private, g_seed)
        rule = self.config.combine if isinstance(self.config, CombineOptions) else "sum"
        # The gradient of the summed losses is the sum of the gradients, however it was computed.
        a, b = COMBINERS["sum" if rule == "joint" else rule](products)
        participant.step(g_private.mul_(a[..., None]).add_(g_seed.mul_(b[..., None])))

    def step_within_cone(self, participant: Participant, g_private: Tensor, g_terms: list[Tensor]) -> None:
        """Take one step along the vector nearest to the sum of the gradients that, to first order, raises no loss."""
        gradients_KW = torch.stack([g_private, *g_terms])
        self._noted_products(participant, g_private, gradients_KW[1:].sum(dim=0))
        gram_KK = gradients_KW @ gradients_KW.T
        if not torch.isfinite(gram_KK).all():
            raise DivergedError(f"participant {participant.index} diverged: a gradient is not finite. {REMEDY}")
        participant.step(nearest_in_cone(gram_KK) @ gradients_KW)

    @staticmethod
    def _noted_products(participant: Participant, g_private: Tensor, g_seed: Tensor) -> InnerProducts:
        products = InnerProducts.of(g_private, g_seed)
        participant.note("gradient_cosine", products.cosine)
        participant.note("conflict_rate", products.conflict)
        return products
