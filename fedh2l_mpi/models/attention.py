"""Blocks of a transformer: attention with several heads, and the pre-norm block around it.

Shape letters: B minibatch, T tokens, E width, A attention heads, D width of a head.
"""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Softmax attention of every token to every token, with several heads.

    It is written out instead of using a fused kernel. It costs the same with this few tokens, and it sums in one fixed
    order on every device, in training and in evaluation.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTE: Tensor, is_padding_BT: Tensor | None = None) -> Tensor:
        """Return the mixed tokens (B, T, E); no token attends to padding, where there are others."""
        batch, tokens, width = x_BTE.shape
        split = self.into(x_BTE).view(batch, tokens, 3, self.heads, width // self.heads)
        query_BATD, key_BATD, value_BATD = split.permute(2, 0, 3, 1, 4)
        # Scaling the queries (tokens x width) is cheaper than scaling the scores (tokens x tokens).
        scores_BATT = (query_BATD * (width // self.heads) ** -0.5) @ key_BATD.transpose(-2, -1)
        if is_padding_BT is not None:
            # A finite number, because a text of padding alone would otherwise have no softmax.
            lowest = torch.finfo(scores_BATT.dtype).min
            scores_BATT = scores_BATT.masked_fill(is_padding_BT[:, None, None, :], lowest)
        mixed_BATD = scores_BATT.softmax(dim=-1) @ value_BATD
        return self.out(mixed_BATD.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BTE: Tensor, is_padding_BT: Tensor | None = None) -> Tensor:
        norm, attention = self.attention
        x_BTE = x_BTE + attention(norm(x_BTE), is_padding_BT)
        return x_BTE + self.mlp(x_BTE)
