"""What a method gets from a round: random numbers of its own, and other seed samples."""

import torch
from helpers.configs import settled
from helpers.rounds import a_round_of

from fedh2l_mpi import api
from fedh2l_mpi.data.labelled import Labelled
from fedh2l_mpi.lifecycle.start import RunReservation
from fedh2l_mpi.methods import Method, Round
from fedh2l_mpi.run_directory import RunDirectory
from fedh2l_mpi.runtime.world import World
from fedh2l_mpi.topology import Graph

SAMPLES = Labelled(torch.randn(6, 1, 8, 8), torch.arange(6))


def a_round(index: int = 0) -> Round:
    return a_round_of(SAMPLES, Graph(3, []), index=index)


def test_random_numbers_depend_on_purpose_round_and_participant_and_on_nothing_else():
    draws = [
        round_of.draw(purpose, participant).integers(2**40)
        for round_of in (a_round(0), a_round(1))
        for purpose in ("views", "view", "")
        for participant in (None, 0, 1)
    ]
    assert len(set(draws)) == len(draws)
    assert a_round(1).draw("view", 0).integers(2**40) == draws[3 * 3 + 3 + 1]


def test_other_seed_samples_replace_those_of_the_round_alone():
    images, labels = torch.zeros(2, 1, 8, 8), torch.tensor([3, 4])
    other = a_round(5).with_seed(images, labels)
    assert (other.seed.round, len(other.seed), len(other.seed_set)) == (5, 2, 6)
    assert other.seed.targets.tolist() == other.seed.labels.tolist() == [3, 4]


class Seen(Method):
    """Keep what each participant draws."""

    def mutual_phase(self, participant, now, theirs):
        participant.kept["drawn"] = torch.tensor([now.draw("x", participant.index).random(), now.rounds])
        participant.kept["seed"] = now.seed_set.samples.labels


def test_the_loop_gives_every_round_the_whole_seed_set_and_the_number_of_rounds(tmp_path):
    config = settled(f"method.name={__name__}:Seen", "rounds=2", "models=[mlp]", "seed_set.samples_per_round=10")
    simulation = api.assemble(config, World(None), RunReservation(RunDirectory(tmp_path / "run")))
    simulation.run()
    drawn = [participant.kept["drawn"].tolist() for participant in simulation.participants]
    assert [rounds for _, rounds in drawn] == [2] * 4
    assert len({number for number, _ in drawn}) == 4
    assert all(len(participant.kept["seed"]) == 288 for participant in simulation.participants)
