"""A tiny Vision Transformer.

Shape letters: B minibatch, K channels, H height, W width, T tokens (the class token and the patches), E width,
C classes.
"""

import torch
from torch import Tensor, nn

from fedh2l_mpi.models.attention import Block


class VisionTransformer(nn.Module):
    """Four pre-norm blocks, 64 wide with 4 heads, over at most 8 x 8 patches, learned positions and a class token.

    The patch is the smallest power of two, at least 2, that makes at most 8 patches along the longer side: 2 pixels for
    a side of 8, 4 for 28 and 32, 8 for 64, 32 for 224. A side that it does not divide is padded with zeros.

    The paper's smallest model has 12 blocks, 768 wide. Hidden layers here are 2 instead of 4 times the width, and there
    is no dropout.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021, section 3.1, equations 1 to 4.
    """

    WIDTH, HEADS, BLOCKS, MOST_PATCHES = 64, 4, 4, 8

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        patch = 2
        while patch * self.MOST_PATCHES < max(sides):
            patch *= 2
        rows, columns = (-(-side // patch) for side in sides)
        # Padding is symmetric; a pixel too many on the far side is less than a patch, so the convolution drops it.
        above, left = ((count * patch - side + 1) // 2 for count, side in zip((rows, columns), sides, strict=True))
        self.embedding = nn.Conv2d(channels, self.WIDTH, patch, stride=patch, padding=(above, left))
        self.class_token = nn.Parameter(torch.zeros(1, 1, self.WIDTH))
        self.positions = nn.Parameter(torch.empty(1, 1 + rows * columns, self.WIDTH))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(self.WIDTH, self.HEADS, hidden=2 * self.WIDTH) for _ in range(self.BLOCKS)))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, classes)

    def forward(self, images_BKHW: Tensor) -> Tensor:
        patches_BTE = self.embedding(images_BKHW).flatten(2).transpose(1, 2)
        x_BTE = torch.cat([self.class_token.expand(len(images_BKHW), -1, -1), patches_BTE], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x_BTE)[:, 0]))
