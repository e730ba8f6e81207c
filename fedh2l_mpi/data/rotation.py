"""Domains by rotation: images are rotated about their centre once, before training, with bilinear interpolation.

Shape letters: N images, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def rotate(images_NCHW: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise about their centre; pixels from outside the image are 0.

    Parameters
    ----------
    images_NCHW : float tensor (N, C, H, W)
        Images, background 0.
    degrees : float
        Angle; a multiple of 360 returns the images unchanged, bit for bit.
    """
    if math.fmod(degrees, 360.0) == 0.0 or len(images_NCHW) == 0:
        return images_NCHW
    angle, (height, width) = math.radians(degrees), images_NCHW.shape[2:]
    cos, sin = math.cos(angle), math.sin(angle)
    # Rows run downwards, so a counter-clockwise rotation of the image is a clockwise one of the sampling grid. The grid
    # spans -1 to 1 along either axis, so a unit is longer along the longer axis.
    turn = torch.tensor([[cos, -sin * (height / width), 0.0], [sin * (width / height), cos, 0.0]])
    grid = affine_grid(turn.expand(len(images_NCHW), 2, 3), list(images_NCHW.shape), align_corners=False)
    return grid_sample(images_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
