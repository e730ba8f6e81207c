"""Means by class against sums by hand."""

import torch

from fedh2l_mpi.methods import class_means

# Two numbers of each of five samples, of the classes 0 and 2 of three.
VALUES, LABELS = (
    torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [0.0, 1.0]]),
    torch.tensor([2, 0, 2, 2, 0]),
)
OURS = torch.tensor([[1.5, 2.5, 2.0], [0.0, 0.0, 0.0], [13 / 3, 16 / 3, 3.0]])
THEIRS = torch.tensor([[0.5, 0.5, 6.0], [1.0, 9.0, 1.0], [0.0, 0.0, 0.0]])


def test_a_class_has_the_mean_of_its_samples_and_their_number_and_zeros_without_any():
    sums = class_means.sums(VALUES, LABELS, classes=3)
    assert sums.tolist() == [[3.0, 5.0, 2.0], [0.0, 0.0, 0.0], [13.0, 16.0, 3.0]]
    torch.testing.assert_close(class_means.means(sums), OURS)


def test_neighbours_without_a_class_are_left_out_and_a_sample_counts_equally_or_a_neighbour():
    both = torch.stack([OURS, THEIRS])
    by_neighbour = torch.tensor([[1.0, 1.5, 2.0], [1.0, 9.0, 1.0], [13 / 3, 16 / 3, 1.0]])
    torch.testing.assert_close(class_means.mean_of_means(both), by_neighbour)
    # (2 x 1.5 + 6 x 0.5) / 8 and (2 x 2.5 + 6 x 0.5) / 8.
    by_sample = torch.tensor([[0.75, 1.0, 8.0], [1.0, 9.0, 1.0], [13 / 3, 16 / 3, 3.0]])
    torch.testing.assert_close(class_means.mean_of_samples(both), by_sample)
