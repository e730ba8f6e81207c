"""Random pictures of any size, for runs of the program that are timed: what a picture shows costs nothing."""

from typing import Any

CLASSES, TESTS = 10, 20


def pictures(samples: int, channels: int, side: int) -> Any:
    """Return a data set of random pictures, in one domain; a run names it `benchmarks.gpu.pictures:pictures`."""
    import numpy as np

    import fedh2l_mpi as fh

    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (samples + TESTS, channels, side, side), dtype=np.uint8)
    labels = np.arange(samples + TESTS) % CLASSES
    return fh.DataSet(pixels[TESTS:], labels[TESTS:], pixels[:TESTS], labels[:TESTS])
