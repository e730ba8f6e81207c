"""Parts that check, inside one process, that the device computes what the program promises."""

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import bare
from benchmarks.gpu.findings import DEVICE, FAIL, INFO, ON_GPU, PASS, SKIP, TINY, Report
from benchmarks.gpu.runs import has_torchvision, run_here
from benchmarks.gpu.stopwatch import seconds_of
from benchmarks.gpu.subjects import computing_as, config_of, mix_if, participant_of
from fedh2l_mpi.sample_form import SampleForm

# Architecture, channels and side of the images.
MODELS = [("mlp", 1, 28), ("lenet5", 1, 28), ("cnn", 1, 28), ("resnet8", 1, 28), ("vit", 1, 28), ("mobilenet", 3, 64)]
MODELS += [("resnet18", 3, 64 if TINY else 224)]
# PyTorch has no deterministic kernel for the first one's adaptive pooling.
VISION_MODELS = [("torchvision:alexnet", 3, 224), ("torchvision:mobilenet_v2", 3, 64 if TINY else 224)]
WITHOUT_PROMISE = ("torchvision:alexnet",)
# The largest relative error that a gradient may have, by `optimizer.precision`.
ARITHMETIC = {"float32": 1e-2, "tf32": 0.1, "bfloat16": 0.6}
# Two ways to IEEE's float32 add in other orders, and their errors differ by less than this factor; TF32's are larger
# by a hundred and more.
LIKE_IEEE = 5.0

SHORT_RUNS = [
    (),
    ("method.combine=project",),
    ("method.combine=pcgrad", "seed_set.views=both"),
    ("method.combine=gem_neighbours", "topology.kind=complete"),
    ("method.teachers=seed_accuracy", "method.divergence=reverse_kl"),
    ("method.teachers=confidence", "method.divergence=jensen_shannon"),
    ("method.teachers=median", "topology.kind=complete"),
    ("method.teachers=trimmed_mean", "topology.kind=complete"),
    ("method.publish=after_local", "method.warmup_rounds=1", "data.augmentation=affine"),
    ("seed_set.views=mixup", "seed_set.samples_per_round=50", "optimizer.name=sgd", "optimizer.momentum=0.9"),
    ("method.name=independent",),
    ("method.name=seed_supervised", "models=[mlp]", "devices.batching=like"),
    ("method.name=pooled",),
    ("method.name=dml", "seed_set.labelled=false"),
    ("method.name=fedmd", "method.warmup_rounds=1"),
    ("method.name=distributed_distillation",),
    ("method.name=d_psgd", "models=[resnet8]"),
    ("method.name=d_psgd", "models=[lenet5]", "method.publish=start"),
    ("method.name=fedavg", "models=[cnn]", "topology.kind=complete"),
    ("method.name=fedprox", "models=[mlp]", "topology.kind=complete"),
    ("method.name=fedavg_finetuned", "models=[cnn]", "topology.kind=complete"),
    ("method.name=fd", "topology.kind=complete"),
    ("method.name=fedproto", "topology.kind=complete"),
    ("method.name=ds_fl", "topology.kind=complete"),
    ("method.name=feddf", "models=[cnn]", "topology.kind=complete"),
    ("method.name=kt_pfl", "topology.kind=complete"),
    ("method.name=fedavg_finetuned", "models=[cnn]", "topology.kind=complete"),
    ("method.name=fd", "method.local_labels=private_and_seed"),
    ("method.name=fedproto",),
    ("method.name=ds_fl",),
    ("method.name=feddf",),
    ("method.name=kt_pfl",),
    ("method.name=proxyfl", "method.proxy_model=cnn"),
    ("method.name=fml", "topology.kind=complete"),
    ("exchange.codec=uint8",),
    ("exchange.codec=top_k", "exchange.top_k=3", "exchange.skip_below=0.05", "seed_set.views=none"),
    ("optimizer.precision=bfloat16", "models=[lenet5, cnn, vit]"),
    ("optimizer.precision=tf32", "models=[lenet5, cnn, vit]"),
    ("models=[resnet8, mobilenet, vit, resnet18]",),
]


def agree(report: Report) -> None:
    """Compare logits, gradients, updates and views on the device with the same on the CPU."""
    checks: dict[str, Callable[[Report], None]] = {
        "gradients": _check_gradients,
        "optimizers": _check_optimizers,
        "views": _check_views,
        "host copies": _check_host_copies,
        "minibatches keep channels last": _check_memory_format,
        "dropout repeats its draws": _check_dropout,
    }
    for name, check in checks.items():
        with report.failure_of(name):
            check(report)


def _gradient(model: Any, images: Any, labels: Any) -> Any:
    """Return the flat gradient of the cross-entropy, with parameters stored as the program stores them."""
    from fedh2l_mpi import losses
    from fedh2l_mpi.models.flat_parameters import FlatParameters

    return FlatParameters(model).gradient(losses.cross_entropy(model(images), labels))


