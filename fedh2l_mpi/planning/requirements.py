"""What a run will need, from its config and data: one model of each architecture is built, none is trained.

Compared with the memory of the device, or of the node, before the first round.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedh2l_mpi import losses, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.labelled import Labelled, Normalisation
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods import Method, batched
from fedh2l_mpi.models import batched_linear
from fedh2l_mpi.models.flat_parameters import shared_bytes
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning.memory import Holdings, ModelSize, RankMemory, rank_memory
from fedh2l_mpi.planning.traffic import Links, MessageSize, links
from fedh2l_mpi.runtime.devices import choose_device
from fedh2l_mpi.runtime.units import size as readable
from fedh2l_mpi.runtime.world import Hosting, World
from fedh2l_mpi.topology import Topology

log = logging.getLogger("fedh2l_mpi")


def architectures(config: Config) -> Counter[str]:
    """How many participants have each architecture of a resolved config, in the order of their first."""
    return Counter(map(config.architecture, range(config.size)))


def zoo(config: Config, source: Source) -> dict[str, nn.Module]:
    """One model of each architecture of a resolved config, on the CPU.

    Raises
    ------
    UserError
        If one is unknown or does not fit the data.
    """
    names = architectures(config)
    models.check_weights(config.weights, list(names))
    return {
        name: models.build(name, source.channels, source.side, source.classes, 0, config.weights.get(name))
        for name in names
    }


def model_size(model: nn.Module, source: Source) -> ModelSize:
    """What one copy takes, and what its passes over a sample keep; counted in two small passes on the CPU.

    The tensors that autograd keeps for the backward pass are counted as it keeps them, whatever made them; parameters
    and buffers are not among them. Not counted: what a convolution or a matrix product needs inside, such as cuDNN's
    workspace.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept, largest = _activations(model, source)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable_bytes=sum(parameter.nbytes for parameter in trainable),
        state_bytes=sum(value.nbytes for value in [*model.parameters(), *model.buffers()]),
        shared_bytes=shared_bytes(model),
        kept_bytes=kept,
        largest_bytes=largest,
        tensors=len(model.state_dict()),
        stacks=batched_linear.chain(model) is not None,
    )


def _activations(model: nn.Module, source: Source) -> tuple[int, int]:
    """Bytes kept for the backward pass, and of the largest tensor, each of one sample."""
    # Of a copy: running statistics move in a training pass. The difference leaves out what does not grow with samples.
    with torch.random.fork_rng(devices=[]):
        scratch = copy.deepcopy(model).train()
        few, more = (_pass(scratch, source, samples) for samples in (2, 4))
    return (more[0] - few[0]) // 2, (more[1] - few[1]) // 2


