"""Federated averaging with local fine-tuning, the usual personalised baseline."""

from torch import Tensor

from fedh2l_mpi.config.method import FedAvgFinetunedOptions
from fedh2l_mpi.methods.fedavg import FedAvg
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant

# Key under which a participant keeps the last average until its next local phase.
AVERAGE = "last_average"


class FedAvgFinetuned(FedAvg):
    """FedAvg whose participants are evaluated after their E + M steps on private data, and not as their average.

    Each participant keeps the average, and its next E + M steps begin there. Its own model is thus the last average,
    fine-tuned by the steps that FedAvg makes anyway, so the number of steps and the traffic are those of FedAvg.

    Source: Wang et al., "Federated evaluation of on-device personalization", 2019, arXiv 1910.10252, where a global
    model is fine-tuned once, after training; here, every round's average is, so that each round can be evaluated. The
    averages are those of `FedAvg`.
    """

    config: FedAvgFinetunedOptions
    keeps_published = True
    records_steps = True

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps from the last average."""
        average = participant.kept.pop(AVERAGE, None)
        if average is not None:
            participant.shared_state.write(average)
        super().local_phase(participant, now)

    def adopt(self, participant: Participant, mean: Tensor) -> None:
        """Keep the mean for the next round."""
        participant.kept[AVERAGE] = mean.to(participant.device)
