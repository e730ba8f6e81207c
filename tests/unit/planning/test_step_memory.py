"""The largest phase of a round by arithmetic, against the tensors that its phases really make."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers.configs import settled
from helpers.live_tensors import peak_bytes

from fedh2l_mpi import evaluation, methods, models
from fedh2l_mpi.config import Config
from fedh2l_mpi.data.seed_set import SeedSet
from fedh2l_mpi.data.sources import ArrayTable, Source
from fedh2l_mpi.methods import Method, Round
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.planning import requirements, traffic
from fedh2l_mpi.planning.sizes import SampleCounts
from fedh2l_mpi.runtime.hosting import Hosting
from fedh2l_mpi.sample_form import SampleForm
from fedh2l_mpi.topology import Graph

DIGITS, GREY, COLOURED, PHOTO = (1, 8), (1, 28), (3, 32), (3, 64)
# The estimate over the measured peak.
LOWEST, HIGHEST = 0.9, 1.3


@dataclass
class Learner:
    """One participant of a run with all others as its neighbours, and its seed set."""

    config: Config
    method: Method
    participant: Participant
    seed_set: SeedSet
    graph: Graph
    tested: list
    told: int
    rows: int
    peaks: dict[str, int] = field(default_factory=dict)

    def round(self, index: int) -> None:
        """Go through a round's phases, and note the largest sum of tensors in each, beside the round's seed rows."""
        method, one = self.method, self.participant
        seeds = []
        drawn = self._note("drawing", lambda: seeds.append(self.seed_set.of_round(index)))
        self.peaks["drawing"] = drawn - self.rows
        now = Round(index, self.graph, seeds[0], (64,) * len(self.graph.neighbours), self.seed_set, 40)
        published = []

        def publish() -> None:
            self._note("publishing", lambda: published.append(method.published(one, now)))

        if not method.publishes_first:
            self._note("local", lambda: method.local_phase(one, now))
        if method.array(one, len(now.seed), 10) is not None:
            publish()
        if method.publishes_first:
            self._note("local", lambda: method.local_phase(one, now))
        neighbours = self.graph.neighbours[0]
        if method.averages_everyone:
            states = dict.fromkeys(range(len(self.graph.neighbours)), published[0][0])
            self._note("mutual", lambda: method.adopt(one, method.mean(states, now, torch.device("cpu"))))
        else:
            theirs = torch.stack(published * len(neighbours)) if published else torch.empty(0, 1, 1)
            self._note("mutual", lambda: method.mutual_phase(one, now, theirs))
        self._note("evaluating", lambda: self._evaluate(now))
        one.noted_means()

    def _evaluate(self, now: Round) -> None:
        metrics = evaluation.chosen_metrics(self.config.evaluation, 10)
        if self.config.evaluation.calibration == "seed_set":
            unseen = self.seed_set.of_round(now.index + 1)
            evaluation.temperature_on(self.participant, unseen, self.method.seed_prior(now))
            evaluation.evaluate(self.participant, self.tested, 0, 1.0, metrics)
            del unseen
        else:
            evaluation.evaluate(self.participant, self.tested, 0, None, metrics)

    def _note(self, phase: str, action) -> int:
        self.peaks[phase] = peak_bytes(action)
        return self.peaks[phase]


def learner(
    name: str, images: tuple[int, int], *overrides: str, degree: int = 4, samples: int = 64, tests: int = 128
) -> Learner:
    """Of participants with 64 private samples each, of random pictures; the seed set has twice a round's samples."""
    count, (channels, side) = degree + 1, images
    fixed = [f"models=[{name}]", f"participants={count}", "topology.kind=complete"]
    fixed += ["method.local_steps=2", "method.mutual_steps=2", f"seed_set.samples_per_round={samples}"]
    config = settled(*fixed, *overrides)
    table = ArrayTable(np.zeros(500, dtype=np.int64), np.zeros((500, channels, side, side), dtype=np.uint8))
    source = Source("pictures", 10, SampleForm.image(channels, side), 255.0, 0.5, 0.25, table, table)
    rows = samples * config.seed_set.views_per_sample
    stored, taken = source.sample_bytes + 8, source.form.input_bytes
    counts = SampleCounts(np.full(count, 64), np.full(count, 0), 2 * samples, rows, [tests], 10, stored, taken)
    method = methods.build(config)
    needs = requirements.compute(config, source, method, counts)
    graph = Graph(count, [(i, j) for j in range(count) for i in range(j)])
    hosting = Hosting(count, count)
    told = needs.memory(hosting, traffic.links(graph.edges, hosting))
    participant = requirements.stand_in_participant(config, source, models.build(name, source.form, 10, 0), 64)
    seed_set = SeedSet(requirements.random_samples(source, 2 * samples), samples, 10, config.seed_set, 0)
    tested = [requirements.random_samples(source, tests)]
    return Learner(config, method, participant, seed_set, graph, tested, int(told.step[0]), int(told.seed_rows[0]))


