"""A tiny Vision Transformer.

Shape letters: B minibatch, K channels, H side, G patches along a side, T tokens (the class token and G * G patches),
E width, A attention heads, D width of a head, C classes.
"""

import torch
from torch import Tensor, nn


class _Attention(nn.Module):
    """Softmax attention of every token to every token, with several heads.

    It is written out instead of using a fused kernel. It costs the same with this few tokens, and it sums in one fixed
    order on every device, in training and in evaluation.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        batch, tokens, width = x_BTE.shape
        split = self.into(x_BTE).view(batch, tokens, 3, self.heads, width // self.heads)
        query_BATD, key_BATD, value_BATD = split.permute(2, 0, 3, 1, 4)
        # Scaling the queries (tokens x width) is cheaper than scaling the scores (tokens x tokens).
        scores_BATT = (query_BATD * (width // self.heads) ** -0.5) @ key_BATD.transpose(-2, -1)
        mixed_BATD = scores_BATT.softmax(dim=-1) @ value_BATD
        return self.out(mixed_BATD.transpose(1, 2).reshape(batch, tokens, width))


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), _Attention(width, heads))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BTE: Tensor) -> Tensor:
        x_BTE = x_BTE + self.attention(x_BTE)
        return x_BTE + self.mlp(x_BTE)


class VisionTransformer(nn.Module):
    """Four pre-norm blocks, 64 wide with 4 heads, over at most 8 x 8 patches, learned positions and a class token.

    The patch is the smallest power of two, at least 2, that makes at most 8 patches along a side: 2 pixels for a side
    of 8, 4 for 28 and 32, 8 for 64, 32 for 224. A side that it does not divide is padded with zeros.

    The paper's smallest model has 12 blocks, 768 wide. Hidden layers here are 2 instead of 4 times the width, and there
    is no dropout.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021, section 3.1, equations 1 to 4.
    """

    WIDTH, HEADS, BLOCKS, MOST_PATCHES = 64, 4, 4, 8

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        patch = 2
        while patch * self.MOST_PATCHES < side:
            patch *= 2
        patches = -(-side // patch)
        # Padding is symmetric; a pixel too many on the far side is less than a patch, so the convolution drops it.
        padding = (patches * patch - side + 1) // 2
        self.embedding = nn.Conv2d(channels, self.WIDTH, patch, stride=patch, padding=padding)
        self.class_token = nn.Parameter(torch.zeros(1, 1, self.WIDTH))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches * patches, self.WIDTH))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(
            *(_Block(self.WIDTH, self.HEADS, hidden=2 * self.WIDTH) for _ in range(self.BLOCKS))
        )
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, classes)

    def forward(self, images_BKHH: Tensor) -> Tensor:
        patches_BTE = self.embedding(images_BKHH).flatten(2).transpose(1, 2)
        x_BTE = torch.cat([self.class_token.expand(len(images_BKHH), -1, -1), patches_BTE], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x_BTE)[:, 0]))
