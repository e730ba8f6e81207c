"""The leakage meter: what a run's models and messages give away about the private data of its participants.

Two attackers: `query` has a participant's model of the newest checkpoint; `observer` only has what the participant
sent, and trains a student of it. Both have the seed set, and samples of the participant's domain for their statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedh2l_mpi.build import RankSetup, build_rank
from fedh2l_mpi.config import Config, DevicesConfig, loading
from fedh2l_mpi.config.method import DistillationOptions
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files, run_metadata
from fedh2l_mpi.lifecycle.checkpoint_files import DamagedError
from fedh2l_mpi.metrics import look, posteriors
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.privacy import distinguishing, label_distribution, membership, shadows
from fedh2l_mpi.privacy.distinguishing import Estimate
from fedh2l_mpi.privacy.shadows import Posteriors
from fedh2l_mpi.rng import named_generator
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World

# Participant number of a row that is the mean over all.
MEAN = -1


@dataclass(frozen=True)
class Finding:
    """One measurement.

    Attributes
    ----------
    participant : int
        Its number; MEAN for the mean over all.
    attacker : {"query", "observer"}
    attack : {"loss", "lira", "labels"}
    measure : {"auc", "tpr", "distance"}
        Area under the ROC curve, true-positive rate at 1 % false positives, or distance of label distributions.
    chance : float
        The measure of an attacker that knows nothing: 0.5, 0.01, or the distance of even labels from the true ones.
    samples : int
        Members, and as many other samples; or seed rows.
    """

    participant: int
    attacker: str
    attack: str
    measure: str
    estimate: Estimate
    chance: float
    samples: int


@dataclass(frozen=True)
class Evidence:
    """Evidence of the attackers: the run's parts, its newest checkpoint (`finished` rounds), and what was sent."""

    config: Config
    setup: RankSetup
    has_models: bool
    finished: int
    kept: posteriors.KeptPosteriors | None


def collect(path: Path) -> Evidence:
    """Load a run.

    Raises
    ------
    UserError
        If the run has neither a checkpoint nor kept posteriors, or its data are no longer the same.
    """
    directory = RunDirectory(path.parent if path.is_file() else path)
    if not directory.config.is_file():
        raise UserError(f"{path}: holds no run (no config.yaml). Fix: name a run directory.")
    committed, has_posteriors = directory.committed(), directory.posteriors.is_file()
    if not committed and not has_posteriors:
        raise UserError(
            f"{path}: the run has neither a checkpoint nor kept posteriors, so there is nothing to attack. Fix: run it "
            "to its end, or with exchange.keep_posteriors=1."
        )
    config = loading.load_stored(directory.config)
    if config.method.name == "pooled":
        raise UserError("method.name: participants of 'pooled' have no private data of their own to attack.")
    config = config.model_copy(update={"devices": DevicesConfig(kind="cpu", threads=config.devices.threads)})
    world = World(None)
    setup = build_rank(config, world)
    finished = look(directory.metrics).rounds
    kept = None
    if has_posteriors and setup.array is not None:
        shape = (config.size, setup.array.rows, setup.array.columns)
        kept, problem = posteriors.find(directory.posteriors, shape, finished)
        if problem:
            raise UserError(f"{path}: {problem}.")
    if committed:
        finished = _restore(committed[0], setup, str(run_metadata.facts(config, world, setup)["data_sha256"]))
    return Evidence(config, setup, bool(committed), finished, kept)


def _restore(folder: Path, setup: RankSetup, data_sha256: str) -> int:
    """Restore all participants from a checkpoint, and return its number of rounds."""
    try:
        manifest = checkpoint_files.read_manifest(folder)
        states = checkpoint_files.load(folder, manifest, [one.index for one in setup.participants])
    except DamagedError as error:
        raise UserError(f"{error}. Fix: resume the run, which falls back to a sound checkpoint.") from None
    if manifest["data_sha256"] != data_sha256:
        raise UserError(f"{folder}: the data differ from those of the run. Fix: use the run's own data (data.root).")
    for participant in setup.participants:
        participant.restore(states[participant.index])
    return int(manifest["round"])


