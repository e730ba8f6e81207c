"""Training on private data and the labelled seed set, which shows what the seed labels alone are worth."""

from torch import Tensor

from fedh2l_mpi.config.method import SeedSupervisedOptions
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class SeedSupervised(Method):
    """Participants take E steps on private data, then M steps on private data and the seed labels.

    Nothing is exchanged. It is FedH2L without distillation: samples, steps and combination of gradients are the same.
    """

    config: SeedSupervisedOptions
    trains_on_seed_set = True
    takes_batches = True
    records_steps = True

    def __init__(self, config: SeedSupervisedOptions, labelled: bool) -> None:
        super().__init__(config, labelled)
        if not labelled:
            raise UserError(
                f"seed_set.labelled: got False, but method {config.name!r} learns from the seed labels. "
                "Fix: set it to true."
            )

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Take M steps, each along a combination of the private and the seed gradient at the same weights."""
        participant.begin(now.index, phase=1)
        self.label_steps(participant, now, self.mutual_minibatches(participant, now))
