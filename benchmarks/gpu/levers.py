"""Ways to make small models faster on a GPU: prototypes outside the program, all on one workload.

G models of one architecture train on minibatches of 32 images of 28 x 28 by SGD with momentum, with their parameters in
one flat vector each, as in the program. Every way makes the same steps; the weights are compared, too.

    eager        one model after the other, as the program does; row numbers come from the host
    rows         the same, with row numbers already on the device: a step does not wait
    graph        every model's step captured in a CUDA graph and replayed
    graph, all   the steps of all models captured in one graph
    streams      the models' graphs replayed on four streams
    vmap         one step of all models by torch.func.vmap
    vmap, graph  that step captured in a graph
    batched      the program's devices.batching=like, where it accepts the model
    compiled     torch.compile; only with GPU_CHECK_COMPILE=1, because compiling takes long
"""

import os
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.findings import DEVICE, INFO, ON_GPU, SKIP, TINY, Report
from benchmarks.gpu.stopwatch import seconds_of, short
from benchmarks.gpu.subjects import config_of, forget_notes, participant_of
from fedh2l_mpi.sample_form import SampleForm

BATCH, SAMPLES, SIDE, CLASSES = 32, 1000, 28, 10
LR, MOMENTUM = 0.01, 0.9
STREAMS = 4
# CUDA wants work to run a few times before it is captured.
CAPTURE_WARM_UP = 3


class Fleet:
    """G models with their data on the device.

    Attributes
    ----------
    host_rows, rows : list of Tensor, Tensor
        Every model's minibatch, int64 (G, B), in host memory and on the device.
    """

    def __init__(self, name: str, count: int) -> None:
        import torch

        from fedh2l_mpi.models import build
        from fedh2l_mpi.models.flat_parameters import FlatParameters

        draw = torch.Generator().manual_seed(0)
        self.count = count
        self.images = torch.randn(count, SAMPLES, 1, SIDE, SIDE, generator=draw).to(DEVICE)
        self.labels = torch.randint(CLASSES, (count, SAMPLES), generator=draw).to(DEVICE)
        self.host_rows = [torch.randperm(SAMPLES, generator=draw)[:BATCH] for _ in range(count)]
        self.rows = torch.stack(self.host_rows).to(DEVICE)
        self.models = [
            build(name, SampleForm.image(1, SIDE), CLASSES, seed).train().to(DEVICE) for seed in range(count)
        ]
        for module in (part for model in self.models for part in model.modules()):
            # vmap rejects layers that change their input, and all ways must compute the same.
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False
        self.flats = [FlatParameters(model) for model in self.models]
        self.velocities = [torch.zeros_like(flat.vector) for flat in self.flats]

    def step(self, index: int, rows: Any) -> None:
        """Train one model on these rows."""
        import torch

        flat = self.flats[index]
        images, labels = self.images[index][rows], self.labels[index][rows]
        gradient = flat.gradient(torch.nn.functional.cross_entropy(self.models[index](images), labels))
        velocity = self.velocities[index].mul_(MOMENTUM).add_(gradient)
        flat.vector.add_(velocity, alpha=-LR)

    def step_all_from_host(self) -> None:
        """Train every model, with row numbers from the host."""
        for index in range(self.count):
            self.step(index, self.host_rows[index].to(DEVICE))

    def step_all(self) -> None:
        """Train every model, with row numbers on the device."""
        for index in range(self.count):
            self.step(index, self.rows[index])

    def weights(self) -> Any:
        """Return a copy of all weights, (G, W)."""
        import torch

        return torch.stack([flat.vector.clone() for flat in self.flats])


def captured(action: Callable[[], None]) -> Any:
    """Return a CUDA graph of `action`, which runs a few times on another stream before."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_WARM_UP):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph


def vmap_step(fleet: Fleet) -> tuple[Callable[[], None], dict[str, Any]]:
    """Return a step of all models at once, and the weights that it moves, by name."""
    import torch
    from torch.func import functional_call, grad, vmap

    model = fleet.models[0]
    names = [name for name, _ in model.named_parameters()]
    weights = {
        name: torch.stack([dict(one.named_parameters())[name].detach() for one in fleet.models]) for name in names
    }
    velocities = {name: torch.zeros_like(value) for name, value in weights.items()}
    numbers = torch.arange(fleet.count, device=DEVICE)[:, None]

    def loss(own: dict[str, Any], images: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(functional_call(model, own, (images,)), labels)

    gradients_of = vmap(grad(loss))

    def step() -> None:
        gradients = gradients_of(weights, fleet.images[numbers, fleet.rows], fleet.labels[numbers, fleet.rows])
        torch._foreach_mul_(list(velocities.values()), MOMENTUM)
        torch._foreach_add_(list(velocities.values()), [gradients[name] for name in names])
        torch._foreach_add_(list(weights.values()), list(velocities.values()), alpha=-LR)

    return step, weights


def batched_step_seconds(name: str, count: int) -> float:
    """Return the seconds of one model's step where the program trains like participants as one batch."""
    from fedh2l_mpi import methods
    from fedh2l_mpi.methods import batched

    keys = ("optimizer.name=sgd", f"optimizer.momentum={MOMENTUM}", "devices.batching=like")
    members = [participant_of(name, 1, SIDE, *keys, index=index, samples=SAMPLES) for index in range(count)]
    (unit,) = batched.training_units(members)
    method, steps = methods.build(config_of(*keys)), 2 if TINY else 10

    def train() -> None:
        method.private_steps(unit, steps)
        for member in members:
            forget_notes(member)

    return seconds_of(train) / steps / count


