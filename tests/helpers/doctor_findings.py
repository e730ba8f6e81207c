"""Findings of the doctor, as its tests look at them."""

from fedh2l_mpi.launch.doctor.findings import Finding, Level


def levels(lines: list[Finding]) -> list[Level]:
    return [line.level for line in lines]
