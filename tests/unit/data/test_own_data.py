"""Data of a user's own function: what becomes of them, and every mistake in one line."""

import gc
import importlib
import re
import textwrap

import numpy as np
import pytest
import torch

from fedh2l_mpi import DataSet
from fedh2l_mpi.build import build_rank
from fedh2l_mpi.config.loading import load
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.content_digest import with_digest
from fedh2l_mpi.data.own_data import as_source
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.runtime.plugins import Plugin
from fedh2l_mpi.runtime.world import World

PLUGIN = Plugin("data.name", "mine:load")
N = 40
Y = np.arange(N) % 3


def values(*shape: int, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (N, *shape)).astype(dtype)


class Rows:
    """A reader that counts what is read of it."""

    def __init__(self, x, y=None):
        self.x, self.y, self.read = x, y, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        self.read.append(row)
        return self.x[row] if self.y is None else (self.x[row], self.y[row])


class Short(Rows):
    """A reader that promises more than it has."""

    def __getitem__(self, row):
        return self.x[:3][row]


@pytest.mark.parametrize(
    ("x", "form"),
    [
        (values(7), "vectors of 7"),
        (values(2, 7), "series of 2 x 7"),
        (values(6, 7, dtype="u1"), "images of 1 x 6 x 7"),
        (values(6, 7, 3, dtype="u1"), "images of 3 x 6 x 7"),
    ],
    ids=str,
)
def test_arrays_lists_tensors_and_readers_are_one_data_set(x, form, tmp_path):
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    given = {
        "array": DataSet(x, Y),
        "mapped": DataSet(mapped, Y),
        "list": DataSet(list(x), list(Y)),
        "tensor": DataSet(torch.from_numpy(x), torch.from_numpy(Y)),
        "reader": DataSet(Rows(x), Y),
        "pairs": DataSet(Rows(x, Y)),
    }
    sources = {name: as_source(PLUGIN, one, 0.2) for name, one in given.items()}
    assert {str(source.form) for source in sources.values()} == {form}
    assert len({with_digest(source).digest for source in sources.values()}) == 1
    rows = np.array([5, 0, 5, 39])
    axes = "first" if x.shape[-1] != 3 else "last"
    expected = np.moveaxis(x, -1, 1) if axes == "last" else x
    for source in sources.values():
        assert source.is_compact == ("images" in form)
        assert np.array_equal(source.train.samples(rows).ravel(), expected[rows].ravel())
        assert source.train.labels.tolist() == Y.tolist()
        source.train.verify()
    assert isinstance(sources["mapped"].train.given.values, np.ndarray)
    assert not sources["mapped"].train.given.values.flags.owndata


def test_samples_are_normalised_by_the_training_rows():
    x = values(4, dtype="f8")
    source = as_source(PLUGIN, DataSet(x, Y, x[:10], Y[:10]), 0.2)
    np.testing.assert_allclose(source.mean, x.mean(axis=0))
    np.testing.assert_allclose(source.std, x.std(axis=0))
    given = as_source(PLUGIN, DataSet(x, Y, mean=3, std=[1, 2, 3, 4]), 0.2)
    assert (given.mean, given.std) == ((3.0,), (1.0, 2.0, 3.0, 4.0))
    tokens = as_source(PLUGIN, DataSet(values(5, dtype="i4"), Y, vocabulary=200), 0.2)
    assert (tokens.mean, tokens.std, tokens.form.vocabulary) == ((0.0,), (1.0,), 200)


def test_a_rank_reads_the_rows_of_its_participants_only(monkeypatch):
    reader = Rows(np.repeat(values(4), 10, axis=0))
    dataset = DataSet(reader, np.arange(400) % 3, mean=0.0, std=1.0)
    config = load({"data": {"name": "mine:load"}, "participants": 4, "seed_set": {"views": "none"}})
    plan = federated.plan(config.resolved(1, launched=False), as_source(PLUGIN, dataset, 0.2))
    reader.read.clear()
    loaded = federated.load(plan, [2], torch.device("cpu"))
    share = plan.shares[2]
    held = [share.private, share.validation, plan.seed, *plan.tests]
    assert set(reader.read) == {int(row) for part in held for row in part.rows}
    assert torch.equal(loaded.private[2].stored, torch.from_numpy(reader.x[share.private.rows]))
    assert plan.domain_names == ["all"]


