"""Samples of several participants in one tensor."""

import torch

from fedh2l_mpi.data.labelled import JoinedSamples, Labelled, Normalisation
from fedh2l_mpi.models import memory_format


def images(count: int, first: int, channels: int = 1) -> Labelled:
    values = torch.arange(count * channels * 16).view(count, channels, 4, 4) + first
    norm = Normalisation(torch.full((1, 1, 1), 255.0), torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 2.0))
    return Labelled(memory_format.as_stored(values.to(torch.uint8)), torch.arange(count) + first, norm)


def test_one_call_gathers_the_rows_of_each_participant_and_single_ones_read_the_same_samples():
    for channels in (1, 3):
        parts = [images(5, 0, channels), images(3, 50, channels), images(7, 90, channels)]
        before = [(part.inputs(), part.labels.clone(), part.stored.stride()) for part in parts]
        rows = torch.tensor([[4, 0], [2, 2], [1, 6]])
        inputs, labels = JoinedSamples(parts).minibatches(rows)
        for number, (own, targets, strides) in enumerate(before):
            assert torch.equal(inputs.unflatten(0, rows.shape)[number], own[rows[number]])
            assert torch.equal(labels[number], targets[rows[number]])
            # A participant alone goes on with the same samples, in the same order in memory, and they exist once.
            assert torch.equal(parts[number].inputs(), own)
            assert torch.equal(parts[number].labels, targets)
            assert parts[number].stored.stride() == strides
        assert len({part.stored.untyped_storage().data_ptr() for part in parts}) == 1


def test_samples_that_all_have_in_common_are_not_copied():
    common = images(5, 0)
    address = common.stored.data_ptr()
    inputs, labels = JoinedSamples([common, common]).minibatches(torch.tensor([[4], [1]]))
    assert labels.tolist() == [[4], [1]]
    assert torch.equal(inputs, common.inputs()[[4, 1]])
    assert common.stored.data_ptr() == address


def test_a_part_that_some_have_in_common_is_joined_once():
    common, other = images(2, 0), images(2, 50)
    _, labels = JoinedSamples([common, other, common]).minibatches(torch.tensor([[1], [1], [0]]))
    assert labels.tolist() == [[1], [51], [0]]
