"""No step of a phase waits for its device: all that steps need from the host goes there once for the phase."""

import pytest
import torch
from helpers.far_device import FAR, FarDevice
from helpers.learners import STAR, method, samples
from helpers.rounds import a_round_of

from fedh2l_mpi.config import EvaluationConfig, OptimizerConfig
from fedh2l_mpi.data.augmentation import AUGMENTATIONS
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.methods import Method, Round
from fedh2l_mpi.models import build
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.sample_form import SampleForm

ADAM = {"name": "adam", "average": "ema", "average_decay": 0.9}
SGD = {"name": "sgd", "clip_norm": 1.0, "momentum": 0.9}


def moved(some: Labelled) -> Labelled:
    return Labelled(some.stored.to(FAR), some.labels.to(FAR))


def learner(architecture: str, augmentation: str, index: int = 0, **optimizer: object) -> Participant:
    return Participant(
        index,
        architecture,
        build(architecture, SampleForm.image(1, 8), 10, seed=1),
        moved(samples(64, seed=index)),
        moved(samples(10, 1)),
        OptimizerConfig(**{"seed_batch_size": 16, "batch_size": 8, "average": "none", **optimizer}),
        EvaluationConfig(),
        seed=0,
        augment=AUGMENTATIONS[augmentation],
    )


def a_round(index: int) -> Round:
    return a_round_of(moved(samples(40, seed=2)), STAR, (64, 64, 128, 64), index)


def copies_of(far: FarDevice, phase, learning: Method, participant, index: int, *theirs: torch.Tensor) -> int:
    now, before = a_round(index), far.total
    phase(learning, participant, now, *theirs)
    return far.total - before


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=["adam", "sgd, clipped"])
@pytest.mark.parametrize("augmentation", ["affine", "photo", "jitter"])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("fedh2l", {"combine": "gem", "teachers": "right"}),
        ("fedh2l", {"combine": "joint", "local_labels": "private_and_seed", "prior_correction": "balanced"}),
        ("dml", {}),
        ("fedavg", {}),
        ("fedprox", {}),
        ("independent", {}),
        ("fd", {}),
    ],
)
def test_more_steps_of_a_phase_copy_no_more_between_host_and_device(name, keys, augmentation, optimizer):
    theirs = torch.full((3, 10, 11) if name == "fd" else (3, 40, 10), 0.1)
    found = []
    with FarDevice() as far:
        for steps in (2, 12):
            learning = method(name, **{**keys, "local_steps": steps, "mutual_steps": steps})
            participant = learner("cnn", augmentation, **optimizer)
            phases = [(type(learning).local_phase, ())]
            if not learning.averages_everyone:
                phases.append((type(learning).mutual_phase, (theirs,)))
            # What is made in the first round alone is no part of a phase.
            copies_of(far, *phases[0][:1], learning, participant, 0)
            found.append([copies_of(far, phase, learning, participant, 1, *given) for phase, given in phases])
            before = far.total
            participant.noted_means()
            assert far.total - before == 1
    assert found[0] == found[1]
    assert max(map(max, found)) <= 8


@pytest.mark.parametrize(
    ("waits", "copies"),
    [
        (lambda loss: loss.item(), "item"),
        (lambda loss: float(loss.detach()), "__float__"),
        (lambda loss: loss > 0 or None, "__bool__"),
        (lambda loss: torch.ones(3, device=FAR)[torch.ones(3, device=FAR) > loss], "index"),
        (lambda loss: loss + torch.ones(1).to(FAR), "to the device"),
        (lambda loss: torch.tensor(1.0, device=FAR), "to the device"),
    ],
)
def test_a_step_that_waits_for_its_device_is_counted(waits, copies):
    class Impatient(type(method("independent"))):
        def private_loss_of(self, participant, own_logits_BC, labels_B):
            loss = super().private_loss_of(participant, own_logits_BC, labels_B)
            waits(loss)
            return loss

    with FarDevice() as far:
        learning = Impatient(method("independent").config, labelled=True)
        for steps in (1, 6):
            before = far.copies[copies]
            learning.private_steps(learner("mlp", "none"), steps)
            assert far.copies[copies] - before >= steps


def test_tensors_on_two_devices_do_not_mix():
    with FarDevice(), pytest.raises(RuntimeError, match="tensors on two devices"):
        torch.ones(3, device=FAR) + torch.ones(3)