def test_names_are_numbered():
    words = np.array(["cat", "ant", "bee"])[Y]
    source = as_source(PLUGIN, DataSet(values(4), words, domain_train=["x", "y"] * 20), 0.2)
    assert source.class_names == ("ant", "bee", "cat")
    assert source.train.labels.tolist() == [("ant", "bee", "cat").index(word) for word in words]
    assert source.domains.names == ("x", "y")
    numbered = as_source(PLUGIN, DataSet(values(4), words, values(4), words, class_names=("cat", "ant", "bee")), 0.2)
    assert numbered.train.labels.tolist() == numbered.test.labels.tolist() == Y.tolist()


def test_random_readers_give_the_same_rows_in_any_order():
    class Noisy(Rows):
        def __getitem__(self, row):
            return self.x[row] + np.random.rand() + torch.rand(1).item()  # noqa: NPY002

    table = as_source(PLUGIN, DataSet(Noisy(values(4)), Y), 0.2).train
    assert np.array_equal(table.samples(np.array([3, 1]))[::-1], table.samples(np.array([1, 3])))


def test_other_content_has_another_digest():
    x = values(4)
    digests = {
        with_digest(as_source(PLUGIN, one, 0.2)).digest
        for one in (
            DataSet(x, Y),
            DataSet(x + 1, Y),
            DataSet(x, (Y + 1) % 3),
            DataSet(x[:-1], Y[:-1]),
            DataSet(x, Y, domain_train=Y),
            DataSet(x, Y, class_names="abc"),
        )
    }
    assert len(digests) == 6


