"""CPU seconds and memory of `optimizer.average=ema`, for every built-in model, side by side with `none`.

    python -m benchmarks.averaging

A step is a whole step of a participant on a private minibatch of 32 images of 28 x 28 pixels: draw, forward and
backward pass, Adam, and the average. The steps of FedH2L's mutual phase have two passes, so the average costs them half
of this. The average alone is timed as well, because other processes disturb the ratio of two long steps. Memory is what
stays allocated between steps: parameters, buffers, Adam's moments, and the average.
"""

import statistics

import torch

from benchmarks.measuring import ratios, step_seconds
from fedh2l_mpi.config import EvaluationConfig, OptimizerConfig
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.models import build
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.sample_form import SampleForm

SIDE, SAMPLES, REPEATS = 28, 320, 15
# Steps in one turn, so that a turn takes between 20 and 200 ms.
MODELS = {"lenet5": 20, "mlp": 100, "cnn": 10, "resnet8": 2, "resnet18": 1, "mobilenet": 2, "vit": 4}


def participant(name: str, average: str) -> Participant:
    """Return a participant with random data."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 1, SIDE, SIDE, generator=draw).contiguous(memory_format=torch.channels_last)
    data = Labelled(images, torch.randint(10, (SAMPLES,), generator=draw))
    config = OptimizerConfig.model_validate({"average": average}).resolved(rounds=40, round_steps=20)
    return Participant(
        0, name, build(name, SampleForm.image(1, SIDE), 10, seed=0), data, data, config, EvaluationConfig(), seed=0
    )


def step(one: Participant) -> None:
    """Take one step on private data, and forget the loss that it noted."""
    one.step(one.gradient(one.private_loss()))
    one.noted_means()


def stays_bytes(one: Participant) -> int:
    """Return the memory that a participant holds between steps, without its data [bytes]."""
    averages = () if one.average is None else one.average.state().values()
    tensors = [*one.model.parameters(), *one.model.buffers(), *one.optimizer.state().values(), *averages]
    return sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{'model':11}{'parameters':>12}{'step, none':>14}  {'ema / none':>22}{'average alone':>24}"
        f"{'memory, none':>15}{'ema / none':>12}"
    )
    for name, steps in MODELS.items():
        ones = {average: participant(name, average) for average in ("none", "ema")}
        for one in ones.values():
            one.begin(round_index=0, phase=0)
        taken = step_seconds({way: lambda one=one: step(one) for way, one in ones.items()}, steps, REPEATS)
        average = ones["ema"].average
        assert average is not None
        alone = step_seconds({"alone": lambda average=average: average.after_step(1000)}, 20, REPEATS)["alone"]
        middle, follow = statistics.median(taken["none"]), statistics.median(alone)
        none, ema = (stays_bytes(one) for one in ones.values())
        print(
            f"{name:11}{ones['none'].parameter_count:12,}{middle * 1e3:11.3f} ms  "
            f"{ratios(taken['ema'], taken['none']):>22}{follow * 1e6:12,.0f} us = {follow / middle:6.2%}"
            f"{none / 2**20:11.2f} MiB{ema / none:12.2f}"
        )


if __name__ == "__main__":
    main()
