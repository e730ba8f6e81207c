"""Random streams: one independent generator for each purpose, participant and round; no global state.

A stream depends on the run's seed and on what it is for, never on the rank, so results do not depend on how many ranks
host the participants.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of a run's identity: never reuse or renumber one."""

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


def _sequence(seed: int, purpose: Purpose, key: tuple[int, ...]) -> np.random.SeedSequence:
    # As a spawn key, not as entropy: entropy is padded with zeros, so (seed, purpose) and (seed, purpose, 0) would
    # be one and the same stream.
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """A fresh generator for (seed, purpose, key...); the same arguments give the same draws everywhere."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, key)))


def torch_seed(seed: int, purpose: Purpose, *key: int) -> int:
    """A seed for a torch generator, from the same tree of streams: 63 bits, of which a CPU's uses the low 32."""
    return int(_sequence(seed, purpose, key).generate_state(1, np.uint64)[0] >> 1)
