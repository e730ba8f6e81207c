"""Data sets of PyTorch and Hugging Face as ours, on small ones that need no download."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from fedh2l_mpi import DataSet
from fedh2l_mpi.data.own_data import as_source
from fedh2l_mpi.data.sources import Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.plugins import Plugin

N = 30
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 6, 8, 3)).astype(np.uint8)
Y = np.arange(N) % 3
ROWS = np.array([4, 2, 29])


def source_of(dataset: DataSet) -> Source:
    return as_source(Plugin("data.name", "mine:load"), dataset, 0.2)


class Pictures(Dataset):
    """Pictures as torchvision's data sets give them: PIL images, with the names of the classes."""

    classes = ["ant", "bee", "cat"]  # noqa: RUF012

    def __init__(self, has_targets):
        self.items_read = 0
        if has_targets:
            self.targets = Y.tolist()

    def __len__(self):
        return N

    def __getitem__(self, row):
        self.items_read += 1
        return Image.fromarray(PIXELS[row]), int(Y[row])


@pytest.mark.parametrize("has_targets", [True, False])
def test_pictures_of_a_torch_dataset_are_images(has_targets):
    pictures = Pictures(has_targets)
    dataset = DataSet.from_torch(pictures)
    assert pictures.items_read == 0
    source = source_of(dataset)
    assert (str(source.form), source.class_names, source.is_compact) == (
        "images of 3 x 6 x 8",
        ("ant", "bee", "cat"),
        True,
    )
    assert source.train.labels.tolist() == Y.tolist()
    assert np.array_equal(source.train.samples(ROWS), PIXELS[ROWS].transpose(0, 3, 1, 2))


def test_tensors_subsets_and_domains_of_torch():
    x = torch.rand(N, 3, 6, 8)
    whole = TensorDataset(x, torch.from_numpy(Y))
    train, test = Subset(whole, list(range(20))), ConcatDataset([Subset(whole, list(range(20, N)))])
    places = (["x", "y"] * 10, ["y", "x"] * 5)
    source = source_of(DataSet.from_torch(train, test, domains=places, transform=lambda sample: 2 * sample))
    assert source.domains.names == ("x", "y")
    assert source.domains.of_test_row.tolist() == [1, 0] * 5
    assert source.train.labels.tolist() == Y[:20].tolist()
    assert source.test.labels.tolist() == Y[20:].tolist()
    assert np.array_equal(source.test.samples(np.array([3])), 2 * x[23:24].numpy())


class Split:
    """The part of the interface of a Hugging Face Dataset that is used."""

    column_names = ("img", "species", "place")

    class Feature:
        names = ("ant", "bee", "cat")

    features = {"species": Feature}  # noqa: RUF012

    def __len__(self):
        return N

    def __getitem__(self, key):
        columns = {"species": Y.tolist(), "place": ["x", "y"] * 15}
        if isinstance(key, str):
            return columns[key]
        return {"img": Image.fromarray(PIXELS[key]), **{name: values[key] for name, values in columns.items()}}


@pytest.mark.parametrize("dataset", [Split(), {"train": Split(), "validation": Split()}], ids=["one split", "two"])
def test_columns_of_hugging_face_are_images_labels_and_domains(dataset):
    source = source_of(DataSet.from_hugging_face(dataset, sample="img", label="species", domain="place"))
    assert (str(source.form), source.class_names) == ("images of 3 x 6 x 8", ("ant", "bee", "cat"))
    assert source.domains.names == ("x", "y")
    assert (source.test is None) == isinstance(dataset, Split)
    assert source.train.labels.tolist() == Y.tolist()
    assert np.array_equal(source.train.samples(ROWS), PIXELS[ROWS].transpose(0, 3, 1, 2))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataSet.from_torch(Stream()), "train is Stream, which has no length"),
        (lambda: DataSet.from_torch(Pictures(True), Pictures(True), domains=Y), "domains must be a pair"),
        (lambda: DataSet.from_hugging_face({"all": Split()}), "no split 'train' in all"),
        (lambda: DataSet.from_hugging_face(Split()), "no column 'image'.* Known: img, species, place"),
        (
            lambda: DataSet.from_hugging_face(Split(), "img", "specis"),
            r"no column 'specis' \(did you mean 'species'\?\)",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