def measure(
    evidence: Evidence,
    participants: Sequence[int] | None = None,
    shadow_models: int = 4,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Run all attacks that the evidence allows on some participants; None: on all. A mean over them comes last.

    Parameters
    ----------
    shadow_models : int
        Even number of models that are trained for LiRA, for each participant; 0: without LiRA.
    """
    size = evidence.config.size
    chosen = list(range(size)) if participants is None else list(participants)
    if strange := [index for index in chosen if not 0 <= index < size]:
        raise UserError(f"--participants: got {strange[0]}. Allowed: 0 to {size - 1}.")
    if shadow_models % 2 or shadow_models < 0:
        raise UserError(f"--shadows: got {shadow_models}. Allowed: 0 or an even number, half of them with each sample.")
    found: list[Finding] = []
    for index in chosen:
        progress(f"participant {index}")
        found += _attack(evidence, index, shadow_models)
    kinds = dict.fromkeys((one.attacker, one.attack, one.measure) for one in found)
    for kind in kinds:
        same = [one for one in found if (one.attacker, one.attack, one.measure) == kind]
        estimate = distinguishing.mean([one.estimate for one in same])
        chance, samples = float(np.mean([one.chance for one in same])), sum(one.samples for one in same)
        found.append(replace(same[0], participant=MEAN, estimate=estimate, chance=chance, samples=samples))
    return found


def _attack(evidence: Evidence, index: int, shadow_models: int) -> list[Finding]:
    config, setup = evidence.config, evidence.setup
    pool, members = matched(setup, index, config.seed)
    sent = _sent(evidence, index)
    temperature = config.method.temperature if isinstance(config.method, DistillationOptions) else 1.0
    steps = evidence.finished * (config.method.local_steps + config.method.mutual_steps)
    own_seed = int(named_generator(config.seed, "leakage", index).integers(2**31))

    def observed(posteriors_of: Posteriors, seed: int) -> Participant:
        return shadows.student(config, setup, index, posteriors_of, temperature, steps, seed)

    views: dict[str, NDArray[np.float64]] = {}
    if evidence.has_models:
        views["query"] = shadows.log_posteriors(setup.participants[index], pool)
    if sent:
        views["observer"] = shadows.log_posteriors(observed(sent, own_seed), pool)
    of_shadows: dict[str, list[NDArray[np.float64]]] = {attacker: [] for attacker in views}
    is_in_KN = _halves(len(pool), shadow_models, named_generator(own_seed, "leakage halves"))
    alone, labels_N = shadows.alone(config), pool.labels.numpy()
    for k, is_in_N in enumerate(is_in_KN):
        inside = shadows.part(pool, torch.from_numpy(np.flatnonzero(is_in_N)))
        trained = shadows.shadow(alone, setup, index, inside, evidence.finished, own_seed + 2 * k + 1)
        if "query" in views:
            of_shadows["query"].append(shadows.log_posteriors(trained, pool))
        if sent:
            would_send = shadows.publish(trained, setup, list(sent), temperature)
            of_shadows["observer"].append(shadows.log_posteriors(observed(would_send, own_seed + 2 * k + 2), pool))
    found = []
    draw = named_generator(own_seed, "leakage resamples")
    for attacker, log_NC in views.items():
        scores = {"loss": membership.loss_threshold(log_NC, labels_N)}
        if shadow_models:
            shadow_KN = np.stack([membership.scaled_confidence(one, labels_N) for one in of_shadows[attacker]])
            phi_N = membership.scaled_confidence(log_NC, labels_N)
            scores["lira"] = membership.likelihood_ratio(phi_N, shadow_KN, is_in_KN)
        for attack, score_N in scores.items():
            groups = score_N[:members], score_N[members:]
            for name, of, chance in (
                ("auc", distinguishing.area_under_curve, 0.5),
                ("tpr", distinguishing.true_positive_rate, distinguishing.FALSE_POSITIVES),
            ):
                estimate = distinguishing.bootstrapped(of, *groups, draw)
                found.append(Finding(index, attacker, attack, name, estimate, chance, members))
    return found + _labels(evidence, index, sent, draw)


def _labels(evidence: Evidence, index: int, sent: Posteriors, draw: np.random.Generator) -> list[Finding]:
    """Infer the label distribution from the model's posteriors on the seed set, and from those that were sent."""
    setup = evidence.setup
    histogram_C = setup.plan.label_histogram()[index]
    true_C, classes = histogram_C / histogram_C.sum(), setup.plan.classes
    chance = label_distribution.distance(np.full(classes, 1 / classes), true_C)
    seed_set = setup.federation.seed_set
    seen = {}
    if evidence.has_models:
        log_SC = shadows.log_posteriors(setup.participants[index], seed_set.samples)
        seen["query"] = (np.exp(log_SC), seed_set.samples.labels.numpy())
    if sent:
        rows = np.concatenate([sent[index].double().numpy() for index in sent])
        seen["observer"] = (rows, np.concatenate([seed_set.of_round(index).labels.numpy() for index in sent]))
    return [
        Finding(
            index,
            attacker,
            "labels",
            "distance",
            label_distribution.distance_of_estimate(posteriors_SC, labels_S, true_C, draw),
            chance,
            len(labels_S),
        )
        for attacker, (posteriors_SC, labels_S) in seen.items()
    ]


def matched(setup: RankSetup, index: int, seed: int) -> tuple[Labelled, int]:
    """Return private samples, then as many others with the same labels, and their number.

    The others are the participant's held-out samples and the test samples of its domain. Without equal labels, an
    attack would separate classes instead of members and other samples.
    """
    federation, own = setup.federation, setup.plan.own_domain(index)
    others = shadows.join(federation.validation[index], federation.local_test[index])
    for test in federation.tests if own < 0 else [federation.tests[own]]:
        others = shadows.join(others, test)
    draw = named_generator(seed, "leakage matching", index)
    private, kept = federation.private[index], ([], [])  # type: ignore[var-annotated]
    for label in range(setup.plan.classes):
        rows = [np.flatnonzero(samples.labels.numpy() == label) for samples in (private, others)]
        count = min(map(len, rows))
        for chosen, of_label in zip(kept, rows, strict=True):
            chosen.append(draw.permutation(of_label)[:count])
    in_rows, out_rows = (torch.from_numpy(np.sort(np.concatenate(chosen))) for chosen in kept)
    if len(in_rows) < 2:
        raise UserError(f"participant {index}: there are too few held-out samples of its classes.")
    return shadows.join(shadows.part(private, in_rows), shadows.part(others, out_rows)), len(in_rows)


def _halves(samples: int, shadow_models: int, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Return the samples of each shadow model, bool (K, N): pairs of a random half and the other half."""
    halves = []
    for _ in range(shadow_models // 2):
        is_in_N = np.zeros(samples, dtype=bool)
        is_in_N[draw.permutation(samples)[: samples // 2]] = True
        halves += [is_in_N, ~is_in_N]
    return np.array(halves, dtype=bool).reshape(shadow_models, samples)


def _sent(evidence: Evidence, index: int) -> Posteriors:
    """Return what a participant sent in the kept rounds, as posteriors."""
    kept = {} if evidence.kept is None else evidence.kept.of_participant(index)
    is_logits = evidence.kept is not None and evidence.kept.kind == "logits"
    tensors = {round_index: torch.from_numpy(array) for round_index, array in kept.items()}
    return {at: values.softmax(dim=-1) if is_logits else values for at, values in tensors.items()}
