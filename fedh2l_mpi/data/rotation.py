"""Domains by rotation: images are rotated about their centre once, before training, with bilinear interpolation.

Shape letters: N images, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedh2l_mpi.config import PartitionConfig


def rotate(images_NCHW: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise about their centre; pixels from outside the image are 0.

    Parameters
    ----------
    images_NCHW : float tensor (N, C, H, H)
        Square images, background 0.
    degrees : float
        Angle; a multiple of 360 returns the images unchanged, bit for bit.
    """
    if math.fmod(degrees, 360.0) == 0.0 or len(images_NCHW) == 0:
        return images_NCHW
    angle = math.radians(degrees)
    # Rows run downwards, so a counter-clockwise rotation of the image is a clockwise one of the sampling grid.
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = affine_grid(turn.expand(len(images_NCHW), 2, 3), list(images_NCHW.shape), align_corners=False)
    return grid_sample(images_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotations(part: PartitionConfig) -> list[float]:
    """Return the angle of every domain of data without domains of their own [degrees]."""
    if part.domains is None or part.rotation_step_deg is None:
        raise RuntimeError("data.partition: the data have domains of their own, so none are made by rotation")
    return [domain * part.rotation_step_deg for domain in range(part.domains)]
