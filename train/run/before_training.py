"""How a run starts: its directory is opened, it is noted which run this is, and the model is measured as it is."""

import time
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback

from kwise.train.report.evaluation import Evaluation
from kwise.train.run.processes import Processes
from kwise.train.run.run_record import check_same_run
from kwise.train.run.steps import StepsDir
from kwise.train.run.validation import Validation, evaluation_from


class Start(TrainerCallback):
    """before: the validation before training, from when training begins; None without a validation split.
    training_began_s: `time.perf_counter`'s."""

    def __init__(
        self, run: dict[str, Any], steps: StepsDir, validation: Validation, processes: Processes
    ) -> None:
        self._run, self._steps, self._validation, self._processes = (
            run,
            steps,
            validation,
            processes,
        )
        self.before: Evaluation | None = None
        self.training_began_s = 0.0

    def open(self, *, overwrite: bool) -> None:
        """Open the directory of steps, and note the run in it at once, which also tells whose directory it is.

        Raises:
            ConfigError: another run is noted there.
        """
        self._processes.wait()  # until all have looked at the directory as it was
        if self._processes.is_main:
            self._steps.open(overwrite=overwrite)
        self._processes.wait()
        noted = self._steps.read_run()
        self._processes.wait()  # until all have read what the next lines write
        if noted is not None:
            check_same_run(self._run, noted)
            self.before = evaluation_from(noted.get("before"))
        elif self._processes.is_main:
            self._steps.write_run(self._run)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model that was read: here, because now it is where it trains, in parts if it is sharded. A resumed run has
        the figures of the one that it resumes, which noted them before its first step."""
        if self.before is None and state.global_step == 0:
            self.before = self._validation.tell("before training")
            if self._processes.is_main:
                self._steps.write_run(
                    self._run | {"before": asdict(self.before) if self.before else None}
                )
        self.training_began_s = time.perf_counter()
