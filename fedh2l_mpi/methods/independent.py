"""Independent training: the lower bound."""

from torch import Tensor

from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class Independent(Method):
    """Participants take E + M steps on private data, without the seed set and without any exchange."""

    takes_batches = True
    records_steps = True

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M more steps on private minibatches."""
        participant.begin(now.index, phase=1)
        self.private_steps(participant, self.config.mutual_steps)
