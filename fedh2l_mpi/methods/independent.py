"""Everyone alone: the lower bound."""

from torch import Tensor

from fedh2l_mpi.methods.base import Method, Round
from fedh2l_mpi.participant import Participant


class Independent(Method):
    """E + M steps on private data; the seed set is not used, nothing is exchanged."""

    takes_batches = True

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """M more steps on private minibatches."""
        participant.begin(now.index, phase=1)
        self.private_steps(participant, self.config.mutual_steps)
