"""What one rank of a run has: its participants, with their data and models, and what all ranks know alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedh2l_mpi import methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated as federation
from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods import batched
from fedh2l_mpi.models import mixed_precision
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning import memory_check
from fedh2l_mpi.rng import Purpose, torch_seed
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Topology


@dataclass(frozen=True)
class RankSetup:
    """A rank's part of a run, before its first round.

    Attributes
    ----------
    device : torch.device
        Where data and models are.
    topology, plan, method : Topology, federation.Plan, methods.Method
        The same on every rank.
    federation : federation.Federation
        Seed set and test sets, which every rank has whole, and the hosted participants' samples.
    array : ArraySpec or None
        What participants publish; None: nothing is ever exchanged.
    participants : list of Participant
        Those hosted here, in the order of their numbers.
    learners : sequence of Participant
        Who steps: each of them, or several as a cohort.
    """

    device: torch.device
    topology: Topology
    plan: federation.Plan
    method: methods.Method
    federation: federation.Federation
    array: ArraySpec | None
    participants: list[Participant]
    learners: Sequence[Participant]

    @property
    def private_samples(self) -> tuple[int, ...]:
        """How many private training samples each participant of the run has, (P,)."""
        return tuple(len(share.private) for share in self.plan.shares)


def load(config: Config, world: World, hosting: Hosting, device: torch.device) -> RankSetup:
    """This rank's data, models and graph, of a resolved config. **Collective.**

    Raises
    ------
    UserError
        On every rank alike, if data, models or graph do not fit the config, or a device is too small.
    """
    return world.together(lambda: _loaded(config, world, hosting, device))


def _loaded(config: Config, world: World, hosting: Hosting, device: torch.device) -> RankSetup:
    if config.optimizer.precision == "bfloat16":
        mixed_precision.refuse_without_hardware(device)
    models.check_weights(config.weights, [config.architecture(index) for index in range(config.size)])
    topology = Topology(config.topology, config.size, config.seed, config.rounds)
    plan = federation.plan(config, open_source(config.data.name, config.data.root))
    here, method = hosting.participants_of(world.rank), methods.build(config)
    memory_check.check_memory(config, plan, method, topology, world, device)
    samples = federation.load(plan, here, device, method.pools_private_data)
    participants = [_participant(index, config, plan, samples, method.shares_parameters) for index in here]
    array = method.array(participants[0], plan.seed_samples_per_round, plan.classes)
    together = batched.may_batch(config, method.takes_batches)
    return RankSetup(
        device=device,
        topology=topology,
        plan=plan,
        method=method,
        federation=samples,
        array=array.coded(config.exchange) if array is not None else None,
        participants=participants,
        learners=batched.training_units(participants) if together else participants,
    )


def _participant(
    index: int, config: Config, plan: federation.Plan, samples: federation.Federation, begin_alike: bool
) -> Participant:
    architecture, source = config.architecture(index), plan.source
    # Averages of weights make sense where all began with the same.
    seed = torch_seed(config.seed, Purpose.INITIALISATION, 0 if begin_alike else index)
    weights = config.weights.get(architecture)
    return Participant(
        index,
        architecture,
        models.build(architecture, source.channels, source.side, source.classes, seed, weights),
        samples.private[index],
        samples.validation[index],
        config.optimizer,
        config.evaluation,
        config.seed,
        AUGMENTATIONS[config.data.augmentation],
    )
