"""Data that users bring, as functions, folders and packs: the same numbers on any number of ranks."""

import os
import textwrap

import numpy as np
import pytest
from helpers.launching import ROOT, assert_same, launch
from PIL import Image

from fedh2l_mpi.run_directory import RunDirectory

SHORT = ["--set", "participants=3", "--set", "rounds=2", "--set", "evaluation.every=2", "--set", "models=[mlp]"]
# A reader whose rows are noisy, but the same on every rank.
FUNCTIONS = """
    import os
    import numpy as np
    import fedh2l_mpi as fh

    class Reader:
        def __len__(self):
            return 150

        def __getitem__(self, row):
            return np.full((1, 8, 8), row % 3 * 10.0) + np.random.rand(1, 8, 8)

    def load(other_on_each_rank=False):
        shift = os.getpid() if other_on_each_rank else 0
        labels = np.arange(150) % 3
        return fh.DataSet(Reader(), labels, np.full((30, 1, 8, 8), shift, "f8"), labels[:30])

    def arrays():
        images = np.random.default_rng(0).integers(0, 255, (150, 8, 8, 3), dtype=np.uint8)
        return fh.DataSet(images, ["a", "b", "c"] * 50, domain_train=np.arange(150) % 2)
"""


def path_of(folder):
    """The setting that finds both this program and the modules of a folder."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


@pytest.fixture
def folder(tmp_path):
    """A folder with the functions, a pack of arrays, and pictures of two classes in two parts."""
    (tmp_path / "brought.py").write_text(textwrap.dedent(FUNCTIONS))
    environ = path_of(tmp_path)
    packed = launch(["pack", "brought:arrays", "arrays.h5", "--layout", "arrays"], environ=environ, cwd=tmp_path)
    assert (packed.code, packed.err) == (0, ""), packed.err
    for number in range(150):
        place = tmp_path / "pictures" / ("train" if number < 120 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (10, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path


SETS = {
    "function": ["--set", "data.name=brought:load"],
    "pack": ["--set", "data.name=pack", "--set", "data.root=arrays.h5"],
    "pictures": ["--set", "data.name=image_folder", "--set", "data.root=pictures", "--set", "data.size=8x8"],
}


def test_functions_packs_and_pictures_give_the_same_bits_on_any_number_of_ranks(folder):
    environ = path_of(folder)
    for name, settings in SETS.items():
        for ranks in (None, 2, 3):
            ended = launch(
                [*SHORT, *settings, "--quiet", "--out", f"{name}-{ranks}"], ranks, environ=environ, cwd=folder
            )
            assert ended.code == 0, ended.err
        for ranks in (2, 3):
            assert_same(folder / f"{name}-None" / "metrics.h5", folder / f"{name}-{ranks}" / "metrics.h5")
    for rank in range(3):
        assert "MiB of memory" in RunDirectory(folder / "pack-3").log(rank).read_text()


def test_tables_compressed_arrays_and_texts_give_the_same_bits_on_any_number_of_ranks(tmp_path):
    draw, labels = np.random.default_rng(0), np.arange(150) % 3
    lines = [f"{label},{draw.normal() + label},{'uv'[row % 2]},s{row % 3}" for row, label in enumerate(labels)]
    (tmp_path / "table.csv").write_text("\n".join(["label,a,b,site", *lines]))
    images = draw.integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "images.npz", x=images, y=labels, domain=labels % 2)
    sets = {
        "csv": ["--set", "data.root=table.csv", "--set", "data.domain=site"],
        "npz": ["--set", "data.root=images.npz"],
        "grammar_text": [],
    }
    for name, settings in sets.items():
        for ranks in (None, 3):
            words = [*SHORT, "--set", f"data.name={name}", *settings, "--quiet", "--out", f"{name}-{ranks}"]
            ended = launch(words, ranks, cwd=tmp_path)
            assert ended.code == 0, ended.err
        assert_same(tmp_path / f"{name}-None" / "metrics.h5", tmp_path / f"{name}-3" / "metrics.h5")


def test_a_function_that_gives_ranks_other_data_is_refused(folder):
    words = [*SHORT, *SETS["function"], "--set", "data.options.other_on_each_rank=true"]
    ended = launch([*words, "--quiet", "--out", "differs"], 2, environ=path_of(folder), cwd=folder)
    assert ended.code == 2, ended.err
    assert "'brought:load' gives rank 1 other data than rank 0" in ended.err
