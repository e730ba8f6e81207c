"""FedAvg with fine-tuning: the average of FedAvg, and what is evaluated is trained from it."""

import torch
from helpers.learners import a_round, learner, method

from fedh2l_mpi.topology import Graph

COMPLETE = Graph(3, [(0, 1), (0, 2), (1, 2)])


def test_averages_are_those_of_fedavg_and_what_is_evaluated_has_been_trained_from_them():
    tuned, plain = method("fedavg_finetuned", local_steps=2), method("fedavg", local_steps=2)
    ours = [learner(index, "cnn", seed=9) for index in range(3)]
    theirs = [learner(index, "cnn", seed=9) for index in range(3)]
    for index in range(3):
        now = a_round(index, COMPLETE)
        trained = {}
        for learning, everyone in ((tuned, ours), (plain, theirs)):
            published = []
            for participant in everyone:
                learning.local_phase(participant, now)
                published.append(learning.published(participant, now))
            trained[learning] = [participant.shared_state.read() for participant in everyone]
            for participant in everyone:
                learning.mutual_phase(
                    participant, now, torch.stack([published[j] for j in COMPLETE.neighbours[participant.index]])
                )
        for place, participant in enumerate(ours):
            # Everyone trains from the same average, and is evaluated with what FedAvg would only publish.
            assert torch.equal(participant.shared_state.read(), trained[plain][place])
            assert torch.equal(participant.kept["last_average"], theirs[0].shared_state.read())
    assert not torch.equal(ours[0].shared_state.read(), ours[1].shared_state.read())
    assert [participant.optimizer.steps for participant in (*ours, *theirs)] == [9] * 6
