"""The launcher that started this process: its environment variables, its number of ranks."""

from collections.abc import Mapping
from dataclasses import dataclass

# What launchers tell a process about itself: (number of processes, own number), most specific first.
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
    """What the environment says about how this process was started."""

    launcher: str
    size: int
    rank: int

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> "Launch":
        """From the environment's variables; a plain process is the only one of its run."""
        for launcher, size, rank in LAUNCHERS:
            # A batch script's own shell is one process, whatever number of tasks its steps will have.
            if environ.get(size, "").isdigit():
                own = environ.get(rank, "")
                # srun speaks PMI too, for MPICH; its mpirun sets a variable more, and leaves Slurm's in place.
                if size == "PMI_SIZE" and "SLURM_STEP_NUM_TASKS" in environ and "MPI_LOCALRANKID" not in environ:
                    launcher = "srun"
                return Launch(launcher, int(environ[size]), int(own) if own.isdigit() else 0)
        return Launch("", 1, 0)

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process, be it alone."""
        return self.launcher not in ("", "sbatch") or self.size > 1
