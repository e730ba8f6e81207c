"""Detect the launcher that started this process, and its number of ranks, from environment variables."""

from collections.abc import Mapping
from dataclasses import dataclass

# Launchers and the variables that they set: (name, number of processes, own number), most specific first.
# srun sets SLURM_STEP_NUM_TASKS for its tasks only, so a batch script's own shell is found by SLURM_NTASKS ("sbatch").
LAUNCHERS = (
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
    ("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("flux run", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("sbatch", "SLURM_NTASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Launch:
    """The launcher of this process, the number of processes it started, and the number of this one."""

    launcher: str
    size: int
    rank: int

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> "Launch":
        """Read the environment variables. A process without a launcher is the only one of its run."""
        for launcher, size, rank in LAUNCHERS:
            if environ.get(size, "").isdigit():
                own = environ.get(rank, "")
                # srun also uses PMI for MPICH. MPICH's mpirun sets MPI_LOCALRANKID in addition and keeps Slurm's.
                if size == "PMI_SIZE" and "SLURM_STEP_NUM_TASKS" in environ and "MPI_LOCALRANKID" not in environ:
                    launcher = "srun"
                return Launch(launcher, int(environ[size]), int(own) if own.isdigit() else 0)
        return Launch("", 1, 0)

    @property
    def launched(self) -> bool:
        """True if a launcher started this process, even a single one."""
        return self.launcher not in ("", "sbatch") or self.size > 1