def _relative_error(value: Any, reference: Any) -> float:
    value = value.detach().double().cpu()
    return float((value - reference).norm() / reference.norm())


def _gradient_error(precision: str, model: Any, images: Any, labels: Any, reference: Any) -> float:
    """Return the relative error of the gradient that the device computes with the flags that are set."""
    ours = copy.deepcopy(model).to(DEVICE)
    mix_if(precision, ours)
    return _relative_error(_gradient(ours, images.to(DEVICE), labels.to(DEVICE)), reference)


def _check_gradients(report: Report) -> None:
    """Compare every architecture's gradient with float64 on the CPU, by precision; float32 must be IEEE's."""
    import torch

    from fedh2l_mpi.models import build

    errors: dict[str, dict[str, float]] = {precision: {} for precision in (*ARITHMETIC, "ieee")}
    for name, channels, side in MODELS:
        with report.failure_of(f"gradient of {name}"):
            draw = torch.Generator().manual_seed(1)
            batch = 4 if TINY else 32
            images = torch.randn(batch, channels, side, side, generator=draw)
            images = images.contiguous(memory_format=torch.channels_last)
            labels = torch.randint(10, (batch,), generator=draw)
            model = build(name, SampleForm.image(channels, side), 10, 0).train()
            case = model, images, labels, _gradient(copy.deepcopy(model).double(), images.double(), labels)
            for precision in ARITHMETIC:
                with computing_as(precision):
                    errors[precision][name] = _gradient_error(precision, *case)
            with bare.tf32(False):
                errors["ieee"][name] = _gradient_error("float32", *case)
    for precision, largest in ARITHMETIC.items():
        worst = max(errors[precision].values(), default=float("inf"))
        detail = ", ".join(f"{name} {error:.0e}" for name, error in errors[precision].items())
        report.check(f"gradients, {precision}, against float64", worst < largest, detail, worst=worst)
    ratios = {name: errors["float32"][name] / error for name, error in errors["ieee"].items()}
    name = max(ratios, key=lambda name: ratios[name], default="")
    detail = f"its error is at most {ratios[name]:.2f} times IEEE's ({name})" if name else "not measured"
    report.check("float32 is IEEE's", bool(name) and ratios[name] < LIKE_IEEE, detail, ratios=ratios)


def _check_optimizers(report: Report) -> None:
    import torch

    from fedh2l_mpi.models import optimizers

    draw = torch.Generator().manual_seed(2)
    start, gradients = torch.randn(5000, generator=draw), torch.randn(20, 5000, generator=draw)
    cases: dict[str, tuple[type, dict[str, Any]]] = {
        "adam": (torch.optim.Adam, {}),
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    }
    for name, (library, options) in cases.items():
        keys = [f"optimizer.name={name}", *(f"optimizer.{key}={value}" for key, value in options.items())]
        ours, theirs = start.to(DEVICE).clone(), torch.nn.Parameter(start.to(DEVICE).clone())
        mover = optimizers.build(ours, config_of("optimizer.lr=0.01", *keys).optimizer)
        reference = library([theirs], lr=0.01, **options)
        for gradient in gradients.to(DEVICE):
            theirs.grad = gradient.clone()
            reference.step()
            mover.step(gradient.clone())
        gap = float((ours - theirs).abs().max())
        report.check(f"{name} against torch.optim", gap < 1e-6, _gap(gap))


def _gap(gap: float) -> str:
    return "the same bits" if gap == 0 else f"differs by {gap:.1e}"


def _check_views(report: Report) -> None:
    import numpy as np
    import torch

    from fedh2l_mpi.data.augmentation import Affine, Photo

    draw = torch.Generator().manual_seed(3)
    for name, transform, shape in (("affine", Affine(), (8, 1, 28, 28)), ("photo", Photo(), (4, 3, 64, 64))):
        images = torch.randn(shape, generator=draw).contiguous(memory_format=torch.channels_last)
        on_device, on_cpu = (transform(x, np.random.default_rng(3)).cpu() for x in (images.to(DEVICE), images))
        gap = float((on_device - on_cpu).abs().max())
        report.check(f"views, {name}, GPU against CPU", gap < 1e-3, _gap(gap))


def _check_host_copies(report: Report) -> None:
    import torch

    from fedh2l_mpi.exchange import host_memory

    numbers = torch.arange(77.0, device=DEVICE).view(7, 11).t()
    host = host_memory.to_host(numbers)
    stacked = host_memory.stacked([host, host], pinned=ON_GPU)
    is_complete = host.is_contiguous() and torch.equal(host, numbers.cpu()) and torch.equal(stacked[1], host)
    is_pinned = host.is_pinned() == ON_GPU and stacked.is_pinned() == ON_GPU
    report.check("host copies", is_complete and is_pinned, "complete, in pinned memory" if ON_GPU else "complete")