def levers(report: Report) -> None:
    """Time one model's step in every way, and compare it with the program's way."""
    count = 4 if TINY else 16
    for name in ("lenet5", "mlp"):
        seconds: dict[str, float] = {}
        with report.failure_of(f"{name}, eager"):
            fleet = Fleet(name, count)
            seconds["eager"] = seconds_of(fleet.step_all_from_host) / count
            seconds["rows"] = seconds_of(fleet.step_all) / count
            if ON_GPU:
                with report.failure_of(f"{name}, graphs"):
                    seconds |= _graph_seconds(fleet)
                with report.failure_of(f"{name}, a graph's weights"):
                    _check_graph(report, name)
            with report.failure_of(f"{name}, vmap"):
                seconds |= _vmap_seconds(report, name, count)
            if name == "mlp":
                with report.failure_of(f"{name}, batched"):
                    seconds["batched"] = batched_step_seconds(name, count)
            if os.environ.get("GPU_CHECK_COMPILE") == "1":
                with report.failure_of(f"{name}, compiled"):
                    seconds["compiled"] = _compiled_seconds(name, count)
        for way, step_s in seconds.items():
            ratio = seconds["eager"] / step_s
            detail = f"{short(step_s)} a model's step, {ratio:.1f} times as fast as eager"
            report.add(f"{name} x {count}, {way}", INFO, detail, seconds=step_s)
    if not ON_GPU:
        report.add("graphs and streams", SKIP, "need CUDA")


def _graph_seconds(fleet: Fleet) -> dict[str, float]:
    import torch

    graphs = [captured(lambda i=index: fleet.step(i, fleet.rows[i])) for index in range(fleet.count)]
    streams = [torch.cuda.Stream() for _ in range(STREAMS)]

    def replay() -> None:
        for graph in graphs:
            graph.replay()

    def replay_on_streams() -> None:
        current = torch.cuda.current_stream()
        for stream in streams:
            stream.wait_stream(current)
        for index, graph in enumerate(graphs):
            with torch.cuda.stream(streams[index % STREAMS]):
                graph.replay()
        for stream in streams:
            current.wait_stream(stream)

    actions = {"graph": replay, "streams": replay_on_streams, "graph, all": captured(fleet.step_all).replay}
    return {way: seconds_of(action) / fleet.count for way, action in actions.items()}


def _check_graph(report: Report, name: str) -> None:
    """Make the same steps in a new fleet with and without a graph, and compare the weights."""
    one, other = Fleet(name, 2), Fleet(name, 2)
    graph = captured(lambda: other.step(0, other.rows[0]))
    # Capturing makes no step of its own, but its warm-up does.
    for _ in range(CAPTURE_WARM_UP + 1):
        one.step(0, one.rows[0])
    graph.replay()
    gap = float((one.weights()[0] - other.weights()[0]).abs().max())
    report.check(f"{name}: a graph's steps are the same", gap < 1e-5, "the same bits" if gap == 0 else f"{gap:.1e}")


def _vmap_seconds(report: Report, name: str, count: int) -> dict[str, float]:
    import torch

    fleet = Fleet(name, count)
    step, weights = vmap_step(fleet)
    step()
    fleet.step_all()
    theirs = torch.cat([value.flatten(1) for value in weights.values()], dim=1)
    # Flat vectors hold convolutions channels last; sorting makes the order irrelevant.
    gap = float((theirs.sort(dim=1).values - fleet.weights().sort(dim=1).values).abs().max())
    report.check(f"{name}: vmap's steps are the same", gap < 1e-3, f"weights differ by {gap:.1e} at most")
    seconds = {"vmap": seconds_of(step) / count}
    if ON_GPU:
        seconds["vmap, graph"] = seconds_of(captured(step).replay) / count
    return seconds


def _compiled_seconds(name: str, count: int) -> float:
    import torch

    fleet = Fleet(name, count)
    fleet.models = [torch.compile(model) for model in fleet.models]
    return seconds_of(fleet.step_all) / count
