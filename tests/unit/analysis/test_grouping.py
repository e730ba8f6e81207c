"""Groups of runs: which keys make them, and how they are named."""

from pathlib import Path

import pytest
import yaml
from helpers.compared_runs import write

from fedh2l_mpi import metrics
from fedh2l_mpi.analysis import grouping
from fedh2l_mpi.analysis.compare import compare
from fedh2l_mpi.analysis.run import Run
from fedh2l_mpi.config import Config, recipes
from fedh2l_mpi.config.comparison import differing_keys, flat, what_counts
from fedh2l_mpi.config.loading import load
from fedh2l_mpi.errors import UserError


def settings(*overrides: str) -> dict:
    config = yaml.safe_load(load(None, overrides).to_yaml())
    return what_counts(Run(Path(), metrics.RunMetrics({}, {}, True), config).flat_config())


def test_a_run_that_is_older_than_a_key_is_like_one_with_the_classic_value():
    config = yaml.safe_load(load(None, ["recipe=classic"]).to_yaml())
    del config["exchange"]["codec"], config["optimizer"]["precision"], config["seed_set"]["views_per_sample"]
    del config["optimizer"]["average"], config["optimizer"]["schedule"]
    old = what_counts(flat(recipes.complete(Config, config)))
    assert grouping.differing([old, settings("recipe=classic")]) == []
    for key in ("exchange.codec=uint8", "optimizer.precision=tf32"):
        assert grouping.differing([old, settings("recipe=classic", key)]) == [key.partition("=")[0]]


def names(*runs: tuple[str, ...]) -> list[str]:
    given = [settings(*overrides) for overrides in runs]
    keys = grouping.distinguishing(given, grouping.differing(given))
    return grouping.labels(given, keys, [run["method.name"] for run in given])


def test_the_options_of_a_method_follow_it_and_are_no_part_of_its_name():
    assert names(("method.name=independent",), ("method.name=fedh2l",), ("method.name=d_psgd",)) == [
        *("independent", "fedh2l", "d_psgd")
    ]


def test_a_key_that_only_one_kind_has_is_named_with_it():
    ring, three, four = (
        ("topology.kind=ring",),
        ("topology.kind=random_regular", "topology.degree=3"),
        ("topology.kind=random_regular", "topology.degree=4"),
    )
    assert names(ring, three) == ["topology.kind=ring", "topology.kind=random_regular"]
    assert names(three, four) == ["topology.degree=3", "topology.degree=4"]
    # The kind is that of most, and said in the caption; without it, a degree would tell all three apart.
    assert names(ring, three, four) == ["topology.kind=ring", "topology.degree=3", "topology.degree=4"]


def test_a_setting_of_most_groups_is_said_once_and_not_in_every_name():
    given = [(), ("method.weight_kd=2.0",), ("method.combine=sum",), ("method.combine=sum", "method.weight_kd=2.0")]
    assert names(*given[:3]) == ["fedh2l", "method.weight_kd=2.0", "method.combine=sum"]
    # In a full grid no value is the usual one.
    assert names(*given)[0] == "method.weight_kd=1.0, method.combine=joint"


def test_names_are_short_and_unique_whatever_the_values():
    many = ["lenet5"] * 9
    models = (f"models=[{','.join(many)}, mlp, cnn]", f"models=[{','.join(many)}, cnn, cnn]", "models=[mlp, cnn]")
    assert names((models[0],), (models[2],)) == ["models=lenet5+…+cnn (11)", "models=mlp+cnn"]
    first, second = names((models[0],), (models[1],))
    assert first != second
    assert names(("topology.kind=random_regular",), ("topology.kind=random_regular", "topology.redraw_every=5")) == [
        *("topology.redraw_every=null", "topology.redraw_every=5")
    ]


def test_groups_of_numbers_are_sorted_by_them(tmp_path):
    for rate in (0.01, 0.002, 0.1):
        write(tmp_path / str(rate), f"optimizer.lr={rate}")
    found = compare(sorted(tmp_path.iterdir(), reverse=True))
    assert [group.label for group in found.groups] == ["optimizer.lr=0.002", "optimizer.lr=0.01", "optimizer.lr=0.1"]


def test_seeds_places_and_speeds_make_no_groups_nor_does_the_folder_of_public_data(tmp_path):
    elsewhere = ("data.name=mnist", "data.root=/there", "devices.threads=2", "exchange.deadline_s=9")
    write(tmp_path / "a", "data.name=mnist", "data.root=/here", seed=0)
    write(tmp_path / "b", *elsewhere, seed=1)
    found = compare(list(tmp_path.iterdir()))
    assert [group.label for group in found.groups] == ["fedh2l"]
    assert [outcome.seed for outcome in found.groups[0].outcomes] == [0, 1]
    assert found.notes == []
    assert differing_keys(load(None, elsewhere), load(None, ["data.name=mnist"])) == [], "a sweep has the same rule"
    packs = [("data.name=pack", f"data.root={root}.h5") for root in "ab"]
    assert names(*packs) == ["data.root=a.h5", "data.root=b.h5"]


