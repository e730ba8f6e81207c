"""Findings of the doctor as text."""

from fedh2l_mpi.launch.doctor.findings import spans


def test_numbers_in_a_row_are_written_as_a_span():
    assert spans([3, 0, 1, 2, 8]) == "0-3, 8"
    assert spans([5]) == "5"
    assert spans([]) == ""
