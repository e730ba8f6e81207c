"""Ways to make small models faster on a GPU: the program's own, and prototypes that say what is possible.

The program's ways are runs (`ratios.py`). The prototypes train G models of one architecture on minibatches of 32
images of 28 x 28, by SGD with momentum, with their parameters in one flat vector each, as in the program. Every
prototype makes the same steps; the weights are compared, too.

    eager        one model after the other; row numbers lie on the device
    graph, all   the steps of all models captured in one CUDA graph
    vmap         one step of all models by torch.func.vmap
    vmap, graph  that step captured in a graph
"""

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.findings import DEVICE, FAIL, INFO, ON_GPU, SKIP, TINY, Report
from benchmarks.gpu.stopwatch import seconds_of, short
from fedh2l_mpi.sample_form import SampleForm

BATCH, SAMPLES, SIDE, CLASSES = 32, 1000, 28, 10
LR, MOMENTUM = 0.01, 0.9
# CUDA wants work to run a few times before it is captured.
CAPTURE_WARM_UP = 3
# Rounds of the program's runs; those of `python -m benchmarks.gpu` are longer.
ROUNDS = 5


class Fleet:
    """G models with their data on the device.

    Attributes
    ----------
    rows : Tensor
        Every model's minibatch, int64 (G, B), on the device.
    """

    def __init__(self, name: str, count: int) -> None:
        import torch

        from fedh2l_mpi.models import build
        from fedh2l_mpi.models.flat_parameters import FlatParameters

        draw = torch.Generator().manual_seed(0)
        self.count = count
        self.images = torch.randn(count, SAMPLES, 1, SIDE, SIDE, generator=draw).to(DEVICE)
        self.labels = torch.randint(CLASSES, (count, SAMPLES), generator=draw).to(DEVICE)
        rows = [torch.randperm(SAMPLES, generator=draw)[:BATCH] for _ in range(count)]
        self.rows = torch.stack(rows).to(DEVICE)
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

    def step_all(self) -> None:
        """Train every model, one after the other."""
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


def levers(report: Report) -> None:
    """Time a model's step in the program's ways, in which it is compared with a bare loop, and in prototypes."""
    from benchmarks.gpu import ratios

    count = 4 if TINY else 16
    for name in ("lenet5", "mlp"):
        with report.failure_of(f"{name}, the program"):
            _report_program(report, next(case for case in ratios.cases(TINY) if case.name.startswith(f"16 {name}")))
        seconds: dict[str, float] = {}
        with report.failure_of(f"{name}, prototypes"):
            fleet = Fleet(name, count)
            seconds["eager"] = seconds_of(fleet.step_all) / count
            if ON_GPU:
                with report.failure_of(f"{name}, a graph"):
                    seconds["graph, all"] = seconds_of(captured(fleet.step_all).replay) / count
                    _check_graph(report, name)
            with report.failure_of(f"{name}, vmap"):
                seconds |= _vmap_seconds(report, name, count)
        for way, step_s in seconds.items():
            ratio = seconds["eager"] / step_s
            detail = f"{short(step_s)} a model's step, {ratio:.1f} times as fast as eager"
            report.add(f"prototype, {name} x {count}, {way}", INFO, detail, seconds=step_s)
    if not ON_GPU:
        report.add("prototypes of graphs", SKIP, "need CUDA")


def _report_program(report: Report, case: Any) -> None:
    from benchmarks.gpu import ratios

    rows = ratios.measure(case, DEVICE, ROUNDS)
    for row in rows:
        if row.failure:
            report.add(f"{case.name}, {row.way}", FAIL, row.failure)
            continue
        detail = f"{row.steps_per_s:.0f} steps/s, {ratios.over(row, ratios.BARE, rows):.2f} times the bare loop's"
        if row.way not in (ratios.BARE, ratios.ALONE):
            detail += f", {ratios.over(row, ratios.ALONE, rows):.1f} times those of one by one"
        goals = ", ".join(map(str, row.targets))
        report.add(f"{case.name}, {row.way}", INFO, f"{detail}{f' (target: {goals})' if goals else ''}")


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
