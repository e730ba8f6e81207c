"""Domains by shift: each domain is the same data under another transformation, which is applied once, before training.

A shift works on values in the data's own scale, before they are normalised: those of images as shares of full scale,
and those of vectors and series as they are. A sample's shift depends on its row, its domain and the shift alone, so it
is the same wherever the sample is read.

Shape letters: N samples, X the axes of one sample, K channels, H, W pixels, L length, F features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedh2l_mpi.config.shift import SHIFTS, Shift
from fedh2l_mpi.data.rotation import rotate
from fedh2l_mpi.rng import Purpose, generator
from fedh2l_mpi.sample_form import SampleKind

# Standard deviations that a blur's kernel reaches to either side.
REACH = 3.0


def colour(images_NKHW: Tensor, amount: float) -> Tensor:
    """Multiply channel k of K by 1 + amount (1 - 2 k / (K - 1)): the first gains, the last loses, as in warmer light.

    Source: a diagonal change of illumination (von Kries, "Die Gesichtsempfindungen", 1905), with gains in even steps.
    """
    gains_K = 1.0 + amount * torch.linspace(1.0, -1.0, images_NKHW.shape[1])
    return images_NKHW * gains_K.view(-1, 1, 1)


def blur(images_NKHW: Tensor, sigma: float) -> Tensor:
    """Convolve with exp(-(i^2 + j^2) / (2 sigma^2)) over its sum, `sigma` in pixels; the edge's pixels repeat outside.

    The sum runs over the kernel's places in order instead of a convolution, whose last bits depend on the minibatch.
    """
    if sigma <= 0.0:
        return images_NKHW
    reach = math.ceil(REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    blurred = images_NKHW
    for axis in (2, 3):
        size = blurred.shape[axis]
        total = torch.zeros_like(blurred)
        for offset, weight in zip(range(-reach, reach + 1), weights.tolist(), strict=True):
            places = torch.arange(offset, offset + size).clamp_(0, size - 1)
            total += weight * blurred.index_select(axis, places)
        blurred = total
    return blurred


def invert(images_NKHW: Tensor, share: float) -> Tensor:
    """Return (1 - share) x + share (1 - x): a share of 1 gives the negative image, and 0.5 a uniform grey."""
    return (1.0 - share) * images_NKHW + share * (1.0 - images_NKHW)


def scale(values_NX: Tensor, amount: float) -> Tensor:
    """Return (1 + amount) x, as a sensor of another gain would measure."""
    return (1.0 + amount) * values_NX


def offset(values_NX: Tensor, amount: float, std_X: Tensor) -> Tensor:
    """Return x + amount std, with the standard deviation of each feature or channel in the training data."""
    return values_NX + amount * std_X


def noise(values_NX: Tensor, amount: float, std_X: Tensor, normals_NX: Tensor) -> Tensor:
    """Return x + amount std z, with z from the standard normal distribution; std is 1, full scale, for images."""
    return values_NX + amount * std_X * normals_NX


def time_warp(series_NKL: Tensor, amount: float) -> Tensor:
    """Return x(w(u)) with w(u) = u + amount sin(pi u) / pi, where u runs from 0 to 1 along the series.

    The speed w' falls from 1 + amount at the start to 1 - amount at the end, which both stay in place. Values between
    two steps of time are interpolated linearly.

    Source: a smooth monotone warp of time as in Um et al., "Data augmentation of wearable sensor data for Parkinson's
    disease monitoring using convolutional neural networks", 2017, with one fixed curve instead of random ones.
    """
    length = series_NKL.shape[2]
    if amount == 0.0 or length < 2:
        return series_NKL
    u = np.linspace(0.0, 1.0, length)
    at = np.clip((u + amount * np.sin(np.pi * u) / np.pi) * (length - 1), 0.0, length - 1)
    before = np.minimum(np.floor(at), length - 2).astype(np.int64)
    share_L = torch.from_numpy(at - before).to(series_NKL)
    left, right = (series_NKL.index_select(2, torch.from_numpy(before + step)) for step in (0, 1))
    return left * (1.0 - share_L) + right * share_L


@dataclass(frozen=True)
class Samples:
    """The samples of a call of `apply`, as far as a shift needs them next to their values.

    Attributes
    ----------
    rows : int64 (N,)
        Rows in their table, from which noise is drawn.
    table : int
        0 for the training table, 1 for the test table.
    domain : int
        Domain of all of them.
    std : float32, with the axes of a sample
        Standard deviation of each feature or channel.
    kind : {"image", "series", "vector"}
        Values of images are shares of full scale.
    """

    rows: NDArray[np.int64]
    table: int
    domain: int
    std: Tensor
    kind: SampleKind


def apply(shifts: Sequence[Shift], values_NX: Tensor, samples: Samples) -> Tensor:
    """Apply the shifts of one domain in their order; a shift whose amount is 0 changes no bit."""
    for position, shift in enumerate(shifts):
        amount = shift.amount(samples.domain)
        if amount == 0.0 or len(values_NX) == 0:
            continue
        if shift.kind == "noise":
            normals_NX = _normals(values_NX, samples, position)
            std = torch.ones(()) if samples.kind == "image" else samples.std
            values_NX = noise(values_NX, amount, std, normals_NX)
        elif shift.kind == "offset":
            values_NX = offset(values_NX, amount, samples.std)
        else:
            values_NX = _PLAIN[shift.kind](values_NX, amount)
    return values_NX


def name(shifts: Sequence[Shift], domain: int) -> str:
    """Return the name of a domain, such as `rotation 15 deg + noise 0.1 sd`."""
    parts = (f"{shift.kind} {shift.amount(domain):g} {SHIFTS[shift.kind].unit}".rstrip() for shift in shifts)
    return " + ".join(parts)


def _normals(values_NX: Tensor, samples: Samples, position: int) -> Tensor:
    """Draw standard normal numbers for each sample, from (table, row, domain, place of the shift in the list) alone."""
    drawn = np.empty(tuple(values_NX.shape), dtype=np.float32)
    for place, row in enumerate(samples.rows.tolist()):
        stream = generator(0, Purpose.SHIFT_NOISE, samples.table, row, samples.domain, position)
        stream.standard_normal(out=drawn[place], dtype=np.float32)
    return torch.from_numpy(drawn)


_PLAIN = {
    "rotation": rotate,
    "colour": colour,
    "blur": blur,
    "invert": invert,
    "scale": scale,
    "time_warp": time_warp,
}