SMALL = ["evaluation.batch_size=32", "evaluation.calibration=none", "seed_set.views=none"]
FEW = ["optimizer.batch_size=16", "optimizer.seed_batch_size=16"]
EACH_METHOD = ("fedh2l", "fedavg", "fedprox", "d_psgd", "dml", "distributed_distillation", "fedmd", "independent")
EACH_METHOD += ("seed_supervised", "ds_fl", "feddf", "kt_pfl", "fd", "fedproto", "fedavg_finetuned")


@pytest.mark.parametrize(
    ("name", "images", "overrides"),
    [
        # The model is large, and activations are small, or the other way round.
        *(("mlp", GREY, [*SMALL, f"method.name={method}"]) for method in EACH_METHOD),
        *(("cnn", GREY, [*SMALL, f"method.name={method}"]) for method in ("fedh2l", "fedprox", "dml", "fd")),
        *(("mlp", GREY, [*SMALL, "optimizer.name=sgd", f"method.name={method}"]) for method in ("fedavg", "d_psgd")),
        *(
            (name, images, [*SMALL, "optimizer.name=sgd", f"method.combine={combine}"])
            for name, images in (("mlp", GREY), ("lenet5", GREY))
            for combine in ("gem", "gem_neighbours", "joint")
        ),
        *(
            (name, COLOURED, [*SMALL, *FEW, "method.combine=gem_neighbours"])
            for name in ("resnet8", "mobilenet", "vit")
        ),
        *((name, DIGITS, SMALL) for name in ("lenet5", "mlp", "cnn")),
        *((name, COLOURED, [*SMALL, *FEW]) for name in ("resnet8", "vit")),
        ("lenet5", GREY, [*SMALL, "method.name=fedavg", "method.local_labels=private_and_seed"]),
        # Minibatches larger than the data.
        ("cnn", GREY, [*SMALL, "method.name=independent", "optimizer.batch_size=1000"]),
    ],
)
def test_a_step_takes_about_what_is_told(name, images, overrides):
    one = learner(name, images, *overrides)
    one.round(30)
    assert LOWEST <= one.told / max(one.peaks.values()) <= HIGHEST, one.peaks


@pytest.mark.parametrize("method", ["proxyfl", "fml"])
@pytest.mark.parametrize(("name", "proxy"), [("mlp", "lenet5"), ("lenet5", "mlp"), ("cnn", "cnn")])
def test_a_step_of_two_models_takes_about_what_is_told(name, proxy, method):
    one = learner(name, GREY, *SMALL, f"method.name={method}", f"method.proxy_model={proxy}")
    # The second model is made in the first round, and is not part of a step.
    one.round(30)
    one.round(31)
    assert LOWEST <= one.told / max(one.peaks.values()) <= HIGHEST, one.peaks


@pytest.mark.parametrize(
    ("name", "images", "overrides", "more"),
    [
        # Drawing the views is the largest phase.
        *(
            ("mlp", PHOTO, [f"seed_set.views={views}", f"seed_set.views_per_sample={each}"], {"samples": 400})
            for views in ("affine", "photo", "both", "mixup", "jitter")
            for each in (1, 3)
        ),
        # Calibration draws the next round's rows, too, and fits a temperature to the logits.
        ("mlp", GREY, ["evaluation.calibration=seed_set", "seed_set.views=affine"], {"samples": 400}),
        ("cnn", GREY, ["evaluation.calibration=seed_set", "evaluation.batch_size=256"], {"samples": 256}),
        # An evaluation is.
        *((name, GREY, ["evaluation.batch_size=512"], {"tests": 600}) for name in ("lenet5", "cnn", "vit")),
        ("resnet8", COLOURED, ["evaluation.batch_size=512", "optimizer.batch_size=16"], {"tests": 600}),
        ("mlp", DIGITS, ["optimizer.batch_size=2", "optimizer.seed_batch_size=2"], {"tests": 4000}),
        ("mlp", DIGITS, ["optimizer.batch_size=2", "evaluation.metrics=[auroc, nll]"], {"tests": 4000}),
        # The neighbours' posteriors are.
        *(
            ("mlp", DIGITS, [f"method.teachers={teachers}"], {"degree": 12, "samples": 1500})
            for teachers in ("each", "median", "confidence", "right", "better", "agreement")
        ),
        *(
            ("mlp", DIGITS, [f"method.name={method}"], {"degree": 12, "samples": 1500})
            for method in ("dml", "fedmd", "ds_fl", "kt_pfl")
        ),
        # Views of a private minibatch are.
        *(
            ("mlp", PHOTO, ["method.name=independent", f"data.augmentation={kind}", "optimizer.batch_size=1000"], {})
            for kind in ("affine", "photo", "jitter")
        ),
    ],
)
def test_another_phase_may_take_most(name, images, overrides, more):
    one = learner(name, images, "evaluation.calibration=none", "seed_set.views=none", *overrides, **more)
    one.round(30)
    assert LOWEST <= one.told / max(one.peaks.values()) <= HIGHEST, one.peaks