def test_the_job_that_copied_a_pack_makes_no_group_but_the_pack_that_was_copied_does(tmp_path):
    for job, pack in enumerate(["/d/a.h5", "/d/a.h5", "/other/a.h5", "/other/a.h5"]):
        root = f"data.root=/tmp/fedh2l_mpi-{job}/copy-of/{pack}"
        write(tmp_path / str(job), "data.name=pack", root, "data.partition={kind: domains}", seed=job % 2)
    write(tmp_path / "plain", "data.name=pack", "data.root=/d/a.h5", "data.partition={kind: domains}", seed=2)
    found = compare(list(tmp_path.iterdir()))
    seeds = {group.label: [outcome.seed for outcome in group.outcomes] for group in found.groups}
    assert seeds == {"data.root=/d/a.h5": [0, 1, 2], "data.root=/other/a.h5": [0, 1]}
    assert found.notes == []


def test_by_and_ignore_choose_the_keys_and_what_is_mixed_is_said(tmp_path):
    for degree in (2, 3):
        for rate in (0.1, 0.2):
            kind = ("topology.kind=random_regular", f"topology.degree={degree}", "participants=4")
            write(tmp_path / f"{degree}-{rate}", *kind, f"optimizer.lr={rate}", seed=int(10 * rate))
    paths = sorted(tmp_path.iterdir())
    assert len(compare(paths).groups) == 4
    found = compare(paths, by=["topology"])
    assert [group.label for group in found.groups] == ["topology.degree=2", "topology.degree=3"]
    assert found.notes == ["runs of one group differ in optimizer.lr (0.1, 0.2)"]
    ignoring = compare(paths, ignore=["optimizer"])
    assert [group.label for group in ignoring.groups] == ["topology.degree=2", "topology.degree=3"]
    assert ignoring.notes == []
    assert len(compare(paths, by=["topology", "optimizer"], ignore=["topology.degree"]).groups) == 2
    for ignored in ("topology", "topology.degree"):
        with pytest.raises(UserError, match="--by: got 'topology.degree', but --ignore has it, too"):
            compare(paths, by=["optimizer", "topology.degree"], ignore=[ignored])
    with pytest.raises(
        UserError, match="--by: got 'topology.degre', but no run's config.*did you mean 'topology.degree'"
    ):
        compare(paths, by=["topology.degre"])
    with pytest.raises(UserError, match="--ignore: got 'optimiser'.*did you mean 'optimizer'"):
        compare(paths, ignore=["optimiser"])
    with pytest.raises(UserError, match="--by: got 'seed'"):
        compare(paths, by=["seed"])


def test_what_else_differs_between_groups_is_said(tmp_path):
    paths = [
        write(tmp_path / "a", "method.name=independent", "optimizer.lr=0.1"),
        write(tmp_path / "b", "method.name=fedh2l", "optimizer.lr=0.2", revision="abcdefabcdef-dirty"),
    ]
    assert compare(paths).notes == [
        "the groups also differ in optimizer.lr (0.1, 0.2)",
        "the runs come from 2 revisions of the code (0123456, abcdefa-dirty), so their numbers may differ",
    ]


@pytest.mark.parametrize(
    ("runs", "note"),
    [
        # The recipe gives these methods other steps, codecs and calibrations.
        ([["method.name=independent"], ["method.name=fedh2l"]], ""),
        ([["method.name=dml"], ["method.name=fedh2l"], ["method.name=pooled"]], ""),
        # Each of these is given, or follows from another key than the method.
        (
            [["method.name=dml", "exchange.codec=float32"], ["method.name=fedh2l"]],
            "exchange.codec (float32, uint8)",
        ),
        (
            [["method.name=independent", "method.local_steps=7"], ["method.name=fedh2l"]],
            "method.local_steps (7, 2)",
        ),
        (
            [["optimizer.average=none", f"rounds={rounds}"] for rounds in (39, 40)],
            "seed_set.view_rotation_deg (15.0, 30.0), seed_set.view_scale (0.1, 0.2), seed_set.view_shift (0.05, 0.1)",
        ),
    ],
)
def test_what_the_recipe_derives_from_the_method_is_not_said(tmp_path, runs, note):
    paths = [write(tmp_path / str(number), *overrides) for number, overrides in enumerate(runs)]
    assert compare(paths).notes == ([f"the groups also differ in {note}"] if note else [])