def _pass(model: nn.Module, source: Source, samples: int) -> tuple[int, int]:
    own = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    # Tensors are held until the end: another one at the address of one that is gone would be taken for it.
    kept: dict[int, Tensor] = {}
    largest = 0

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    def see(module: nn.Module, given: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    hooks = [module.register_forward_hook(see) for module in model.modules()]
    images = torch.zeros(samples, source.channels, source.side, source.side)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        losses.cross_entropy(model(images), torch.zeros(samples, dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    sizes = [value.untyped_storage().nbytes() for value in kept.values()]
    return sum(sizes), max(largest, *sizes, 0)


def stand_in(config: Config, source: Source, model: nn.Module, samples: int = 1) -> Participant:
    """A participant 0 with this model and random data, for what a method wants to know of a model, or takes.

    The model becomes its own: its parameters move into one vector.
    """
    data = random_samples(source, samples)
    augment = AUGMENTATIONS[config.data.augmentation]
    return Participant(0, "", model, data, data, config.optimizer, config.evaluation, config.seed, augment)


def random_samples(source: Source, samples: int) -> Labelled:
    """Images and labels of the kind that a data set's are, drawn at random."""
    draw = torch.Generator().manual_seed(0)
    shape = (samples, source.channels, source.side, source.side)
    labels = torch.randint(source.classes, (samples,), generator=draw)
    if source.domains is None:
        images = torch.randn(shape, generator=draw).contiguous(memory_format=torch.channels_last)
        return Labelled(images, labels)
    stored = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    normalisation = Normalisation.of(source, torch.device("cpu"))
    return Labelled(stored.contiguous(memory_format=torch.channels_last), labels, normalisation)


@dataclass(frozen=True)
class Needs:
    """What footprint's arithmetic needs to know of a run.

    Attributes
    ----------
    models : dict of str to ModelSize
        By architecture.
    message : MessageSize or None
        None: nothing is exchanged.
    """

    config: Config
    method: Method
    holdings: Holdings
    models: dict[str, ModelSize]
    message: MessageSize | None

    def memory(self, hosting: Hosting, graph: Links, on_host: bool = False) -> RankMemory:
        """Bytes of every rank; `on_host` if the device is known to be the host."""
        return rank_memory(
            self.config,
            hosting,
            self.holdings,
            self.models,
            graph,
            self.message,
            self.method.pools_private_data,
            self.method.keeps_published,
            batched.MEMBERS if batched.may_form(self.config, self.method.takes_cohorts) else 1,
            self.method.takes_theirs_one_by_one,
            on_host,
        )

    @property
    def kept_bytes(self) -> int:
        """What is kept of each participant from round to round, by the method or to skip unchanged rows [bytes]."""
        arrays = self.method.keeps_published + (self.config.exchange.skip_below is not None)
        return arrays * self.message.held_bytes if self.message is not None else 0

    def sharing_bytes(self, graph: Links) -> float:
        """What sharing parameters over the same edges would take in a round [bytes]."""
        shared = [self.models[self.config.architecture(index)].shared_bytes for index in range(self.config.size)]
        return float(graph.degree_P @ np.array(shared, dtype=np.float64))


def needs(config: Config, source: Source, method: Method, held: Holdings) -> Needs:
    """Of a resolved config.

    Raises
    ------
    UserError
        If a model is unknown, does not fit the data or cannot be trained on minibatches of the size they have, or the
        codec does not fit what is exchanged.
    """
    built = zoo(config, source)
    _refuse_single_samples(config, source, method, held, built)
    sizes = {name: model_size(model, source) for name, model in built.items()}
    model = built[config.architecture(0)]
    array = method.array(stand_in(config, source, model), held.seed_per_round, source.classes)
    message = None
    if array is not None:
        array = array.coded(config.exchange)
        fixed = array.message_bytes(0)
        is_coded = not array.codec.exact or array.skip_below is not None
        message = MessageSize(fixed, array.message_bytes(1) - fixed, array.held_bytes, is_coded)
    return Needs(config, method, held, sizes, message)


def _refuse_single_samples(
    config: Config, source: Source, method: Method, held: Holdings, built: dict[str, nn.Module]
) -> None:
    """Refuse a model that cannot be trained on one sample, as BatchNorm of a single pixel, where a minibatch is one."""
    steps, optimizer = config.method, config.optimizer
    for name, model in built.items():
        own = [held.private_P[index] for index in range(config.size) if config.architecture(index) == name]
        private = sum(held.private_P) if method.pools_private_data else min(own)
        minibatches = [min(optimizer.batch_size, private)] if steps.local_steps + steps.mutual_steps else []
        if method.trains_on_seed_set and steps.mutual_steps:
            minibatches.append(min(optimizer.seed_batch_size, held.seed_per_round))
        if 1 not in minibatches:
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                _pass(copy.deepcopy(model).train(), source, samples=1)
        except (ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                f"models: {name!r} cannot be trained on a minibatch of one sample ({error}), which this run has; raise "
                "optimizer.batch_size, optimizer.seed_batch_size or seed_set.samples_per_round to 2 or more, and give "
                "every participant as many private samples"
            ) from None


def holdings(plan: federated.Plan) -> Holdings:
    """Who holds how many samples."""
    return Holdings(
        private_P=np.array([len(share.private) for share in plan.shares]),
        validation_P=np.array([len(share.validation) for share in plan.shares]),
        seed=len(plan.seed),
        seed_per_round=plan.seed_samples_per_round,
        tests=[len(test) for test in plan.tests],
        classes=plan.classes,
        stored_bytes=plan.image_bytes() + 8,
        input_bytes=plan.source.input_bytes,
    )


@dataclass(frozen=True)
class Place:
    """Where memory is needed.

    Attributes
    ----------
    rank : int
    device : str
        Such as `cuda:0`.
    free_bytes, total_bytes : int
        Of the device, before this rank puts anything there.
    sharers : int
        Ranks that use the device, this one among them.
    """

    rank: int
    device: str
    free_bytes: int
    total_bytes: int
    sharers: int = 1


def refuse_if_too_large(place: Place, parts: dict[str, int], needed_bytes: int) -> None:
    """Refuse a run whose rank, or ranks together, need more than the device has.

    Parameters
    ----------
    parts : dict
        What this rank needs, by kind, for the message [bytes].
    needed_bytes : int
        What all ranks need that use the device [bytes].

    Raises
    ------
    UserError
        With both numbers and the way out.
    """
    # The others of a shared device may have begun to fill it.
    available, word = (place.free_bytes, "free") if place.sharers == 1 else (place.total_bytes, "there in all")
    if needed_bytes <= available:
        return
    told = ", ".join(f"{kind} {readable(count)}" for kind, count in parts.items() if count)
    who = f"rank {place.rank} needs" if place.sharers == 1 else f"{place.sharers} ranks need"
    raise UserError(
        f"devices: {who} an estimated {readable(needed_bytes)} on {place.device}, where {readable(available)} are "
        f"{word} (of rank {place.rank}: {told}); host fewer participants a rank (more ranks, on other devices), or "
        "lower optimizer.batch_size, optimizer.seed_batch_size or evaluation.batch_size"
    )


def check_memory(
    config: Config, plan: federated.Plan, method: Method, topology: Topology, world: World, device: torch.device
) -> RankMemory | None:
    """Compare what this rank will put on its device with what is free there; on a CPU, warn where a node is too small.

    Called before data and models are loaded. Activations are those that autograd keeps of the largest minibatch, and
    twice the largest tensor beside them for the backward pass, or four times the largest tensor of an evaluation's
    forward pass; gradients are as many vectors as the methods were seen to hold at once. Workspaces of CUDA's libraries
    and what its caching allocator wastes are not counted, so a run that only just fits may still fail.

    Returns
    -------
    RankMemory or None
        None where another rank of this node looks.

    Raises
    ------
    UserError
        If it does not fit on a CUDA device.
    """
    node = world.ranks_here
    if device.type != "cuda" and world.rank != node[0]:
        return None
    hosting = Hosting(config.size, world.size)
    run = needs(config, plan.source, method, holdings(plan))
    memory = run.memory(hosting, links(topology.graph(0).edges, hosting), on_host=device.type != "cuda")
    if device.type != "cuda":
        warn_if_node_too_small(world.host, node, memory, available_bytes())
        return memory
    free, total = torch.cuda.mem_get_info(device)
    sharers = _sharers(config, node, str(device)) if config.devices.share else [world.rank]
    place = Place(world.rank, str(device), free, total, len(sharers))
    device_parts = {kind: memory.parts(world.rank)[kind] for kind in ("data", "models", "optimisers", "step")}
    refuse_if_too_large(place, device_parts, int(memory.on_device[sharers].sum()))
    return memory


def _sharers(config: Config, node: list[int], device: str) -> list[int]:
    """The ranks of this node that use a device."""
    visible = torch.cuda.device_count()
    return [
        rank
        for local_rank, rank in enumerate(node)
        if choose_device(config.devices, local_rank, len(node), visible) == device
    ]


def warn_if_node_too_small(host: str, ranks: Iterable[int], memory: RankMemory, available: int | None) -> None:
    """Warn in the log where the ranks of a node will together need more host memory than is available.

    Parameters
    ----------
    available : int or None
        From `available_bytes`: what the processes hold already is no longer in it.
    """
    needed = int((memory.total - memory.bookkeeping)[list(ranks)].sum())
    if available is not None and needed > available:
        log.warning(
            f"the ranks on {host} will need an estimated {readable(needed)} more for data, models, optimisers, "
            f"messages and steps, but {readable(available)} of memory are available there: the node may run out of "
            "memory; use more nodes, or host fewer participants on each"
        )


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory of this machine that processes can still get, from MemAvailable [bytes]; None where it is not told."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None
