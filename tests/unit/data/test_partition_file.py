"""Partitions that the user gives in a file: who holds what, and what is wrong by its line."""

import numpy as np
import pytest
import torch
from helpers.photographs import settings as of_pack

from fedh2l_mpi.config import Config, loading
from fedh2l_mpi.data import federated, partition_file
from fedh2l_mpi.data.pack_reader import open_pack
from fedh2l_mpi.data.sources import digits
from fedh2l_mpi.errors import UserError


def settings(path, *overrides: str) -> Config:
    keys = ["participants=3", "data.partition=file", f"data.partition.path={path}", *overrides]
    return loading.load(None, keys).resolved(1, launched=False)


def write(path, entries, header="row,participant"):
    path.write_text("\n".join([header, *(",".join(map(str, entry)) for entry in entries), ""]))
    return path


def test_rows_without_parts_are_split_by_the_shares_of_the_config_and_the_others_are_unused(tmp_path):
    # Participant i holds 100 rows from 300 i on; nobody holds the others.
    entries = [(300 * who + row, who) for who in range(3) for row in range(100)]
    plan = federated.plan(settings(write(tmp_path / "who.csv", entries)), digits())
    for who, share in enumerate(plan.shares):
        assert list(map(len, (share.seed, share.validation, share.private, share.local_test))) == [20, 8, 72, 0]
        held = np.sort(np.concatenate([part.rows for part in share.parts]))
        assert np.array_equal(held, 300 * who + np.arange(100))
        assert set(share.private.domains.tolist()) == {who}
        assert plan.own_domain(who) == who
    assert len(plan.tests[0]) == 359


PARTS = ["private"] * 6 + ["seed"] * 2 + ["validation", "test"]


@pytest.mark.parametrize("form", ["csv", "shuffled", "npz", "pandas"])
def test_rows_with_parts_are_used_as_they_are_in_any_order_and_form(tmp_path, form):
    rows, who, parts = np.arange(30), np.arange(30) // 10, np.tile(PARTS, 3)
    path = tmp_path / ("who.npz" if form == "npz" else "who.csv")
    if form == "npz":
        np.savez(path, row=rows, participant=who, part=parts)
    elif form == "pandas":
        # What `to_csv` writes, with its numbers of lines.
        write(path, zip(rows, who, rows, parts, strict=True), ",participant,row,part")
    else:
        order = np.random.default_rng(0).permutation(30) if form == "shuffled" else rows
        write(path, zip(rows[order], who[order], parts[order], strict=True), "row,participant,part")
    plan = federated.plan(settings(path, "seed_set.share=0.5"), digits())
    for i, share in enumerate(plan.shares):
        for part, expected in zip(share.parts, ([0, 1, 2, 3, 4, 5], [8], [6, 7], [9]), strict=True):
            assert part.rows.tolist() == [10 * i + row for row in expected]
    assert plan.seed.rows.tolist() == [6, 7, 16, 17, 26, 27]
    assert plan.has_local_test
    federation = federated.load(plan, [1], torch.device("cpu"))
    assert federation.local_test[1].labels.tolist() == [digits().train.labels[19]]


