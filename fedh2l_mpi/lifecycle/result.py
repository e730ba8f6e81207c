"""A run as `fedh2l_mpi.run` returns it: its numbers, and its trained models."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from fedh2l_mpi.analysis import run as analysis_run
from fedh2l_mpi.config import loading
from fedh2l_mpi.errors import UserError
from fedh2l_mpi.lifecycle import checkpoint_files
from fedh2l_mpi.lifecycle.checkpoint_files import DamagedError
from fedh2l_mpi.run_directory import RunDirectory

if TYPE_CHECKING:
    from torch import nn


class Run(analysis_run.Run):
    """A run on disk.

    `run["accuracy_all"]` is an array of the metrics file; `summary()`, `dataset()` and `plot()` show more, and
    `model(i)` is a trained model.
    """

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Load a run by its directory or its metrics file.

        The numbers are in memory afterwards and the file is closed, so that any program may open it or resume the run.

        Raises
        ------
        UserError
            If there is nothing to show.
        """
        looked = analysis_run.load_run(Path(path))
        with looked.metrics.opened():
            loaded = dataclasses.replace(looked.metrics, arrays=dict(looked.metrics.arrays))
        return cls(looked.file, loaded, looked.config)

    def model(self, participant: int) -> "nn.Module":
        """Return a participant's model as it was evaluated, in eval mode on the CPU, from the newest checkpoint.

        It holds the averaged weights if the run averages them (`optimizer.average`).

        Parameters
        ----------
        participant : int
            Its number, from 0.

        Raises
        ------
        UserError
            If there is no such participant, no checkpoint, or the checkpoint is damaged.
        """
        from fedh2l_mpi import methods, models
        from fedh2l_mpi.build import initial_seed
        from fedh2l_mpi.data.registry import open_source
        from fedh2l_mpi.models import mixed_precision

        directory = RunDirectory(self.path)
        if not directory.config.is_file():
            raise UserError(
                f"{self.file}: a model needs the whole run directory, because that contains the config and the "
                "checkpoints. Fix: copy the whole run directory here."
            )
        config = loading.load_stored(directory.config)
        if not 0 <= participant < config.size:
            raise UserError(f"model: got participant {participant}. Allowed: 0 to {config.size - 1}.")
        committed = directory.committed()
        if not committed:
            raise UserError(f"{self.path}: the run has no checkpoint. Fix: resume it and let it run to its end.")
        try:
            manifest = checkpoint_files.read_manifest(committed[0])
            state = checkpoint_files.load(committed[0], manifest, [participant])[participant]
        except DamagedError as error:
            raise UserError(f"{error}. Fix: resume the run, which falls back to a sound checkpoint.") from None
        source = open_source(config.data)
        architecture = config.architecture(participant)
        # A user's own model may have random numbers that its state dict does not hold, so it is built as in the run.
        begins_alike = models.is_own(architecture) and methods.build(config).shares_parameters
        seed = initial_seed(config, participant, begins_alike)
        model = models.build(architecture, source.form, source.classes, seed)
        if config.optimizer.precision == "bfloat16":
            mixed_precision.mix(model)
        try:
            model.load_state_dict({**state["model"], **state.get("average", {})})
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise UserError(f"{committed[0]}: the checkpoint does not fit config.yaml: {why}") from None
        return model.eval()
