"""FedProto: participants exchange the mean embedding of each class, its prototype.

Shape letters: B minibatch, C classes, K numbers of a prototype, L numbers of an embedding, N neighbours.
"""

import math

import torch
from torch import Tensor, nn

from fedh2l_mpi import losses
from fedh2l_mpi.config.method import FedProtoOptions
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.exchange import ArraySpec
from fedh2l_mpi.methods import class_means
from fedh2l_mpi.methods.by_class_method import ByClassMethod
from fedh2l_mpi.methods.round import Round
from fedh2l_mpi.models import embedding
from fedh2l_mpi.models.embedding import Captured
from fedh2l_mpi.participant import Participant
from fedh2l_mpi.rng import named_generator


class FedProto(ByClassMethod):
    """Participants take E + M steps on private data, with embeddings pulled towards the prototypes of their classes.

    The loss is CE + lambda (mean squared distance of embeddings from prototypes). A prototype is the mean embedding of
    a class over the samples of the last round's steps, of the participant and its neighbours together.

    An embedding is what enters the classifier, so its size depends on the architecture. One of another size than
    `prototype_size` is multiplied by a fixed random matrix, the same for all participants with this size.

    Source: Tan, Long, Liu, Zhou, Lu, Jiang and Zhang, "FedProto: federated prototype learning across heterogeneous
    clients", 2022, arXiv 2105.00243, algorithm 1. Four things differ. There is no server, so prototypes are those of
    the neighbourhood. All embeddings have one size there, without a projection. Prototypes are means over the steps'
    minibatches, as in the authors' code, instead of a pass over all private data. The classifier predicts, and not the
    nearest prototype.
    """

    config: FedProtoOptions

    def __init__(self, config: FedProtoOptions, labelled: bool) -> None:
        super().__init__(config, labelled)
        # The embedding of the pass before, and the projection of its size, within a local phase only.
        self._captured: Captured | None = None
        self._projection: Tensor | None = None

    @property
    def weight(self) -> float:
        return self.config.weight_prototypes

    def check_model(self, architecture: str, model: nn.Module, classes: int) -> None:
        """Raise `UserError` if the model has no classifier, so that nothing says what its embedding is."""
        if embedding.classifier(model, classes) is None:
            raise UserError(
                f"method.name: {self.config.name!r} needs a model whose last layer is linear with {classes} outputs, "
                f"but {architecture!r} of models has no such layer. Fix: use another model or method."
            )

    def array(self, participant: Participant, samples: int, classes: int) -> ArraySpec:
        return ArraySpec("prototypes", classes, self.config.prototype_size + 1)

    def local_phase(self, participant: Participant, now: Round) -> None:
        """Take E + M steps on private minibatches, and on seed labels too if `method.local_labels` says so."""
        layer = embedding.classifier(participant.model, now.seed_set.classes)
        if layer is not None and layer.in_features != self.config.prototype_size:
            drawn_LK = projection(layer.in_features, self.config.prototype_size, now.seed_set.seed)
            self._projection = drawn_LK.to(participant.device)
        try:
            with embedding.capturing(participant.model, now.seed_set.classes) as self._captured:
                super().local_phase(participant, now)
        finally:
            self._captured = self._projection = None

    def vectors(self, participant: Participant, own_logits_BC: Tensor) -> Tensor | None:
        """Return the projected embeddings of the private part of the pass before, (B, K)."""
        if self._captured is None or self._captured.values is None:
            return None
        # A seed minibatch that shares the pass comes after the private one.
        embeddings_BL = self._captured.values[: len(own_logits_BC)].float()
        return embeddings_BL if self._projection is None else embeddings_BL @ self._projection

    def combined(self, own_CK: Tensor, theirs_NCK: Tensor) -> Tensor:
        """Return the mean over all samples of a class, of the participant and its neighbours."""
        return class_means.mean_of_samples(torch.cat([own_CK[None], theirs_NCK]))

    def pull(self, own_logits_BC: Tensor, vectors_BK: Tensor, teacher_BK: Tensor, is_known_B: Tensor) -> Tensor:
        """Return the mean squared distance of the embeddings from the prototypes."""
        return losses.prototype_distance(vectors_BK, teacher_BK, is_known_B)


def projection(size: int, prototype_size: int, seed: int) -> Tensor:
    """Return a random matrix, float32 (L, K), that keeps the expected squared length of an embedding.

    Its numbers are normal with variance 1 / K, drawn from (the run's seed, L), so that participants with embeddings of
    one size share it.

    Source: Johnson and Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984, in the form of
    Indyk and Motwani, "Approximate nearest neighbors", 1998.
    """
    draw = named_generator(seed, "fedproto projection", size)
    matrix = draw.standard_normal((size, prototype_size)) / math.sqrt(prototype_size)
    return torch.from_numpy(matrix).float()