NAN = values(4)
NAN[7, 2] = np.nan
BAD = {
    "x_train is empty": DataSet(values(4)[:0], Y[:0]),
    "x_train is str. Allowed: an array": DataSet("path", Y),
    "x_train is generator. Allowed: an array": DataSet((one for one in values(4)), Y),
    r"x_train has samples of shape \(2, 2, 2, 2\), but they have": DataSet(values(2, 2, 2, 2), Y),
    "x_train is of type <U1. Allowed: integers and floats": DataSet(np.full((N, 3), "a"), Y),
    r"x_train: row 7 has the value nan. Allowed: finite": DataSet(NAN, Y),
    r"x_train: row 9 has the shape \(3,\), but row 0 has \(4,\)": DataSet([*values(4)[:9], np.zeros(3)], Y[:10]),
    r"x_train: row 5 is float64 of shape \(4,\), but row 0 is float32": DataSet(
        Rows([*values(4)[:5], *values(4)[5:].astype("f8")]), Y
    ),
    "x_train: row 0 is str. Allowed: an array of numbers. Convert texts to token ids": DataSet(Rows(["some"] * N), Y),
    "row 3 of x_train cannot be read: IndexError": DataSet(Short(values(4)), Y),
    "y_train is missing. Give the class": DataSet(values(4)),
    "row 0 is ndarray. Without labels in an array, every row must be a pair": DataSet(Rows(values(4))),
    "y_train has 39 entries, but there are 40 samples": DataSet(values(4), Y[:-1]),
    r"y_train has the shape \(40, 1\). Allowed: one class for each": DataSet(values(4), Y[:, None]),
    "y_train is of type float64. Allowed: integers from 0": DataSet(values(4), Y / 1),
    "y_train: row 0 is -1. Allowed: 0 to 1": DataSet(values(4), Y - 1),
    "y_train: row 2 is 2. Allowed: 0 to 1": DataSet(values(4), Y, class_names=["a", "b"]),
    "y_train: class 1 of 0 to 2 has no training sample": DataSet(values(4), Y // 2 * 2),
    "y_train has the class 2000000": DataSet(values(4), Y * 1_000_000),
    "y_train: class_names has a name twice: a, b, a": DataSet(values(4), Y, class_names=["a", "b", "a"]),
    "y_test: row 0 is 3. Allowed: 0 to 2": DataSet(values(4), Y, values(4), Y + 3),
    "y_test: row 1 is 'q'. Known: 'a', 'b'": DataSet(values(4), ["a", "b"] * 20, values(4)[:2], ["a", "q"]),
    r"x_test has vectors of 5 \(float32\), but x_train has vectors of 4": DataSet(values(4), Y, values(5), Y),
    r"x_test has images of 1 x 6 x 6 \(float64\), but x_train has .* \(uint8\)": DataSet(
        values(1, 6, 6, dtype="u1"), Y, values(1, 6, 6, dtype="f8"), Y
    ),
    "x_test is missing, but there is y_test": DataSet(values(4), Y, y_test=Y),
    "domain_test is missing. Give the domains of both": DataSet(values(4), Y, values(4), Y, domain_train=Y),
    "domain_train has 3 entries": DataSet(values(4), Y, domain_train=[0, 1, 2]),
    "domain_train: domain 0 of 0 to 3 has no training sample": DataSet(values(4), Y, domain_train=Y + 1),
    "domain_train: row 2 is 2. Allowed: 0 to 1": DataSet(values(4), Y, domain_train=Y, domain_names=["a", "b"]),
    r"its kind is 'pictures'": DataSet(values(4), Y, kind="pictures"),
    "row 0 has the value 230. Allowed: 0 to 49": DataSet(values(4, dtype="i4") + 60, Y, vocabulary=50),
    "mean is 'x'. Allowed: 1 or 4 finite numbers": DataSet(values(4), Y, mean="x"),
    r"std is \[1, 2\]. Allowed: 1 or 4 finite numbers": DataSet(values(4), Y, std=[1, 2]),
    "std is 0. Allowed: numbers above 0": DataSet(values(4), Y, std=0),
}


@pytest.mark.parametrize("message", BAD)
def test_every_mistake_in_the_data_is_one_line(message):
    dataset = BAD[message]
    with pytest.raises(UserError, match=f"^data.name: 'mine:load': .*{message}") as caught:
        as_source(PLUGIN, dataset, 0.2).train.verify()
    assert "\n" not in str(caught.value)


MODULE = """
    import numpy as np
    import fedh2l_mpi as fh

    NUMBER = 3

    def load(samples=60, *, width=4):
        x = np.random.rand(samples, width)
        return fh.DataSet(x, np.arange(samples) % 3, class_names=["a", "b", "c"])

    def needs(path): ...
    def fails(): raise ValueError("no such\\nfile")
    def pairs(): return np.zeros(3), np.zeros(3)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "brought_data.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("module")
def test_the_function_gets_the_options_and_draws_the_same_numbers_each_time():
    config = load({"data": {"name": "brought_data:load", "options": {"width": 5}}})
    source = open_source(config.data)
    assert (str(source.form), source.classes, source.name) == ("vectors of 5", 3, "brought_data:load")
    assert open_source(config.data).digest == source.digest


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "load",
            {"widht": 5},
            r"data.options.widht: got 5, .* no such argument \(did you mean 'width'\?\). Known: samples",
        ),
        ("needs", {}, "data.options: 'brought_data:needs': missing a required argument: 'path'"),
        (
            "fails",
            {},
            r"'brought_data:fails': the function fails: ValueError in brought_data.py, line 12: no such file",
        ),
        ("pairs", {}, "'brought_data:pairs' returned tuple, must be a fedh2l_mpi.DataSet"),
        ("NUMBER", {}, "must be a function that returns a fedh2l_mpi.DataSet, got 3"),
        ("gone", {}, "module brought_data has no gone"),
    ],
)
def test_a_function_that_gives_no_data_set_is_refused(name, options, message):
    config = load({"data": {"name": f"brought_data:{name}", "options": options}})
    with pytest.raises(UserError, match=message) as caught:
        open_source(config.data)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("module")
def test_a_module_that_is_missing_and_a_test_share_of_data_with_a_test_part_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.name: .*cannot import brought.*Run from its folder"):
        open_source(load({"data": {"name": "brought:load"}}).data)
    (tmp_path / "brought_test.py").write_text(
        "import numpy as np, fedh2l_mpi as fh\ndef load():\n    x, y = np.zeros((9, 2)), np.arange(9) % 3\n"
        "    return fh.DataSet(x, y, x, y)\n"
    )
    with pytest.raises(UserError, match=re.escape("data.test_share: got 0.3, but brought_test:load has its own test")):
        open_source(load({"data": {"name": "brought_test:load", "test_share": 0.3}}).data)


def test_a_rank_lets_go_of_the_array_that_the_function_returned(tmp_path, monkeypatch):
    (tmp_path / "brought_once.py").write_text(
        "import weakref, numpy as np, fedh2l_mpi as fh\nreturned = []\ndef load():\n"
        "    x = np.random.rand(200, 1, 8, 8)\n    returned.append(weakref.ref(x))\n"
        "    return fh.DataSet(x, np.arange(200) % 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load({"data": {"name": "brought_once:load"}, "participants": 2, "models": ["mlp"]})
    setup = build_rank(config.resolved(1, launched=False), World(None))
    (returned,) = importlib.import_module("brought_once").returned
    gc.collect()
    assert returned() is None
    assert len(setup.plan.source.train.labels) == 200
