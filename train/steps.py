"""DIR/steps/: what an interrupted run is resumed from. It exists exactly while a run is unfinished.

    steps/run.json            which run this is: options, data, validation before training
    steps/checkpoint-200/     `Trainer`'s own: weights, optimizer, schedule, random states, and last `complete`
    steps/final/              the checkpoint while it is being written; moved to DIR when whole

A SIGKILL may leave the newest checkpoint half written. `Trainer` writes several files and then deletes older checkpoints,
so none of its files tells that all are there; the marker that we add when it is done does. Two checkpoints are kept: the
one before the one being written is always marked and whole. (This withstands the death of the process, not of the power.)
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kwise.engine.errors import ConfigError

REPORT_NAME = "training_report.json"
_MARKER = "complete"


class MarkComplete(TrainerCallback):
    """Mark a step checkpoint when all of it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARKER).touch()


class StepsDir:
    """The `steps` directory of one output directory."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output / "steps"

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that the run may write to the output directory.

        Raises:
            ConfigError: it is not empty and neither option allows what would have to be done with it.
        """
        if self.output.exists() and any(self.output.iterdir()):
            is_ours = self.path.is_dir() or (self.output / REPORT_NAME).is_file()
            if overwrite and is_ours:
                shutil.rmtree(self.output)
            elif overwrite:
                raise ConfigError(f"--overwrite: {self.output} was not written by kwise train")
            elif resume and not self.path.is_dir():
                raise ConfigError(f"--resume: {self.output} has no unfinished run")
            elif not resume:
                raise ConfigError(f"--output: {self.output} is not empty; choose --resume or --overwrite")
        self.path.mkdir(parents=True, exist_ok=True)

    def newest_complete(self) -> Path | None:
        """The checkpoint to resume from, if there is one."""
        complete = [marker.parent for marker in self.path.glob(f"checkpoint-*/{_MARKER}")]
        return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)

    def read_run(self) -> dict[str, Any] | None:
        """What `write_run` wrote, or None if the run was interrupted before that."""
        path = self.path / "run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_run(self, run: dict[str, Any]) -> None:
        """Note which run this is; whole or not at all."""
        partial = self.path / "run.json.partial"
        partial.write_text(json.dumps(run, indent=2), encoding="utf-8")
        partial.replace(self.path / "run.json")

    def publish(self, final: Path) -> None:
        """Move the files of the finished checkpoint from `final` to the output directory."""
        for file in final.iterdir():
            file.replace(self.output / file.name)

    def close(self) -> None:
        """The run is finished: there is nothing to resume any more."""
        shutil.rmtree(self.path)
