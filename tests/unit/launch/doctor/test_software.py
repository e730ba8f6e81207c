"""Versions in this environment, and differences between ranks."""

import re

import pytest
from helpers.doctor_findings import levels

from fedh2l_mpi.launch.doctor import software
from fedh2l_mpi.launch.doctor.findings import Level
from fedh2l_mpi.lifecycle import provenance

BAD = (Level.WARNING, Level.FAILURE)
VERSIONS = {**software.versions_here("MPICH 5.0.2")}


def test_versions_are_those_of_this_environment():
    found = software.findings(VERSIONS, needs_mpi=False)
    assert levels(found) == [Level.GOOD] * 5
    text = {line.what: line.text for line in found}
    assert provenance.source_digest().hex()[:8] in text["fedh2l_mpi"]
    assert re.fullmatch(r"\d+\.\d+\.\d+, HDF5 \d+\.\d+\.\d+", text["h5py"])


@pytest.mark.parametrize("name", ["torch", "numpy", "h5py"])
def test_a_missing_package_is_a_failure_with_its_fix(name):
    found = software.findings({**VERSIONS, name: software.MISSING}, needs_mpi=False)
    bad = [line for line in found if line.level in BAD]
    assert [line.level for line in bad] == [Level.FAILURE]
    fix = "install the extra [run], as in pip install '.[run]'" if name == "torch" else f"pip install {name}"
    assert bad[0].text.startswith(f"not installed. Fix: {fix}")


def test_a_package_that_does_not_load_is_a_failure(monkeypatch):
    assert software.cannot_load("no_such_package").startswith("ModuleNotFoundError")
    monkeypatch.setattr(software, "cannot_load", lambda name: "OSError: libcudart" if name == "torch" else "")
    found = {line.what: line for line in software.findings(VERSIONS, needs_mpi=False)}
    assert found["PyTorch"].level is Level.FAILURE
    assert "is installed but does not load (OSError: libcudart)" in found["PyTorch"].text


@pytest.mark.parametrize(("needs_mpi", "level"), [(True, Level.FAILURE), (False, Level.WARNING)])
@pytest.mark.parametrize("missing", [{"mpi4py": software.MISSING}, {"mpi": "none"}])
def test_without_mpi_only_a_single_process_would_work(needs_mpi, level, missing):
    line = software.findings({**VERSIONS, **missing}, needs_mpi)[-1]
    assert (line.what, line.level) == ("MPI", level)
    assert "install the extra [mpi], as in pip install '.[mpi]' from a checkout" in line.text


def test_ranks_with_other_versions_are_told_with_their_hosts():
    other = {**VERSIONS, "torch": "2.4.0"}
    found = software.differences([VERSIONS, VERSIONS, other], ["n1", "n1", "n2"])
    assert levels(found) == [Level.FAILURE]
    assert re.search(
        r"torch is \S+ on rank 0 \(n1\), but 2.4.0 on rank 2 \(n2\)\. Fix: activate the same", found[0].text
    )
    assert levels(software.differences([VERSIONS] * 3, ["n1"] * 3)) == [Level.GOOD]
    assert software.differences([VERSIONS], ["n1"]) == []


def test_the_libraries_of_gpus_are_shown_where_there_are_gpus():
    gpu = {**VERSIONS, "cuda": "12.8", "cudnn": "91002", "driver": "570.86.15"}
    (line,) = [line for line in software.findings(gpu, needs_mpi=False) if line.what == "PyTorch"]
    assert line.text == f"{VERSIONS['torch']}, CUDA 12.8, cuDNN 91002, driver 570.86.15"
    # A node without GPUs has none, and another driver is no other environment.
    found = software.differences([gpu, VERSIONS, {**gpu, "driver": "580.1"}], ["n1", "n2", "n3"])
    assert levels(found) == [Level.WARNING]
    assert found[0].text.startswith("driver is 570.86.15 on rank 0 (n1), but 580.1 on rank 2 (n3). Fix: use nodes with")
