"""Launchers: which ones exist, and which of them fit this MPI."""

import re

import pytest

from fedh2l_mpi.launch.doctor import launcher
from fedh2l_mpi.launch.doctor.findings import Level
from fedh2l_mpi.runtime.launcher import Launch

PMIX_LIST = (
    "MPI plugin types are...\n\tpmix\n\tnone\n\tcray_shasta\n\tpmi2\nspecific pmix plugin versions available: pmix_v4\n"
)
OLD_LIST = "srun: MPI types are...\nsrun: none\nsrun: pmix_v3\nsrun: openmpi\n"


def test_the_launcher_is_told_with_the_ranks_of_each_node():
    told = launcher.started(Launch("srun", 5, 0), "", ["n1", "n1", "n2", "n2", "n3"])
    assert (told.level, told.text) == (Level.GOOD, "srun started 5 ranks: 2 on n1, 2 on n2, 1 on n3")
    assert launcher.started(Launch("srun", 20, 0), "", [f"n{i}" for i in range(20)]).text.endswith("and 12 more nodes")
    alone = launcher.started(Launch("", 1, 0), "", ["laptop"])
    assert (alone.level, "one process that hosts all participants" in alone.text) == (Level.FACT, True)
    assert launcher.started(Launch("srun", 4, 0), "each would run alone", ["n1"]).level is Level.FAILURE


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to ...", "Open MPI"),
        ("HYDRA build details:\n    Version: 5.0.2\n", "MPICH"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11", "Intel MPI"),
        ("mpirun: unknown option", ""),
    ],
)
def test_an_mpirun_tells_whose_it_is(text, vendor):
    assert launcher.vendor_of_mpirun(text) == vendor


def test_an_mpirun_of_another_mpi_is_warned_of():
    fits = launcher.mpirun_fits("/bin/mpirun", "HYDRA build details:", "MPICH 5.0.2")
    assert (fits.level, fits.text) == (Level.GOOD, "/bin/mpirun, from MPICH like mpi4py")
    other = launcher.mpirun_fits("/bin/mpirun", "mpirun (Open MPI) 5.0.11", "MPICH 5.0.2")
    assert other.level is Level.WARNING
    assert "ranks would not see each other. Fix: use the mpirun of MPICH, or an mpi4py for Open MPI" in other.text
    assert launcher.mpirun_fits("/bin/mpirun", "timed out", "MPICH 5.0.2").level is Level.WARNING
    assert launcher.mpirun_fits("/bin/mpirun", "mpirun (Open MPI) 5.0.11", "none").level is Level.FACT


@pytest.mark.parametrize(
    ("listed", "library", "level", "says"),
    [
        (PMIX_LIST, "MPICH 5.0.2", Level.GOOD, "use srun --mpi=pmi2, which MPICH needs"),
        (PMIX_LIST, "Open MPI 5.0.11", Level.GOOD, "use srun --mpi=pmix, which Open MPI needs"),
        (OLD_LIST, "Open MPI 5.0.11", Level.GOOD, "use srun --mpi=pmix"),
        (OLD_LIST, "MPICH 5.0.2", Level.WARNING, "has no --mpi=pmi2.*start with the mpirun of MPICH inside sbatch"),
        (PMIX_LIST, "none", Level.FACT, "--mpi=pmix, none, cray_shasta, pmi2"),
        ("srun: error: Unable to contact slurm controller", "MPICH 5.0.2", Level.WARNING, "Unable to contact"),
    ],
)
def test_srun_is_told_what_to_speak(listed, library, level, says):
    told = launcher.srun_fits(listed, library)
    assert told.level is level
    assert re.search(says, told.text), told.text


def test_launchers_are_looked_for_on_path(tmp_path, monkeypatch):
    for name, says in (("mpirun", "mpirun (Open MPI) 5.0.11"), ("srun", "MPI plugin types are...\n\tpmix\n\tnone")):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{says}\\n'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told = launcher.ways_to_start("Open MPI 5.0.11")
    assert [(line.what, line.level) for line in told] == [("mpirun", Level.GOOD), ("srun", Level.GOOD)]
    assert str(tmp_path / "mpirun") in told[0].text


def test_a_launcher_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "mpirun").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(launcher, "PATIENCE_S", 0.2)
    told = [line for line in launcher.ways_to_start("MPICH 5.0.2") if line.what == "mpirun"]
    assert (told[0].level, "does not say which MPI" in told[0].text) == (Level.WARNING, True)


def test_slurm_is_told_of_in_a_job_only():
    assert launcher.slurm_job({}) == []
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    (told,) = launcher.slurm_job(job)
    assert told.text.startswith("job 7, 2 nodes (n[1-2]). A run cannot know the time left")
    (told,) = launcher.slurm_job({**job, "SLURM_JOB_END_TIME": "1"})
    assert told.text.endswith("0:00 h left")


def test_an_mpi_that_may_not_speak_pmix_is_cautioned_of():
    assert launcher.may_not_join(Launch("srun", 2, 0), "Open MPI 5.0.11") == ""
    assert launcher.may_not_join(Launch("srun", 2, 0), "MPICH 5.0.2").endswith("use srun --mpi=pmi2.")
    assert launcher.may_not_join(Launch("Open MPI's mpirun", 2, 0), "MPICH 5.0.2").endswith("the mpirun of MPICH.")
