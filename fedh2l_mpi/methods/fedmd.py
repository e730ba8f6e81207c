"""FedMD: participants approach the mean of their logits, then return to their own data.

Shape letters: B minibatch, S seed rows of the round, C classes, N neighbours.
"""

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import FedMDOptions
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods.base import Method
from fedh2l_mpi.methods.phase_memory import PhaseMemory
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class FedMD(Method):
    """Participants publish logits, take M steps to digest the consensus, then E steps to revisit private data.

    The consensus is the mean of the own and the neighbours' logits; in the paper, it is the mean of all participants.
    The first rounds replace the paper's transfer learning before any exchange: they take M steps on the seed labels, or
    on private data if the labels may not be used.

    The metric `loss_distillation` is the mean distance of logits here. It does not compare with the divergence in nats
    of other methods.

    Source: Li and Wang, "FedMD: heterogenous federated learning via model distillation", 2019, algorithm 1.
    """

    config: FedMDOptions
    trains_on_seed_set = True
    keeps_published = True
    all_steps_in = "mutual"
    records_steps = True

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("logits", samples, classes)

    def exchanges_in(self, round_index: int) -> bool:
        return round_index >= self.config.warmup_rounds

    @property
    def phase_memory(self) -> PhaseMemory:
        """The neighbours' logits, joined with the own ones."""
        return PhaseMemory(choosing=1.0)

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Return logits on the round's seed samples, float32 (S, C), and keep them for the consensus."""
        logits_SC = participant.logits(now.seed.inputs).float()
        participant.kept["logits"] = logits_SC
        return host_memory.to_host(logits_SC)

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Do nothing: private data are revisited after the consensus."""

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Digest the consensus, then revisit private data."""
        participant.begin(now.index, phase=1)
        if self.exchanges_in(now.index):
            own_1SC = participant.kept["logits"][None]
            consensus_SC = torch.cat([own_1SC, theirs.to(participant.device)]).mean(dim=0)
            self._digest(participant, now, consensus_SC)
        elif self.labelled:
            self._learn_labels(participant, now)
        else:
            self.private_steps(participant, self.config.mutual_steps)
        self.private_steps(participant, self.config.local_steps)

    def _digest(self, participant: Participant, now: Round, consensus_SC: Tensor) -> None:
        """Take M steps on the distance of the logits from the consensus."""

        def step(rows_B: Tensor, now: Round, consensus_SC: Tensor) -> None:
            own_logits_BC = participant.model(now.seed.inputs[rows_B])
            distance = losses.logit_distance(own_logits_BC, consensus_SC[rows_B])
            participant.note("loss_distillation", distance)
            participant.step(participant.gradient(distance))

        participant.repeat(self.mutual_minibatches(participant, now), step, now, consensus_SC)

    def _learn_labels(self, participant: Participant, now: Round) -> None:
        """Take M steps on the seed labels."""

        def step(rows_B: Tensor, now: Round) -> None:
            own_logits_BC = participant.model(now.seed.inputs[rows_B])
            participant.step(participant.gradient(self.seed_loss(participant, now, own_logits_BC, rows_B)))

        participant.repeat(self.mutual_minibatches(participant, now), step, now)
