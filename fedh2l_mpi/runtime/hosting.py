"""Compute which rank hosts which participants. It is arithmetic without MPI."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hosting:
    """Assignment of participants to ranks: contiguous blocks whose sizes differ by at most one."""

    participants: int
    ranks: int

    def participants_of(self, rank: int) -> range:
        """Return the participants that `rank` hosts."""
        base, extra = divmod(self.participants, self.ranks)
        first = rank * base + min(rank, extra)
        return range(first, first + base + (rank < extra))

    def rank_of(self, participant: int) -> int:
        """Return the rank that hosts `participant`."""
        base, extra = divmod(self.participants, self.ranks)
        if participant < extra * (base + 1):
            return participant // (base + 1)
        return extra + (participant - extra * (base + 1)) // base
