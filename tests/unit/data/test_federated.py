"""A federation of data of any form: who holds which rows, with the data's own domains and without any."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers.photographs import DOMAINS, SIDE, picture, settings

from fedh2l_mpi.config import Config
from fedh2l_mpi.config.data import Pack
from fedh2l_mpi.data import federated, pack_writer
from fedh2l_mpi.data.pack_reader import open_pack
from fedh2l_mpi.data.registry import open_source
from fedh2l_mpi.data.sources import ArrayTable, NaturalDomains, Source
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.sample_form import SampleForm

CPU = torch.device("cpu")


def all_rows(plan: federated.Plan) -> np.ndarray:
    return np.concatenate([part.rows for s in plan.shares for part in (s.private, s.validation, s.seed)])


@pytest.mark.parametrize("kind", ["domains", "dirichlet", "shards", "quantity"])
@pytest.mark.parametrize("participants", [2, 4, 7])
def test_a_participant_holds_rows_of_its_own_domain_only(packed, kind, participants):
    source = open_pack(str(packed))
    plan = federated.plan(settings(packed, f"participants={participants}", f"data.partition.kind={kind}"), source)
    assert source.domains is not None
    of_row = source.domains.of_row
    assert (plan.domains, plan.domain_names) == (4, list(DOMAINS))
    for participant, share in enumerate(plan.shares):
        assert plan.own_domain(participant) == participant % 4
        for part in (share.private, share.validation, share.seed):
            assert set(part.domains.tolist()) <= {participant % 4}
            assert np.array_equal(part.domains, of_row[part.rows])
    rows = np.concatenate([all_rows(plan), *(test.rows for test in plan.tests)])
    assert len(np.unique(rows)) == len(rows)
    assert plan.label_histogram().shape == (participants, 3)


def test_domains_are_shared_out_whole_among_those_that_hold_them(packed):
    plan = federated.plan(settings(packed, "participants=6"), open_pack(str(packed)))
    held = [sum(len(part) for part in (share.private, share.validation, share.seed)) for share in plan.shares]
    # 24 training images of a domain, 16 of the sketches; domains 0 and 1 have two participants.
    assert held == [12, 12, 24, 16, 12, 12]


def test_iid_mixes_all_domains_and_every_row_keeps_its_own(packed):
    source = open_pack(str(packed))
    plan = federated.plan(settings(packed, "data.partition.kind=iid", "participants=2"), source)
    assert source.domains is not None
    for participant, share in enumerate(plan.shares):
        assert plan.own_domain(participant) == -1
        assert set(share.private.domains.tolist()) == {0, 1, 2, 3}
        assert np.array_equal(share.private.domains, source.domains.of_row[share.private.rows])
    assert len(np.unique(all_rows(plan))) == 88


@pytest.mark.parametrize("kind", ["domains", "shards", "iid"])
def test_a_partition_of_a_pack_is_drawn_until_every_class_has_enough_samples(packed, kind):
    # Each participant holds all that its domain has, so only what it gives to the seed set differs between draws.
    keys = [f"data.partition.kind={kind}", "seed_set.share=0.1"]
    source = open_pack(str(packed))
    first, plan = (
        federated.plan(settings(packed, *keys, f"data.partition.min_per_class={least}"), source) for least in (1, 2)
    )
    assert first.draws == 1 < plan.draws
    counts = [np.bincount(source.train.labels[one.seed.rows]) for one in (first, plan)]
    assert counts[0].min() == 1
    assert counts[1].min() == 2
    assert sorted(all_rows(plan)) == sorted(all_rows(first))


def test_the_test_part_is_stratified_and_the_same_for_every_seed(packed):
    source = open_pack(str(packed))
    plans = [federated.plan(settings(packed, f"seed={seed}"), source) for seed in (0, 1)]
    for domain in range(4):
        one, other = (plan.tests[domain] for plan in plans)
        assert np.array_equal(one.rows, other.rows)
        assert set(one.domains.tolist()) == {domain}
        # A fifth of the ten images of every class.
        assert np.bincount(source.train.labels[one.rows]).tolist() == ([2, 2] if domain == 3 else [2, 2, 2])
        assert not np.isin(all_rows(plans[0]), one.rows).any()
    assert not np.array_equal(plans[0].shares[0].private.rows, plans[1].shares[0].private.rows)


def test_small_classes_are_on_both_sides_and_a_lone_image_is_for_training(tmp_path):
    for label, count in (("one", 1), ("two", 2), ("many", 20)):
        folder = tmp_path / "root" / "only" / label
        folder.mkdir(parents=True)
        for index in range(count):
            picture(index).save(folder / f"{index}.png")
    pack_writer.pack(tmp_path / "root", tmp_path / "p.h5", side=8, workers=1)
    source = open_pack(str(tmp_path / "p.h5"))
    rows = federated.plan(settings(tmp_path / "p.h5", "participants=1"), source).tests[0].rows
    # In the order of the names: many, one, two.
    assert np.bincount(source.train.labels[rows], minlength=3).tolist() == [4, 0, 1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["evaluation.test_samples_per_domain=5"], "got 5, but domain 'sketch' has 4 test samples"),
        (["participants=100"], "participants: got 25 of domain 'art_painting', but there are only 24"),
        (
            ["participants=8", "data.partition.samples_per_participant=9"],
            "2 participants with 9 samples each need 18, but the training data of domain 'sketch' have 16",
        ),
        (["data.partition.domains=2"], "data.partition.domains: got 2, but the data have domains of their own"),
    ],
)
def test_a_pack_that_does_not_suffice_is_refused_by_the_domain(packed, overrides, says):
    with pytest.raises(UserError, match=says):
        federated.plan(settings(packed, *overrides), open_pack(str(packed)))


def test_the_test_samples_of_a_domain_are_capped(packed):
    plan = federated.plan(settings(packed, "evaluation.test_samples_per_domain=4"), open_pack(str(packed)))
    assert [len(test) for test in plan.tests] == [4, 4, 4, 4]


def test_photographs_stay_bytes_and_become_normalised_floats(packed):
    source = open_pack(str(packed))
    plan = federated.plan(settings(packed, "participants=2"), source)
    private = federated.load(plan, [1], CPU).private[1]
    assert private.stored.dtype == torch.uint8
    assert private.stored[0].nbytes == plan.sample_bytes() == 3 * SIDE * SIDE
    rows = torch.tensor([5, 0, 3])
    seen = private.inputs(rows)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)
    pixels = torch.from_numpy(source.train.samples(plan.shares[1].private.rows[[5, 0, 3]])).double()
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    torch.testing.assert_close(seen.double(), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(private.labels, torch.from_numpy(source.train.labels[plan.shares[1].private.rows]))
    assert torch.equal(private.inputs()[rows], seen)
    # Seeing is not changing.
    assert private.stored.dtype == torch.uint8
    assert torch.equal(private.inputs(rows), seen)


def test_a_rank_reads_the_rows_of_its_participants_and_nothing_else(packed, monkeypatch):
    source = open_pack(str(packed))
    plan, read = federated.plan(settings(packed), source), []
    original = type(source.train).samples

    def watched(table: object, rows: np.ndarray) -> np.ndarray:
        read.extend(rows.tolist())
        return original(table, rows)

    monkeypatch.setattr(type(source.train), "samples", watched)
    federated.load(plan, [2], CPU)
    share = plan.shares[2]
    parts = [share.private, share.validation, plan.seed, *plan.tests]
    assert sorted(read) == sorted(row for part in parts for row in part.rows.tolist())


@dataclass(frozen=True)
class WholeFile(ArrayTable):
    """A table of which every read takes the whole file."""

    reads_pieces = False


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("has_test", [True, False])
def test_a_file_that_is_read_as_a_whole_is_read_once_and_gives_the_same_samples(pooled, has_test):
    config = Config(participants=4)
    source = open_source(config.data)
    tables = {"train": source.train, "test": source.test} if has_test else {"train": source.train}
    whole = {name: WholeFile(table.labels, table.values) for name, table in tables.items()}
    plan = federated.plan(config, replace(source, test=None, **whole) if not has_test else replace(source, **whole))
    reads = []

    def read(samples, rows):
        reads.append((samples, rows))
        return samples(rows)

    read_plan = federated.read_files(plan, [1, 2], pooled, read)
    assert [samples.__self__ for samples, _ in reads] == list(whole.values())
    for _, rows in reads:
        assert (np.diff(rows) > 0).all()
    # Each rank reads what it needs and no more.
    train, *test = (set(rows.tolist()) for _, rows in reads)
    of = range(4) if pooled else (1, 2)
    needed = {row for index in of for row in plan.shares[index].private.rows.tolist()}
    needed |= {row for index in (1, 2) for row in plan.shares[index].validation.rows.tolist()}
    tested = {row for part in plan.tests for row in part.rows.tolist()}
    assert train == needed | set(plan.seed.rows.tolist()) | (set() if has_test else tested)
    assert test == ([tested] if has_test else [])
    ours, theirs = (federated.load(one, [1, 2], CPU, pooled) for one in (read_plan, plan))
    for one, other in zip(ours.tests, theirs.tests, strict=True):
        assert torch.equal(one.inputs(), other.inputs())
    for index in (1, 2):
        assert torch.equal(ours.private[index].inputs(), theirs.private[index].inputs())
        assert torch.equal(ours.private[index].labels, theirs.private[index].labels)
        assert torch.equal(ours.validation[index].inputs(), theirs.validation[index].inputs())


def test_a_table_that_is_read_by_row_is_left_alone(packed):
    plan = federated.plan(settings(packed), open_pack(str(packed)))

    def read(samples, rows):
        raise AssertionError("nothing is read yet")

    assert federated.read_files(plan, [2], False, read).source.tables == plan.source.tables


def table_of(rows: int, *shape: int, dtype: type = np.float32) -> ArrayTable:
    """A table whose sample in row i has the value i everywhere; its classes alternate."""
    values = np.broadcast_to(np.arange(rows).reshape(-1, *[1] * len(shape)), (rows, *shape))
    return ArrayTable(np.arange(rows) % 2, values.astype(dtype))


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (SampleForm("vector", (3,)), np.float32),
        (SampleForm("series", (2, 5)), np.float32),
        (SampleForm("tokens", (5,), 1000), np.int32),
        (SampleForm("image", (1, 2, 3)), np.uint8),
    ],
    ids=["vector", "series", "tokens", "image"],
)
@pytest.mark.parametrize("parts", ["one table", "test table", "domains", "domains and test table"])
def test_data_of_any_form_with_or_without_domains_and_test_part_are_distributed(form, dtype, parts):
    train, test = table_of(200, *form.shape, dtype=dtype), table_of(40, *form.shape, dtype=dtype)
    natural = NaturalDomains(("a", "b"), np.arange(200) // 100, np.arange(40) // 20 if "test" in parts else None)
    source = Source(
        "own", 2, form, 2.0, 1.0, 4.0, train, test if "test" in parts else None, natural if "domains" in parts else None
    )
    # A pack's section has the keys of data that may bring domains of their own.
    data = Pack()
    config = Config(data=data, participants=4, rounds=1).resolved(1, launched=False)
    plan = federated.plan(config, source)
    loaded = federated.load(plan, [1], CPU)
    held = all_rows(plan)
    tested = [set(one.rows) for one in plan.tests]
    if "test" not in parts:
        assert not set(held) & set.union(*tested)
        assert len(set(held)) + len(set.union(*tested)) == 200
    if "domains" in parts:
        assert [plan.own_domain(index) for index in range(4)] == [0, 1, 0, 1]
        assert {natural.of_row[row] for row in plan.shares[1].private.rows} == {1}
        assert not tested[0] & tested[1]
        if "test" in parts:
            assert tested == [set(range(20)), set(range(20, 40))]
    expected = torch.from_numpy(train.samples(plan.shares[1].private.rows)).double()
    if form.kind != "tokens":
        expected = (expected / 2 - 1) / 4
    if "domains" not in parts:
        # Nobody asked for rotated images.
        assert plan.domain_names == ["all"]
    inputs = loaded.private[1].inputs()
    assert inputs.dtype == (torch.int64 if form.kind == "tokens" else torch.float32)
    torch.testing.assert_close(inputs.double(), expected)
