"""FedMD: everybody approaches the mean of the logits, then returns to its own data.

Shape letters: B minibatch, S seed samples of the round, C classes, N neighbours.
"""

import torch
from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import FedMDOptions
from fedh2l_mpi.exchange import ArraySpec, host_memory
from fedh2l_mpi.methods.base import Method, Round
from fedh2l_mpi.participant import Participant


class FedMD(Method):
    """Logits to the neighbours; M steps to digest their consensus, then E steps to revisit private data.

    The consensus is the mean of the own and the neighbours' logits (there, of everybody's). The first rounds stand for
    the transfer learning that comes before any exchange: M steps on the seed labels, where these may be used.

    What is noted as `loss_distillation` is the mean distance of the logits, not a divergence in nats as of the others:
    the two do not compare.

    Source: Li and Wang, "FedMD: heterogenous federated learning via model distillation", 2019, algorithm 1.
    """

    config: FedMDOptions
    trains_on_seed_set = True
    keeps_published = True
    all_steps_in = "mutual"

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("logits", samples, classes)

    def exchanges_in(self, round_index: int) -> bool:
        return round_index >= self.config.warmup_rounds

    def publish(self, participant: Participant, now: Round) -> Tensor:
        """Logits on the round's seed samples, float32 (S, C), kept for the own part of the consensus."""
        logits_SC = participant.logits(now.seed.images).float()
        participant.kept["logits"] = logits_SC
        return host_memory.to_host(logits_SC)

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Nothing yet: private data are revisited after the consensus has been digested."""

    def mutual_phase(self, participant: Participant, now: Round, theirs: Tensor) -> None:
        """Digest, then revisit."""
        participant.begin(now.index, phase=1)
        if self.exchanges_in(now.index):
            own_1SC = participant.kept["logits"][None]
            consensus_SC = torch.cat([own_1SC, theirs.to(participant.device)]).mean(dim=0)
            for rows_B in participant.seed_minibatches(len(now.seed), now.index, self.config.mutual_steps):
                own_logits_BC = participant.model(now.seed.images[rows_B])
                distance = losses.logit_distance(own_logits_BC, consensus_SC[rows_B])
                participant.note("loss_distillation", distance)
                participant.step(participant.gradient(distance))
        elif self.labelled:
            for rows_B in participant.seed_minibatches(len(now.seed), now.index, self.config.mutual_steps):
                own_logits_BC = participant.model(now.seed.images[rows_B])
                supervised = losses.cross_entropy(own_logits_BC, now.seed.targets[rows_B])
                participant.note("loss_seed", supervised)
                participant.step(participant.gradient(supervised))
        else:
            self.private_steps(participant, self.config.mutual_steps)
        self.private_steps(participant, self.config.local_steps)
