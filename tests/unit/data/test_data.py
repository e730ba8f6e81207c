"""Readers, partitions, domains and the seed set, on real digits and on IDX files written here."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.datasets import load_digits
from torch.nn import functional

from fedh2l_mpi import config
from fedh2l_mpi.config import DataConfig, loading
from fedh2l_mpi.data import federated
from fedh2l_mpi.data.partition import Draw, Samples, Share, own_domain, partition
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.rotation import rotate
from fedh2l_mpi.data.sources import ArrayTable, digits, idx
from fedh2l_mpi.errors import UserError

CPU = torch.device("cpu")


def settings(*overrides: str) -> config.Config:
    return loading.load(None, overrides).resolved(1, launched=False)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    """A small data set in MNIST's format: one file gzipped, the others plain."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 5000), ("t10k", 50)):
        images = draw.integers(0, 256, size=(count, 12, 12))
        labels = draw.integers(0, 10, size=count)
        labels[:10] = np.arange(10)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        if part == "train":
            with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
                file.write(idx_bytes(images))
        else:
            (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    return tmp_path


def test_digits_are_scikit_learns_digits():
    source, theirs = digits(), load_digits()
    is_test = np.arange(len(theirs.target)) % 5 == 4
    for table, part in ((source.train, ~is_test), (source.test, is_test)):
        assert np.array_equal(table.labels, theirs.target[part])
        assert np.array_equal(table.samples(np.arange(part.sum()))[:, 0], theirs.images[part])


def test_digits_come_with_zero_mean_and_unit_variance():
    source = digits()
    pixels = source.train.samples(np.arange(1000)) / source.full_scale
    assert ((pixels - source.mean) / source.std).mean() == pytest.approx(0.0, abs=0.02)
    assert ((pixels - source.mean) / source.std).std() == pytest.approx(1.0, abs=0.02)


def test_idx_rows_come_in_the_order_asked_for_whether_gzipped_or_not(idx_folder):
    source = idx("mnist", str(idx_folder))
    raw = gzip.decompress((idx_folder / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    everything = np.frombuffer(raw, np.uint8).reshape(-1, 1, 12, 12)
    rows = np.array([4999, 3, 2048, 3, 2047, 0, 4096])
    assert np.array_equal(source.train.samples(rows), everything[rows])
    assert source.test.samples(np.array([], dtype=np.int64)).shape == (0, 1, 12, 12)
    assert (source.form.shape, source.classes) == ((1, 12, 12), 10)


def test_real_mnist_is_read(mnist):
    source = open_source(DataConfig(name="mnist", root=str(mnist)))
    assert np.bincount(source.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    pixels = source.train.samples(np.arange(2000)) / 255
    assert pixels.mean() == pytest.approx(source.mean, abs=0.01)


@pytest.mark.parametrize("below", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("hyphen", ["-idx", ".idx"])
def test_idx_files_are_found_as_other_programs_name_and_place_them(idx_folder, tmp_path_factory, below, hyphen):
    folder = tmp_path_factory.mktemp("data")
    (folder / below).mkdir(parents=True, exist_ok=True)
    for path in idx_folder.iterdir():
        path.rename(folder / below / path.name.replace("-idx", hyphen))
    source = idx("mnist", str(folder))
    assert (len(source.train.labels), len(source.test.labels)) == (5000, 50)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            "train-labels-idx1-ubyte",
            None,
            "has neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte.gz. It has 't10k-images-idx3-ubyte', ",
        ),
        ("t10k-images-idx3-ubyte", lambda b: b[:-1], "ends 1 bytes too early"),
        ("t10k-images-idx3-ubyte", lambda b: b[:7], "ends 9 bytes too early"),
        ("t10k-labels-idx1-ubyte", lambda b: b[:30], "ends 28 bytes too early"),
        ("t10k-images-idx3-ubyte", lambda b: b"\x89PNG" + b[4:], "not an IDX file of unsigned bytes with 3 dimensions"),
        ("t10k-labels-idx1-ubyte", lambda b: idx_bytes(np.zeros(7)), "has 50 images, but .* has 7 labels"),
        (
            "t10k-images-idx3-ubyte",
            lambda b: idx_bytes(np.zeros((50, 12, 11))),
            r"differ in size: 12 x 11, 12 x 12",
        ),
        ("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((50, 9, 9))), "differ in size"),
        ("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((50, 0, 0))), r"0 x 0 pixels\. Allowed: 1 to 4096"),
        (
            "t10k-images-idx3-ubyte",
            lambda b: b[:8] + b"\xff" * 8 + b[16:],
            r"4294967295 x 4294967295 pixels\. Allowed: 1 to 4096",
        ),
        ("t10k-images-idx3-ubyte", lambda b: b + b"x", "is longer than its header says"),
        ("t10k-labels-idx1-ubyte", lambda b: b + b"x", "is longer than its header says"),
        ("train-images-idx3-ubyte.gz", lambda b: b[: len(b) // 2], "ends before its gzip stream"),
        ("train-images-idx3-ubyte.gz", lambda b: b[:5000] + bytes(100) + b[5100:], "the gzip file is damaged"),
        ("train-images-idx3-ubyte.gz", lambda b: b"no gzip at all", "the gzip file is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_what_is_wrong_with_it(idx_folder, file, change, says):
    path = idx_folder / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))

    def read_everything():
        source = idx("mnist", str(idx_folder))
        return source.train.samples(np.arange(5000)), source.test.samples(np.arange(50))

    with pytest.raises(UserError, match=says) as error:
        read_everything()
    assert file.removesuffix(".gz") in str(error.value) or "differ in size" in str(error.value)


def test_missing_data_say_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDH2L_DATA", raising=False)
    with pytest.raises(UserError, match=r"FEDH2L_DATA is not set.*https://"):
        open_source(DataConfig(name="mnist"))
    with pytest.raises(UserError, match=r"is not a folder.*Debian's package"):
        open_source(DataConfig(name="fashion_mnist", root=str(tmp_path / "nowhere")))
    monkeypatch.setenv("FEDH2L_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/mnist is not a folder"):
        open_source(DataConfig(name="mnist"))


@pytest.mark.parametrize("name", ["mnist", "pack"])
@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("~nobody_here/data", "got '~nobody_here/data.*', but ~nobody_here has no home folder"),
        ("/" + 300 * "a", "cannot look at /a+.*: File name too long"),
        ("/tmp/a\0b", "got '.*': embedded null byte"),
    ],
)
def test_a_path_that_leads_nowhere_is_the_users_to_mend(name, root, says, monkeypatch):
    with pytest.raises(UserError, match=rf"data\.root: {says}"):
        open_source(DataConfig(name=name, root=root))
    if "\0" not in root:
        monkeypatch.setenv("FEDH2L_DATA", root)
        with pytest.raises(UserError, match=rf"data\.root \(null, so \$FEDH2L_DATA/.*\): {says}"):
            open_source(DataConfig(name=name))


@pytest.mark.parametrize("kind", ["domains", "dirichlet", "shards", "pathological", "quantity", "iid"])
@pytest.mark.parametrize("participants", [1, 3, 7])
def test_no_training_row_is_used_twice(kind, participants):
    plan = federated.plan(settings(f"data.partition.kind={kind}", f"participants={participants}"), digits())
    rows = np.concatenate([part.rows for s in plan.shares for part in (s.private, s.validation, s.seed)])
    assert len(np.unique(rows)) == len(rows)
    assert rows.max() < len(digits().train.labels)
    assert len(plan.shares) == participants
    assert min(len(share.private) for share in plan.shares) >= 1
    assert sum(len(share.seed) for share in plan.shares) == len(plan.seed)
    assert plan.label_histogram().sum(axis=1).tolist() == [len(share.private) for share in plan.shares]


@pytest.mark.parametrize("kind", ["domains", "dirichlet", "shards", "pathological", "iid"])
def test_shares_are_of_the_size_asked_for(kind):
    plan = federated.plan(
        settings(f"data.partition.kind={kind}", "data.partition.samples_per_participant=100"), digits()
    )
    for share in plan.shares:
        assert list(map(len, share.parts)) == [72, 8, 20, 0]


@pytest.mark.parametrize("kind", ["domains", "dirichlet", "shards", "quantity", "iid"])
def test_a_local_test_is_a_part_of_the_own_data_and_moves_no_other_held_out_sample(kind):
    overrides = [f"data.partition.kind={kind}", "participants=3"]
    usual = federated.plan(settings(*overrides), digits())
    plan = federated.plan(settings(*overrides, "evaluation.local_test_share=0.25"), digits())
    assert (usual.has_local_test, plan.has_local_test) == (False, True)
    for share, before in zip(plan.shares, usual.shares, strict=True):
        trained, rest = len(share.private), len(before.private) + len(before.validation)
        assert len(share.local_test) == round(0.25 * rest) == len(before.private) - trained
        for part, whole in ((share.seed, before.seed), (share.validation, before.validation)):
            assert np.array_equal(part.rows, whole.rows)
        together = Samples.join([share.private, share.local_test])
        assert np.array_equal(together.rows, before.private.rows)
        assert np.array_equal(together.domains, before.private.domains)
    loaded = federated.load(plan, [0, 2], torch.device("cpu"))
    assert [len(loaded.local_test[participant]) for participant in (0, 2)] == [
        len(plan.shares[participant].local_test) for participant in (0, 2)
    ]
    labels = digits().train.labels[plan.shares[2].local_test.rows]
    assert loaded.local_test[2].labels.tolist() == labels.tolist()


def test_a_local_test_that_takes_all_or_nothing_is_refused():
    few = ["participants=2", "data.partition.samples_per_participant=4", "seed_set.share=0.25"]
    says = r"evaluation.local_test_share 0.95\) leaves participant 0 no private data: .* and 3 to its local test"
    with pytest.raises(UserError, match=says):
        federated.plan(settings(*few, "evaluation.local_test_share=0.95"), digits())
    with pytest.raises(UserError, match=r"evaluation.local_test_share: 0.1 gives no participant a test sample. Raise"):
        federated.plan(settings(*few, "evaluation.local_test_share=0.1"), digits())


SCARCE = ["participants=6", "data.partition.samples_per_participant=60", "seed_set.max_samples=30"]


@pytest.mark.parametrize("kind", ["domains", "dirichlet", "shards", "quantity", "iid"])
def test_a_partition_is_drawn_until_every_class_has_enough_samples(kind):
    overrides, source = [f"data.partition.kind={kind}", *SCARCE], digits()
    labels, least = source.train.labels, 2

    def fewest(shares: list[Share], seed: np.ndarray) -> int:
        private = np.concatenate([share.private.rows for share in shares])
        return min(np.bincount(labels[rows], minlength=10).min() for rows in (private, seed))

    plan = federated.plan(settings(*overrides, f"data.partition.min_per_class={least}"), source)
    assert plan.draws > 1
    assert fewest(plan.shares, plan.seed.rows) >= least
    # The first draw is the partition of a config without the key, and it has too few samples of a class.
    first = federated.plan(settings(*overrides), source)
    assert first.draws == 1
    assert fewest(first.shares, first.seed.rows) < least
    for same in (
        partition(labels, np.arange(len(labels)), plan.config, plan.domains, Draw(0, plan.draws - 1)),
        federated.plan(plan.config, digits()).shares,
    ):
        assert all(np.array_equal(a.private.rows, b.private.rows) for a, b in zip(plan.shares, same, strict=True))


@pytest.mark.parametrize("kind", ["domains", "dirichlet"])
def test_a_first_draw_with_enough_samples_is_the_partition_of_a_config_without_the_key(kind):
    keys = [f"data.partition.kind={kind}", "seed_set.max_samples=100"]
    without, enough = (
        federated.plan(settings(*keys, f"data.partition.min_per_class={least}"), digits()) for least in ("null", "1")
    )
    assert enough.draws == 1
    assert np.array_equal(without.seed.rows, enough.seed.rows)
    for one, other in zip(without.shares, enough.shares, strict=True):
        assert np.array_equal(one.private.rows, other.private.rows)
        assert np.array_equal(one.private.domains, other.private.domains)


def test_classes_without_samples_are_found():
    plan = federated.plan(settings("seed_set.max_samples=4"), digits())
    absent = plan.absent_classes()
    assert absent["private training"].tolist() == []
    held = digits().train.labels[plan.seed.rows].tolist()
    assert absent["seed"].tolist() == sorted(set(range(10)) - set(held))


def test_smaller_alpha_is_more_skewed_and_shards_bound_the_number_of_labels():
    def labels_held(*overrides: str) -> np.ndarray:
        sizes = ("participants=10", "data.partition.samples_per_participant=100")
        plan = federated.plan(settings(*overrides, *sizes), digits())
        return (plan.label_histogram() > 0).sum(axis=1)

    kind = "data.partition.kind="
    even, mild, hard = (
        labels_held(kind + "dirichlet", f"data.partition.alpha={alpha}").mean() for alpha in (100.0, 0.5, 0.05)
    )
    assert even > mild > hard
    # A shard of 50 rows, where a class has some 100, meets at most two classes, or three with bad luck.
    assert labels_held(kind + "shards", "data.partition.shards_per_participant=2").max() <= 5


def test_quantity_skew_gives_unlike_sizes_of_like_labels():
    plan = federated.plan(settings("data.partition.kind=quantity", "data.partition.alpha=0.5"), digits())
    sizes = plan.label_histogram().sum(axis=1)
    assert sizes.max() > 2 * sizes.min()


@pytest.mark.parametrize(
    ("participants", "classes", "samples", "holders"),
    [
        (10, 2, "null", [2] * 10),
        (5, 4, 101, [2] * 10),
        # 7 x 3 = 21 hands: every class in two, and one in a third.
        (7, 3, 30, [2] * 9 + [3]),
        # Fewer hands than classes: nobody holds the others.
        (3, 2, "null", [0] * 4 + [1] * 6),
    ],
)
def test_a_pathological_partition_gives_each_participant_exactly_its_classes(participants, classes, samples, holders):
    labels = digits().train.labels
    keys = f"kind: pathological, classes_per_participant: {classes}, samples_per_participant: {samples}"
    config = settings(f"participants={participants}", f"data.partition={{{keys}}}")
    shares = federated.plan(config, digits()).shares
    counts_PC = np.stack(
        [np.bincount(labels[np.concatenate([part.rows for part in share.parts])], minlength=10) for share in shares]
    )
    assert (counts_PC > 0).sum(axis=1).tolist() == [classes] * participants
    held_by_C = (counts_PC > 0).sum(axis=0)
    assert sorted(held_by_C.tolist()) == holders
    assert max(np.ptp(row[row > 0]) for row in counts_PC) <= 1
    # The class with the fewest samples for each of its holders decides, unless the config does.
    largest = classes * min(len(labels[labels == label]) // n for label, n in enumerate(held_by_C) if n)
    assert counts_PC.sum(axis=1).tolist() == [largest if samples == "null" else samples] * participants


def test_dirichlet_sizes_are_drawn_only_if_asked_for_and_have_the_mean_of_the_share():
    keys = ["data.partition={kind: dirichlet, alpha: 100, samples_per_participant: 100}", "participants=10"]
    equal, null, drawn = (
        federated.plan(settings(*keys, *more), digits()).shares
        for more in ([], ["data.partition.quantity_alpha=null"], ["data.partition.quantity_alpha=0.5"])
    )
    sizes = np.array([sum(map(len, share.parts)) for share in drawn])
    assert sizes.min() >= 10
    # Each is rounded down.
    assert 1000 - 10 <= sizes.sum() <= 1000
    assert sizes.max() > 2 * sizes.min()
    for one, other in zip(equal, null, strict=True):
        assert np.array_equal(one.private.rows, other.private.rows)


def test_domains_are_dealt_in_turn_or_mixed():
    part = loading.load(None, ["data.partition.domains=3"]).data.partition
    assert [own_domain(index, part, 3) for index in range(5)] == [0, 1, 2, 0, 1]
    plan = federated.plan(settings("data.partition.kind=iid", "participants=2"), digits())
    assert [plan.own_domain(0), plan.own_domain(1)] == [-1, -1]
    assert set(plan.shares[0].private.domains.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.partition.samples_per_participant=1000"], "4 participants with 1000 samples each need 4000"),
        (["participants=2000"], "participants: got 2000, but there are only 1438"),
        (["participants=1400", "seed_set.share=0.9"], "seed_set.share: 0.9 .* leaves participant 0 no private data"),
        (["seed_set.share=0.0"], "seed_set.share: 0.0 gives an empty seed set"),
        (["seed_set.samples_per_round=400"], "samples_per_round: got 400, but the seed set has 288"),
        (
            ["data.partition.min_per_class=1", "seed_set.max_samples=9"],
            "min_per_class: got 1, but in the best of 100 draws class . has only 0 seed samples. Use null, or raise ",
        ),
        (
            ["data.partition.min_per_class=5", "data.partition.samples_per_participant=40", "seed_set.share=0.9"],
            r"min_per_class: got 5, .* only \d private training samples. Use \d, or lower seed_set.share, or raise ",
        ),
        (["evaluation.test_samples_per_domain=400"], "got 400, but digits has 359 test samples"),
        (
            ["data.partition.kind=shards", "participants=700", "data.partition.shards_per_participant=5"],
            "shards_per_participant: got 5, but a participant has only 2",
        ),
        (
            ["data.partition={kind: pathological, classes_per_participant: 11}"],
            "classes_per_participant: got 11, but the training data have 10 classes",
        ),
        (
            ["data.partition={kind: pathological, samples_per_participant: 359}"],
            r"samples_per_participant: got 359, but class \d has only 1\d\d training samples for the 1 participants .* "
            r"Use at most 2\d\d samples per participant",
        ),
        (
            ["data.partition={kind: pathological, samples_per_participant: 1}"],
            "samples_per_participant: got 1, but each participant holds 2 classes. Use at least 2",
        ),
        (
            ["data.partition={kind: pathological, classes_per_participant: 9}", "participants=200"],
            r"participants: got 200, but class \d has only .* for the 180 participants .* Use fewer participants",
        ),
    ],
)
def test_data_that_do_not_suffice_are_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        federated.plan(settings(*overrides), digits())


def test_the_seed_set_is_capped():
    plan = federated.plan(settings("seed_set.max_samples=50"), digits())
    assert len(plan.seed) == 50


def test_a_quarter_turn_is_counter_clockwise_and_exact():
    images = torch.randn(3, 2, 8, 8)
    torch.testing.assert_close(rotate(images, 90.0), torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-5)
    # A wide image's middle square turns as a square image does.
    wide = functional.pad(images, (4, 4))
    torch.testing.assert_close(rotate(wide, 90.0)[..., 4:12], torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-5)
    assert rotate(images, 0.0) is images


def test_rotation_agrees_with_another_implementation():
    draw = np.random.default_rng(0)
    image = ndimage.gaussian_filter(draw.random((28, 28)), 2) * np.pad(np.ones((14, 14)), 7)
    ours = rotate(torch.tensor(image[None, None], dtype=torch.float32), 33.0)[0, 0].numpy()
    theirs = ndimage.rotate(image, 33.0, reshape=False, order=1)
    assert np.abs(ours - theirs).max() < 1e-4


def test_a_rank_reads_the_private_data_of_its_participants_and_nothing_else():
    read = []

    class Watched(ArrayTable):
        def samples(self, rows):
            read.extend(rows.tolist())
            return super().samples(rows)

    source = digits()
    plan = federated.plan(settings(), source)
    watched = federated.Plan(
        plan.config,
        type(source)(**{**source.__dict__, "train": Watched(source.train.labels, source.train.values)}),
        plan.shares,
        plan.seed,
        plan.tests,
    )
    loaded = federated.load(watched, [2], CPU)
    share = plan.shares[2]
    expected = {*share.private.rows.tolist(), *share.validation.rows.tolist(), *plan.seed.rows.tolist()}
    assert set(read) == expected
    assert set(loaded.private) == set(loaded.validation) == {2}


def test_images_labels_and_domains_stay_together():
    source = digits()
    plan = federated.plan(settings("data.partition.kind=iid"), source)
    private = federated.load(plan, [1], CPU).private[1]
    share = plan.shares[1].private
    for sample in (0, 17, 100):
        row, domain = share.rows[sample], share.domains[sample]
        pixels = torch.tensor(source.train.samples(np.array([row])) / 16.0, dtype=torch.float32)
        expected = (rotate(pixels, 20.0 * float(domain)) - source.mean) / source.std
        torch.testing.assert_close(private.stored[sample : sample + 1], expected)
        assert private.labels[sample] == source.train.labels[row]


def test_every_rank_holds_the_same_seed_set_and_draws_the_same_subset():
    plan = federated.plan(settings("seed_set.samples_per_round=40"), digits())
    one, other = (federated.load(plan, hosted, CPU).seed_set for hosted in ([0], [1, 3]))
    assert one.digest() == other.digest()
    for round_index in (0, 5):
        a, b = one.of_round(round_index), other.of_round(round_index)
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.labels, b.labels)
        # Two views of each of the samples drawn.
        assert torch.equal(a.labels[:40], a.labels[40:])
        assert not torch.equal(a.inputs[:40], a.inputs[40:])
        assert len(a) == 80
    assert not torch.equal(one.of_round(0).inputs, one.of_round(1).inputs)
    backwards = federated.Labelled(one.samples.stored.flip(0), one.samples.labels.flip(0))
    swapped = dataclasses.replace(one, samples=backwards)
    assert swapped.digest() != one.digest()


def test_every_seed_is_tested_on_the_same_originals_in_every_domain():
    plans = [federated.plan(settings(f"seed={s}", "evaluation.test_samples_per_domain=9"), digits()) for s in (0, 1)]
    for one, other in zip(plans[0].tests, plans[1].tests, strict=True):
        assert np.array_equal(one.rows, other.rows)
    tests = federated.load(plans[0], [0], CPU).tests
    assert len(tests) == 4
    assert all(torch.equal(test.labels, tests[0].labels) for test in tests)
    assert not torch.equal(tests[0].stored, tests[1].stored)
