"""Form of the samples of a data set as a model receives them: images, series, vectors or token ids."""

import math
from dataclasses import dataclass
from typing import Literal

SampleKind = Literal["image", "series", "vector", "tokens"]
# Names of the axes of one sample of each kind, in their order.
AXES = {
    "image": ("channels", "height", "width"),
    "series": ("channels", "length"),
    "vector": ("features",),
    "tokens": ("length",),
}
PLURAL = {"image": "images", "series": "series", "vector": "vectors", "tokens": "sequences of token ids"}

# Ids that fill up short texts, and that stand for a word which is not in the vocabulary.
PADDING, UNKNOWN = 0, 1


@dataclass(frozen=True)
class SampleForm:
    """Kind and shape of one sample.

    Attributes
    ----------
    kind : {"image", "series", "vector", "tokens"}
        A model gets float32 images (B, K, H, W), series (B, K, L) or vectors (B, F), or int64 token ids (B, L).
    shape : tuple of int
        (K, H, W), (K, L), (F,) or (L,).
    vocabulary : int
        Number of token ids, which are 0 to vocabulary - 1; 0 for the other kinds. Id 0 fills up short texts,
        and id 1 stands for an unknown word.
    """

    kind: SampleKind
    shape: tuple[int, ...]
    vocabulary: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError if the shape has other axes than its kind, or the vocabulary does not fit the kind."""
        if len(self.shape) != len(AXES[self.kind]) or min(self.shape) < 1:
            raise ValueError(f"{PLURAL[self.kind]} have the axes {AXES[self.kind]}, got the shape {self.shape}")
        if (self.vocabulary > 0) != (self.kind == "tokens"):
            raise ValueError(f"{PLURAL[self.kind]} cannot have a vocabulary of {self.vocabulary}")

    @staticmethod
    def image(channels: int, height: int, width: int | None = None) -> "SampleForm":
        """Return the form of images; square ones if no width is given."""
        return SampleForm("image", (channels, height, height if width is None else width))

    @property
    def numbers(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.shape)

    @property
    def is_square(self) -> bool:
        """True for images that are as wide as high."""
        return self.kind == "image" and self.shape[1] == self.shape[2]

    @property
    def input_bytes(self) -> int:
        """Size of one sample as a model's input, float32 or int64 [bytes]."""
        return (8 if self.kind == "tokens" else 4) * self.numbers

    def __str__(self) -> str:
        """Return the form in words, such as `images of 1 x 28 x 28`."""
        words = f"{PLURAL[self.kind]} of {' x '.join(map(str, self.shape))}"
        return f"{words} out of {self.vocabulary}" if self.vocabulary else words