def _check_memory_format(report: Report) -> None:
    import torch

    images, _ = participant_of("resnet8", 3, 32).private_minibatch()
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    report.check("minibatches keep channels last", is_last, "3 x 32 x 32")


def _check_dropout(report: Report) -> None:
    import torch

    participant = participant_of("mlp", 1, 8)
    participant.model.layers.append(torch.nn.Dropout(0.5))
    outputs = []
    for phase in (0, 1, 0):
        participant.begin(3, phase)
        outputs.append(participant.model(participant.private.stored[:64]).detach().clone())
    repeats = torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])
    report.check("dropout repeats its draws", repeats, "by participant, round and phase")


def methods(report: Report) -> None:
    """Run every method, view, codec and architecture for two rounds; nothing fails, and losses are finite."""
    import numpy as np

    from fedh2l_mpi import metrics

    cases = SHORT_RUNS[:: 4 if TINY else 1]
    failed, slowest = [], (0.0, "")
    for case in cases:
        name, begin = " ".join(case) or "default", time.perf_counter()
        try:
            steps = ("method.local_steps=3", "method.mutual_steps=3")
            out = run_here("participants=4", "rounds=2", *steps, *case)
            loss = metrics.read(out / "metrics.h5")["loss"][-1]
            if not np.isfinite(loss).all():
                failed.append(f"{name}: loss {loss}")
        except Exception as error:
            warnings.warn(f"{name}: {type(error).__name__}: {error}", stacklevel=1)
            failed.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200])
        slowest = max(slowest, (time.perf_counter() - begin, name))
    report.check(
        "methods, options, architectures",
        not failed,
        f"{len(cases) - len(failed)} of {len(cases)}; slowest {slowest[0]:.1f} s ({slowest[1]})",
        failed=failed,
    )
    for name in failed[:6]:
        report.add("a method that fails", FAIL, name)


def repeat(report: Report) -> None:
    """Take one gradient many times: with the program's flags, the bits repeat. Report what the flags cost."""
    cases = MODELS + VISION_MODELS if has_torchvision() else MODELS
    if not has_torchvision():
        report.add("models of torchvision", FAIL if ON_GPU else SKIP, "torchvision is not installed")
    seconds: dict[str, dict[str, float]] = {}
    for mode in ("float32", "bfloat16", "without the flags"):
        precision = mode if mode in ARITHMETIC else "float32"
        flags = bare.tf32(False) if mode == "without the flags" else computing_as(precision)
        changing, seconds[mode] = [], {}
        with flags, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for name, channels, side in cases:
                with report.failure_of(f"{mode}, gradient of {name}"):
                    different, times, seconds[mode][name] = _repeated(name, channels, side, precision)
                    if different:
                        changing.append(f"{name} {different}/{times}")
        is_promised = [text for text in changing if not text.startswith(WITHOUT_PROMISE)]
        verdict = PASS if not changing else FAIL if is_promised and mode != "without the flags" else INFO
        detail = f"different bits: {', '.join(changing)}" if changing else f"all of {len(seconds[mode])}"
        report.add(f"gradients repeat, {mode}", verdict, detail, seconds=seconds[mode])
        doubts = sorted({str(one.message).splitlines()[0] for one in caught if "determinis" in str(one.message)})
        for doubt in doubts[:4]:
            report.add(f"PyTorch's doubts, {mode}", INFO, doubt[:150])
    costs = {
        name: seconds["float32"][name] / plain_s
        for name, plain_s in seconds["without the flags"].items()
        if name in seconds["float32"]
    }
    report.add("cost of the flags", INFO, ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items()), costs=costs)


def _repeated(name: str, channels: int, side: int, precision: str) -> tuple[int, int, float]:
    """Return how many repetitions of a gradient differ from the first, how many there were, and the seconds of one."""
    import torch

    from fedh2l_mpi import losses
    from fedh2l_mpi.models import build
    from fedh2l_mpi.models.flat_parameters import FlatParameters

    batch, times = (2, 3) if TINY else (32, 25)
    draw = torch.Generator().manual_seed(4)
    images = torch.randn(batch, channels, side, side, generator=draw).to(DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=draw).to(DEVICE)
    model = build(name, SampleForm.image(channels, side), 10, 0).train().to(DEVICE)
    mix_if(precision, model)
    flat = FlatParameters(model)

    def gradient() -> Any:
        # Dropout must repeat its draws.
        torch.manual_seed(5)
        return flat.gradient(losses.cross_entropy(model(images), labels))

    first, different = gradient(), 0
    for _ in range(times):
        # Another allocation in between moves what the allocator hands out.
        filler = torch.empty(3_000_001, device=DEVICE)
        different += not torch.equal(gradient(), first)
        del filler
    return different, times, seconds_of(gradient, 0.1, repeats=3, warm_up=1)
