"""The callback that records which run this is, and evaluates the model, before the first step."""

import time
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback

from kwise.errors import ConfigError
from kwise.train.report.evaluation import Evaluation
from kwise.train.run.processes import Processes
from kwise.train.run.run_record import check_same_run
from kwise.train.run.unfinished_run import UnfinishedRun
from kwise.train.run.validation import Validation, evaluation_from


class BeforeTraining(TrainerCallback):
    """A callback for the work before the first step.

    Attributes:
        evaluation: the validation before training, once training has begun; None without
            rankings for validation.
        training_began_s: value of `time.perf_counter` when training began.
    """

    def __init__(
        self, directory: UnfinishedRun, validation: Validation, processes: Processes
    ) -> None:
        self._directory, self._validation, self._processes = directory, validation, processes
        self._run: dict[str, Any] = {}
        self.evaluation: Evaluation | None = None
        self.training_began_s = 0.0

    def open(self, run: dict[str, Any], *, resume: bool, overwrite: bool) -> list[str]:
        """Open the run's directory, and record the run there.

        The record is written at once, because it shows whose directory it is.

        Args:
            run: see `describe_run`.

        Returns:
            Lines that the user should know about the run that is resumed.

        Raises:
            ConfigError: another run is recorded there.
        """
        self._run = run
        self._processes.wait()  # until all have checked the directory
        if self._processes.is_main:
            self._directory.open(overwrite=overwrite)
        self._processes.wait()
        recorded = self._directory.read_run()
        self._processes.wait()  # until all have read what is written next
        if recorded is not None:
            if not resume:  # the directory had no run when this one checked it
                raise ConfigError(
                    f"--output: another run has begun in {self._directory.path}; name another "
                    "directory"
                )
            self.evaluation = evaluation_from(recorded.get("before"))
            return check_same_run(run, recorded)
        if self._processes.is_main:
            self._directory.write_run(run)
        return []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the model; now, because it is on its device, and sharded if it will be.

        A resumed run takes the evaluation from the record.
        """
        if self.evaluation is None and state.global_step == 0:
            self.evaluation = self._validation.report("before training")
            if self._processes.is_main:
                before = asdict(self.evaluation) if self.evaluation else None
                self._directory.write_run(self._run | {"before": before})
        self.training_began_s = time.perf_counter()
