"""Private minibatches: their order, and their way to the device, once for the steps of a phase.

A copy from host memory in every step would let the host and a GPU wait for each other in every step. Shape letter: B
minibatch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedh2l_mpi.data.augmentation import Augmentation
from fedh2l_mpi.rng import Purpose, generator
from fedh2l_mpi.runtime.transfers import PHASE_BYTES, to_device

# Largest size of what goes to the device at once for steps that nobody announced. One minibatch may be larger.
UNANNOUNCED_BYTES = 64 << 10


class Minibatches:
    """Endless sequence of minibatches. Every epoch draws a new order and cuts it into whole minibatches.

    Minibatch k depends on (seed, participant, k) alone, so the position is the only state. Samples after an epoch's
    last whole minibatch are dropped for that epoch. If there are fewer samples than a minibatch has, they form one.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, participant: int) -> None:
        self._samples, self.size = samples, min(batch_size, samples)
        self._per_epoch = samples // self.size
        self._seed, self._participant = seed, participant
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        self.position = 0

    def next(self) -> Tensor:
        """Return the rows of the next minibatch, int64 (B,), in host memory."""
        self.position += 1
        return self.rows(self.position - 1)

    def rows(self, position: int) -> Tensor:
        """Return the rows of the minibatch at a position, int64 (B,), in host memory."""
        epoch, within = divmod(position, self._per_epoch)
        if self._order[0] != epoch:
            draw = generator(self._seed, Purpose.PRIVATE_BATCHES, self._participant, epoch)
            self._order = (epoch, torch.from_numpy(draw.permutation(self._samples)))
        return self._order[1][within * self.size : (within + 1) * self.size]

    @property
    def left_in_epoch(self) -> int:
        """Number of minibatches from the next one to the end of its epoch."""
        return self._per_epoch - self.position % self._per_epoch


class PreparedMinibatches:
    """Rows of a participant's private minibatches, and the draws of their transformations, on its device.

    They go there together, for all announced steps or for as many as PHASE_BYTES hold.

    Parameters
    ----------
    order : Minibatches
        The rows of each minibatch. Its position is the number of minibatches that were used.
    augment : Augmentation or None
        Transformation of every minibatch, with draws from (seed, participant, position).
    shape : sequence of int
        Shape of one sample.
    """

    def __init__(
        self,
        order: Minibatches,
        augment: Augmentation | None,
        shape: Sequence[int],
        device: torch.device,
        seed: int,
        participant: int,
    ) -> None:
        self._order, self._augment, self._shape, self._device = order, augment, tuple(shape), device
        self._seed, self._participant = seed, participant
        # Rows and draws of the minibatches from `_first` on, on the device: each (minibatches, B, ...).
        self._first, self._ahead = 0, [torch.empty(0)]
        self._announced = 0
        self._bound: list[Tensor] | None = None

    @property
    def count(self) -> int:
        """Number of minibatches that were used so far."""
        return self._order.position

    @count.setter
    def count(self, minibatches: int) -> None:
        self._order.position = minibatches

    def bind(self, row: Sequence[Tensor] | None) -> None:
        """Let `next` return these tensors on the device; None: what is prepared again."""
        self._bound = None if row is None else list(row)

    def announce(self, steps: int) -> None:
        """Let the rows and draws of this many minibatches go to the device when the first of them is asked for."""
        self._announced = self._order.position + steps

    def release(self) -> None:
        """Free what is on the device for minibatches to come; it is made again when they are asked for."""
        self._ahead, self._announced = [torch.empty(0)], 0

    def next(self) -> list[Tensor]:
        """Return the rows of the next minibatch, int64 (B,), and the draws of its transformation, each (B, ...)."""
        if self._bound is None:
            self.prepare()
        position = self._order.position
        self._order.position += 1
        return self._bound or [values[position - self._first] for values in self._ahead]

    def prepare(self) -> None:
        """Let the next minibatch, and others with it, go to the device now, unless they are there."""
        position = self._order.position
        if not 0 <= position - self._first < len(self._ahead[0]):
            announced, left = self._announced - position, self._order.left_in_epoch
            ahead = self.drawn(announced, PHASE_BYTES) if announced > 0 else self.drawn(left, UNANNOUNCED_BYTES)
            self._first, self._ahead = position, [to_device(values, self._device) for values in ahead]

    def drawn(self, minibatches: int, largest_bytes: int) -> list[Tensor]:
        """Return rows int64 (minibatches, B) and draws (minibatches, B, ...) of the next minibatches in host memory.

        They are as many as asked for, or fewer if these are larger than allowed, but at least one.
        """
        each: list[list[Tensor]] = []
        nbytes, position = 0, self._order.position
        while not each or (len(each) < minibatches and nbytes + sum(part.nbytes for part in each[-1]) <= largest_bytes):
            each.append(self._drawn_at(position + len(each)))
            nbytes += sum(part.nbytes for part in each[-1])
        # One minibatch may be large, so it is not copied.
        return [torch.stack(parts) if len(parts) > 1 else parts[0][None] for parts in zip(*each, strict=True)]

    def _drawn_at(self, position: int) -> list[Tensor]:
        rows_B = self._order.rows(position)
        if self._augment is None:
            return [rows_B]
        draw = generator(self._seed, Purpose.AUGMENTATION, self._participant, position)
        return [rows_B, *self._augment.draw((len(rows_B), *self._shape), draw)]
