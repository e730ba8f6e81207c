"""FedDF: distillation of an ensemble, the softmax of mean logits, in a form without a server.

Shape letters: N answers, S seed rows of the round, C classes.
"""

from torch import Tensor

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import FedDFOptions
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods.consensus_method import ConsensusMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.participant import Participant


class FedDF(ConsensusMethod):
    """Participants take E steps on private data, publish logits, and digest the ensemble in M steps.

    The ensemble's posterior is the softmax of the mean of the own and the neighbours' logits.

    Source: Lin, Kong, Stich and Jaggi, "Ensemble distillation for robust model fusion in federated learning", 2020,
    arXiv 2006.07242. There, a server has everybody's models: it averages the parameters of like models, and distils
    the ensemble of all into each average. Here, each participant distils the ensemble of its neighbourhood into its
    own trained model. Logits cross the edges instead of parameters, so models may differ, and none are averaged.
    Unlabelled data are the seed set, and the number of steps is fixed, without the paper's early stopping.
    """

    config: FedDFOptions
    records_steps = True

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("logits", samples, classes)

    def answers(self, participant: Participant, now: Round) -> Tensor:
        """Return the logits on the round's seed samples, on the device, float32 (S, C)."""
        return participant.logits(now.seed.inputs).float()

    def teacher(self, participant: Participant, now: Round, answers_NSC: Tensor) -> Tensor:
        """Return softmax(mean of the logits), (S, C)."""
        return losses.posteriors(answers_NSC.mean(dim=0))
