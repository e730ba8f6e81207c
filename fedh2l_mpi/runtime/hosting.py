"""Which rank hosts which participants: arithmetic alone, without MPI."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hosting:
    """Which rank hosts which participants: contiguous blocks whose sizes differ by one at most."""

    participants: int
    ranks: int

    def participants_of(self, rank: int) -> range:
        """The participants that `rank` hosts."""
        base, extra = divmod(self.participants, self.ranks)
        first = rank * base + min(rank, extra)
        return range(first, first + base + (rank < extra))

    def rank_of(self, participant: int) -> int:
        """The rank that hosts `participant`."""
        base, extra = divmod(self.participants, self.ranks)
        if participant < extra * (base + 1):
            return participant // (base + 1)
        return extra + (participant - extra * (base + 1)) // base
