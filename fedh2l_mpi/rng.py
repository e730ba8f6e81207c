"""Random streams: one independent generator for each purpose, participant and round, without global state.

A stream depends on the run's seed and on its purpose, never on the rank, so results do not depend on the number of
ranks.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purposes of streams. Their numbers are part of a run's identity: never reuse or renumber one."""

    PARTITION = 1
    SPLIT = 2
    SEED_CAP = 3
    SEED_SUBSET = 4
    INITIALISATION = 5
    PRIVATE_BATCHES = 6
    SEED_BATCHES = 7
    TOPOLOGY = 8
    FORWARD_NOISE = 9
    TEST_SAMPLES = 10
    SEED_VIEWS = 11
    AUGMENTATION = 12
    METHOD = 13
    REDRAW = 14
    SHIFT_NOISE = 15
    NETWORK = 16
    PARTICIPATION = 17


def _sequence(seed: int, purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    # Entropy is padded with zeros, so (seed, purpose) and (seed, purpose, 0) would be the same stream; a spawn key is
    # not padded.
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return a new generator for (seed, purpose, key...); the same arguments give the same draws everywhere."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, key)))


def named_generator(seed: int, name: str, *key: int) -> np.random.Generator:
    """Return a new generator for a purpose that a learning method names itself, as `generator` does for a number."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u4")
    return generator(seed, Purpose.METHOD, *words.tolist(), *key)


def torch_seed(seed: int, purpose: Purpose, *key: int) -> int:
    """Return a seed for a torch generator, from the same streams: 63 bits, of which a CPU's generator uses 32."""
    return int(_sequence(seed, purpose, key).generate_state(1, np.uint64)[0] >> 1)


def seed_global_generators(seed: int) -> None:
    """Seed the global generators of Python and NumPy, for a user's own model or method that draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002, not for numbers of ours


def global_states() -> tuple[object, ...]:
    """Return the states of the global generators of Python, NumPy and PyTorch's CPU, for a comparison."""
    import torch

    _, words, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), bytes(words), *rest, torch.get_rng_state().numpy().tobytes()  # type: ignore[arg-type]


@contextlib.contextmanager
def restored_global_generators(devices: Sequence[int] = ()) -> Iterator[None]:
    """Restore the global generators of Python, NumPy and PyTorch (the CPU's, and those of CUDA devices) at the end."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch within the context, and restore the CPU's at its end."""
    import torch

    with restored_global_generators():
        torch.manual_seed(seed)
        seed_global_generators(seed)
        yield