def test_a_plan_has_another_digest_if_the_file_has_another_content_with_the_same_labels(tmp_path):
    labels = digits().train.labels
    zeros = np.flatnonzero(labels == 0)[:9]
    entries = [(row, place % 3, PARTS[4 + place // 3]) for place, row in enumerate(zeros)]
    header = "row,participant,part"
    first = federated.plan(settings(write(tmp_path / "a.csv", entries, header)), digits())
    again = federated.plan(settings(write(tmp_path / "b.csv", entries[::-1], header)), digits())
    entries[0], entries[1] = (zeros[1], *entries[0][1:]), (zeros[0], *entries[1][1:])
    other = federated.plan(settings(write(tmp_path / "c.csv", entries, header)), digits())
    assert np.array_equal(first.label_histogram(), other.label_histogram())
    assert first.digest() == again.digest() != other.digest()


def test_rows_of_data_with_domains_keep_their_own_and_a_mix_has_none(packed, tmp_path):
    source = open_pack(str(packed))
    assert source.domains is not None
    of_row = source.domains.of_row
    # Participant 0 holds the whole domain 1, participant 1 the rows of all others.
    path = write(tmp_path / "who.csv", [(row, int(domain != 1)) for row, domain in enumerate(of_row)])
    keys = ["participants=2", "data.partition=file", f"data.partition.path={path}"]
    plan = federated.plan(of_pack(packed, *keys), source)
    assert [plan.own_domain(0), plan.own_domain(1)] == [1, -1]
    held_PD = plan.domain_histogram()
    assert held_PD.sum(axis=1).tolist() == plan.label_histogram().sum(axis=1).tolist()
    assert (held_PD > 0).tolist() == [[False, True, False, False], [True, False, True, True]]
    rows = np.concatenate([part.rows for share in plan.shares for part in share.parts])
    # Rows that are kept for testing are in no share, whatever the file says.
    kept = np.concatenate([test.rows for test in plan.tests])
    assert np.array_equal(np.sort(np.concatenate([rows, kept])), np.arange(len(of_row)))
    for share in plan.shares:
        assert np.array_equal(share.private.domains, of_row[share.private.rows])


def test_a_file_with_parts_decides_on_the_tests_of_data_without_a_test_part(packed, tmp_path):
    source = open_pack(str(packed))
    assert source.domains is not None
    of_row = source.domains.of_row
    words = np.array([PARTS[row % 10] for row in range(len(of_row))])
    entries = [(row, row % 2, word) for row, word in enumerate(words)]
    keys = ["participants=2", "data.partition=file", f"data.partition.path={tmp_path / 'who.csv'}"]
    write(tmp_path / "who.csv", entries, "row,participant,part")
    plan = federated.plan(of_pack(packed, *keys), source)
    for domain, test in enumerate(plan.tests):
        assert test.rows.tolist() == np.flatnonzero((words == "test") & (of_row == domain)).tolist()
    write(
        tmp_path / "who.csv",
        [entry for entry in entries if of_row[entry[0]] or entry[2] != "test"],
        "row,participant,part",
    )
    with pytest.raises(UserError, match=r"data\.partition\.path: no row of domain '.*' has the part test"):
        federated.plan(of_pack(packed, *keys), source)


GOOD = "row,participant\n0,0\n1,1\n2,2\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ": the file is empty; its first line must be row,participant or row,participant,part"),
        ("# nothing\n", ": the file is empty"),
        ("0,1\n", "line 1: got the columns '0,1', must be row,participant or row,participant,part"),
        ("row,client\n0,1\n", "line 1: got the columns 'row,client', must be row,participant"),
        ("row,participants\n0,1\n", r"line 1: .*\(did you mean 'participant' or"),
        ("row,row,participant\n", "line 1: got the columns 'row,row,participant'"),
        ("row,participant\n", "participant 0 has no row. Give it some, or use fewer participants"),
        (f"{GOOD}3\n", "line 5: got '3', must have 2 fields"),
        (f"{GOOD}3,0,private\n", "line 5: got '3,0,private', must have 2 fields"),
        (f"{GOOD}x,0\n", "line 5: got 'x' as row, must be a whole number"),
        (f"{GOOD}3,1.0\n", "line 5: got '1.0' as participant, must be a whole number"),
        (f"{GOOD}{'9' * 5000},1\n", "line 5: got '9+.*' as row, must be a whole number"),
        (f"{GOOD}{'9' * 50},1\n", "line 5: got row 9+, must be one of the 1438 training rows of digits, 0 to 1437"),
        (f"{GOOD}1438,1\n", "line 5: got row 1438, must be one of the 1438 training rows of digits, 0 to 1437"),
        (f"{GOOD}-1,1\n", "line 5: got row -1, must be"),
        (f"{GOOD}3,3\n", "line 5: got participant 3, must be one of the 3 participants, 0 to 2"),
        ("# comment\n\n" + GOOD + "1,0\n", "line 7: row 1 is in line 5 already. Remove one"),
        ("row,participant\n0,0\n1,0\n", "participant 1 has no row"),
        ("row,participant,part\n0,0,privat\n", r"line 2: got part 'privat'; known: private, .*did you mean 'private'"),
        ("row,participant,part\n0,0,seed\n1,1,private\n2,2,private\n", "participant 0 has no private row"),
        ("row,participant,part\n0,0,private\n1,1,private\n2,2,private\n", "no row has the part seed"),
        (b"\xff\xfe\x00", "cannot read .*who.csv: it is not UTF-8 text"),
        (None, "cannot read .*who.csv: No such file"),
    ],
)
def test_a_wrong_file_is_refused_by_its_line(tmp_path, text, says):
    path = tmp_path / "who.csv"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=rf"^data\.partition\.path: .*{says}") as error:
        federated.plan(settings(path), digits())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"row": [0]}, "got the columns 'row', must be row,participant"),
        (
            {"row": [0.0, 1.0], "participant": [0, 1]},
            r"the array row is float64 \(2,\), must be whole numbers with one axis",
        ),
        ({"row": [[0, 1]], "participant": [0]}, r"the array row is int64 \(1, 2\)"),
        ({"row": [0, 1], "participant": [0]}, "the array participant has 1 entries, but row has 2"),
        ({"row": [0, 9999], "participant": [0, 1]}, "entry 1: got row 9999"),
        ({"row": [0], "participant": [0], "part": [1]}, "the array part is int64 .* must be texts"),
        ({"row": np.array([None]), "participant": [0]}, "cannot read .*: .*allow_pickle"),
        ({}, "got the columns '', must be"),
        (b"not a zip", "cannot read .*who.npz: File is not a zip file"),
    ],
)
def test_wrong_arrays_are_refused_by_their_name(tmp_path, arrays, says):
    path = tmp_path / "who.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"^data\.partition\.path: .*{says}"):
        federated.plan(settings(path), digits())


@pytest.mark.parametrize("name", ["who.csv", "who.npz"])
def test_a_file_that_is_too_large_is_refused_without_reading_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(partition_file, "MOST_BYTES", 1000)
    if name.endswith("npz"):
        np.savez_compressed(tmp_path / name, row=np.arange(1000), participant=np.zeros(1000, dtype=int))
    else:
        write(tmp_path / name, [(row, 0) for row in range(1000)])
    with pytest.raises(UserError, match="cannot read .*more than 1000 bytes"):
        federated.plan(settings(tmp_path / name), digits())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.partition.samples_per_participant=9"], "samples_per_participant: got 9, but the file says who holds"),
        (["data.partition.min_per_class=1"], "min_per_class: got 1, but the file says who holds which samples"),
        (["evaluation.local_test_share=0.1"], "evaluation.local_test_share: got 0.1, but .* gives every row's part"),
    ],
)
def test_keys_that_the_file_replaces_are_refused(tmp_path, overrides, says):
    path = write(tmp_path / "who.csv", [(row, row // 10, PARTS[row % 10]) for row in range(30)], "row,participant,part")
    with pytest.raises(UserError, match=says):
        federated.plan(settings(path, *overrides), digits())
