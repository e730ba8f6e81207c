"""A method looks alike in every figure, and lines of one figure differ, also in a grey print."""

import itertools

import pytest

from fedh2l_mpi.analysis.figures import method_looks
from fedh2l_mpi.analysis.figures.method_looks import look_of, looks_of
from fedh2l_mpi.methods import METHODS


def test_every_built_in_method_has_a_colour_and_a_marker_of_its_own():
    assert method_looks.BUILT_IN.keys() == METHODS.keys()
    for one, other in itertools.combinations(map(look_of, METHODS), 2):
        assert one.colour != other.colour
        assert one.marker != other.marker
    taken = {look.colour for look in method_looks.BUILT_IN.values()}
    assert taken.isdisjoint(look.colour for look in method_looks.OWN)


def test_a_method_keeps_its_colour_and_marker_whatever_it_is_compared_to():
    alone = {method: look_of(method) for method in (*METHODS, "file.py:Mine")}
    for methods in itertools.permutations(["fedh2l", "independent", "file.py:Mine", "dml"], 3):
        assert looks_of(methods) == [alone[method] for method in methods]
    first, second, third, other = looks_of(["fedh2l", "fedh2l", "fedh2l", "dml"])
    assert (first, other) == (alone["fedh2l"], alone["dml"])
    assert {second.marker, third.marker} == {first.marker}
    # Two thirds of black are left of 0072B2 after 0.4 of black: 0, 68.4 and 106.8.
    assert third.colour == "#00446b"


def test_an_own_method_has_the_same_look_wherever_its_file_lies():
    # By its digest, so in every process, too.
    assert look_of("a.py:Mine") == look_of("/b/c.py:Mine") == look_of("Mine")
    assert look_of("Mine").colour == "#8C564B"
    assert len({look_of(f"Method{i}") for i in range(500)}) == len(method_looks.OWN)


@pytest.mark.parametrize("methods", [["fedh2l"] * 50, ["fedh2l"] * 10 + ["dml"] * 10, [*METHODS] * 2], ids=len)
def test_no_two_lines_of_a_figure_look_alike(methods):
    looks = looks_of(methods)
    assert len(set(looks)) == len(methods)
    # Without colours, marker, its filling or the line differ, for as many lines as a legend can explain.
    assert len({(look.marker, look.line, look.is_hollow) for look in looks}) == len(methods)
