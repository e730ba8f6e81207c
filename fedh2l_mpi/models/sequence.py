"""Built-in architectures for series and for token ids.

Id 0 fills up short texts; it neither changes the logits nor learns.

Shape letters: B minibatch, K channels, L length, E width, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedh2l_mpi.models.attention import Block
from fedh2l_mpi.models.constructor import check_widths
from fedh2l_mpi.sample_form import PADDING


class TokenMean(nn.Module):
    """Mean of the embeddings of a text's tokens; zeros for a text of padding alone."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return mean_of_tokens(self.embedding(ids_BL), ids_BL == PADDING)


class Cnn1d(nn.Module):
    """Two convolutions along time with batch normalisation, `width` and 2 `width` channels, and the mean over time."""

    def __init__(self, shape: tuple[int, int], classes: int, width: int = 32) -> None:
        super().__init__()
        check_widths(width=width)
        self.layers = nn.Sequential(
            nn.Conv1d(shape[0], width, 5, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2, ceil_mode=True),
            nn.Conv1d(width, 2 * width, 5, padding=2, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, series_BKL: Tensor) -> Tensor:
        return self.head(self.layers(series_BKL).mean(dim=2))


class Gru(nn.Module):
    """A gated recurrent unit with `hidden` numbers of state, whose last state gives the logits.

    Tokens are embedded first, and the state stays as it is at padding.

    The steps are taken one by one, because cuDNN would copy the weights in every pass to where it wants them, and has
    kernels that sum in no fixed order.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014, in the form of PyTorch's `nn.GRU`.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, vocabulary: int = 0, hidden: int = 64, embedding: int = 32
    ) -> None:
        super().__init__()
        check_widths(hidden=hidden, embedding=embedding)
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING) if vocabulary else None
        self.cell = nn.GRUCell(embedding if vocabulary else shape[0], hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of series (B, K, L) or token ids (B, L)."""
        if self.embedding is None:
            steps = inputs.unbind(dim=2)
            kept: Sequence[Tensor | None] = [None] * len(steps)
        else:
            steps = self.embedding(inputs).unbind(dim=1)
            kept = [(ids_B == PADDING)[:, None] for ids_B in inputs.unbind(dim=1)]
        state_BE = steps[0].new_zeros(len(inputs), self.cell.hidden_size)
        for step_BE, is_kept in zip(steps, kept, strict=True):
            new_BE = self.cell(step_BE, state_BE).to(state_BE.dtype)
            state_BE = new_BE if is_kept is None else torch.where(is_kept, state_BE, new_BE)
        return self.head(state_BE)


class TextTransformer(nn.Module):
    """Pre-norm blocks over embedded tokens with learned positions, and the mean over the tokens.

    No token attends to padding, and padding is left out of the mean. Hidden layers are twice as wide as the tokens,
    and there is no dropout.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3, the encoder, with the normalisation before
    each part as in Xiong et al., "On layer normalization in the transformer architecture", 2020.
    """

    def __init__(
        self, shape: tuple[int], classes: int, vocabulary: int, width: int = 64, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        check_widths(width=width, heads=heads, blocks=blocks)
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.empty(1, shape[0], width))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden=2 * width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, ids_BL: Tensor) -> Tensor:
        is_padding_BL = ids_BL == PADDING
        x_BLE = self.embedding(ids_BL) + self.positions
        for block in self.blocks:
            x_BLE = block(x_BLE, is_padding_BL)
        return self.head(mean_of_tokens(self.norm(x_BLE), is_padding_BL))


def mean_of_tokens(x_BLE: Tensor, is_padding_BL: Tensor) -> Tensor:
    """Return the mean (B, E) over the tokens that are no padding; zeros if there are none."""
    counts_B1 = (~is_padding_BL).sum(dim=1, keepdim=True).clamp(min=1)
    return x_BLE.masked_fill(is_padding_BL[:, :, None], 0.0).sum(dim=1) / counts_B1
