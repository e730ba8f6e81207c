"""Controls: which group a name stands for, for each of the other groups."""

import pytest

from fedh2l_mpi.analysis.controls import Gap, find_control, find_gap
from fedh2l_mpi.errors import UserError

GRID = {
    f"{size}, {method}": {"size": size, "method": method}
    for size in ("1 %", "2 %")
    for method in ("seed_supervised", "fedh2l")
}


def test_a_label_is_the_control_of_all_groups():
    found = find_control("here", "2 %, fedh2l", GRID)
    assert set(found.by_label.values()) == {"2 %, fedh2l"}
    assert list(found.by_label) == list(GRID)


def test_a_value_of_an_axis_is_the_control_with_the_same_values_on_the_others():
    assert find_control("here", "seed_supervised", GRID).by_label == {
        f"{size}, {method}": f"{size}, seed_supervised"
        for size in ("1 %", "2 %")
        for method in ("seed_supervised", "fedh2l")
    }


def test_an_axis_that_the_controls_do_not_vary_in_does_not_count_and_a_group_may_lack_a_control():
    groups = {
        "low 1": {"method": "low", "teachers": "null", "size": "1"},
        "low 2": {"method": "low", "teachers": "null", "size": "2"},
        "ours": {"method": "fedh2l", "teachers": "right", "size": "2"},
        "lonely": {"method": "fedh2l", "teachers": "right", "size": "3"},
    }
    assert find_control("here", "low", groups).by_label == {
        "low 1": "low 1", "low 2": "low 2", "ours": "low 2", "lonely": None,
    }  # fmt: skip


def test_a_gap_is_between_two_groups():
    low, high = (find_control("here", name, GRID) for name in ("seed_supervised", "fedh2l"))
    assert find_gap("here", low, high) == Gap(low, high)
    one = find_control("here", "1 %, seed_supervised", GRID)
    with pytest.raises(UserError, match="here: low .* are both '1 %, seed_supervised' for '1 %, seed_supervised', so"):
        find_gap("here", low, one)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fedhl", r"here: got 'fedhl'. Known: 1 %, seed_supervised; .*did you mean 'fedh2l'"),
        ("both", "here: got 'both', which is a value of several axes: method, size"),
    ],
)
def test_a_name_of_nothing_or_of_two_things_is_refused(name, says):
    with pytest.raises(UserError, match=says):
        find_control("here", name, {**GRID, "x": {"size": "both", "method": "both"}})
