"""DIR/steps/: what an interrupted run is resumed from. It exists exactly while a run is unfinished.

    steps/run.json            which run this is: options, data, validation before training
    steps/checkpoint-200/     `Trainer`'s own: weights, optimizer, schedule, random states, and last `complete`
    steps/final/              the checkpoint while it is being written; moved to DIR when whole
    steps/moved               which of its files have been moved, or are about to be: ours, though no report in DIR lists them yet

A SIGKILL may leave the newest checkpoint half written. `Trainer` writes several files and then deletes older checkpoints,
so none of its files tells that all are there; the marker that we add when it is done does. Two checkpoints are kept: the
one before the one being written is always marked and whole. (This withstands the death of the process, not of the power.)

What kwise train wrote is deleted or replaced, and nothing else: training_report.json lists the files of the checkpoint beside
it, run.json marks steps/. An earlier checkpoint stays, and works, until the new one is whole and takes its place.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kwise.errors import ConfigError
from kwise.train.run.processes import Processes

REPORT_NAME = "training_report.json"
ADAPTER_NAME, RUNS_NAME = "adapter", "runs"
"""The directories of a checkpoint, each of files alone: the adapter before it was merged, and a tracker's files."""
_MARKER, _MOVED = "complete", "moved"


class MarkComplete(TrainerCallback):
    """Mark a step checkpoint when all of it is written, by every process."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._processes.wait()
        if self._processes.is_main:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARKER).touch()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`Trainer` notes the best checkpoint by its path, which changes when the output directory is moved."""
        if state.best_global_step:
            state.best_model_checkpoint = str(
                Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            )


class StepsDir:
    """The `steps` directory of one output directory."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output / "steps"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Whether the run may write to the output directory; changes nothing.

        Raises:
            ConfigError: it is not empty and neither option allows what would have to be done with it.
        """
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"--output: {self.output} is no directory")
        if not self.output.exists() or not any(self.output.iterdir()):
            return
        if overwrite:
            self._check_ours()
        elif resume and not self.path.is_dir():
            raise ConfigError(f"--resume: {self.output} has no unfinished run")
        elif not resume:
            raise ConfigError(
                f"--output: {self.output} is not empty; choose --resume or --overwrite"
            )

    def open(self, *, overwrite: bool) -> None:
        """Make the directory, after `check` and once the run is sure to begin. An unfinished run that is overwritten is
        deleted here, a finished checkpoint by `publish`."""
        if overwrite and self.path.is_dir():
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != _MOVED:  # else nobody would know whose files those are
                    path.unlink()
        self.path.mkdir(parents=True, exist_ok=True)

    def _check_ours(self) -> None:
        """Raises ConfigError where anything in the output directory is not known to be written by kwise train."""
        ours = set(self._published())
        if self.path.is_dir() and (
            self.read_run() is not None or {path.name for path in self.path.iterdir()} <= {_MOVED}
        ):
            ours |= {self.path.name, *self._moved()}
        if foreign := sorted(
            name
            for name in _names(self.output)
            if name.partition("/")[0] not in ours and name not in ours
        ):
            raise ConfigError(
                f"--overwrite: {self.output} has {foreign[0]}, which kwise train is not known to have written"
            )

    def _published(self) -> list[str]:
        """The files of the checkpoint in the output directory, by its report and with it; none without a report of ours."""
        report = _read_object(self.output / REPORT_NAME)
        if report is None or not {"files", "rankings_by_size", "versions"} <= report.keys():
            return []
        files = [name for name in report["files"] if isinstance(name, str) and _is_name(name)]
        return [name for name in (*files, REPORT_NAME) if (self.output / name).is_file()]

    def _moved(self) -> list[str]:
        """The files in the output directory that a `publish` which did not end had moved there."""
        noted = self.path / _MOVED
        names = noted.read_text(encoding="utf-8").splitlines() if noted.is_file() else []
        return [name for name in names if _is_name(name) and (self.output / name).is_file()]

    def newest_complete(self) -> Path | None:
        """The checkpoint to resume from, if there is one."""
        complete = [marker.parent for marker in self.path.glob(f"checkpoint-*/{_MARKER}")]
        return max(
            complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None
        )

    def read_run(self) -> dict[str, Any] | None:
        """What `write_run` wrote, or None if the run was interrupted before that."""
        run = _read_object(self.path / "run.json")
        return run if run is not None and {"config", "rankings_sha256"} <= run.keys() else None

    def write_run(self, run: dict[str, Any]) -> None:
        """Note which run this is; whole or not at all."""
        partial = self.path / "run.json.partial"
        partial.write_text(json.dumps(run, indent=2), encoding="utf-8")
        partial.replace(self.path / "run.json")

    def publish(self, final: Path) -> None:
        """Move the files of the finished checkpoint from `final` to the output directory, delete those of an earlier checkpoint
        that are not among them, and move the report, by whose list alone those are known. `--resume` repeats what a kill in
        between leaves undone.

        Raises:
            ConfigError: a file that kwise train is not known to have written is in the way of one; nothing has been moved.
        """
        new = sorted(set(file_names(final)) - {REPORT_NAME})
        ours = {*self._published(), *self._moved()}
        self._check_free({*new, REPORT_NAME} - ours)
        for name in new:
            self._move(final, name)
        for name in ours - {*new, REPORT_NAME}:
            (self.output / name).unlink()
        for folder in (self.output / ADAPTER_NAME, self.output / RUNS_NAME):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self._move(final, REPORT_NAME)

    def _check_free(self, names: set[str]) -> None:
        for name in sorted(names):
            target = self.output / name
            folder_is_a_file = target.parent.exists() and not target.parent.is_dir()
            if folder_is_a_file or target.exists() or target.is_symlink():
                raise ConfigError(
                    f"--output: {target.parent if folder_is_a_file else target} is in the way of the checkpoint, and kwise train "
                    "is not known to have written it: move it and give --resume"
                )

    def _move(self, final: Path, name: str) -> None:
        with (self.path / _MOVED).open("a", encoding="utf-8") as noted:
            noted.write(name + "\n")
        (self.output / name).parent.mkdir(exist_ok=True)
        (final / name).replace(self.output / name)

    def close(self) -> None:
        """The run is finished: there is nothing to resume any more."""
        shutil.rmtree(self.path)


def file_names(directory: Path) -> list[str]:
    """The files of a checkpoint: "NAME", or "adapter/NAME"."""
    return [name for name in _names(directory) if (directory / name).is_file()]


def _names(directory: Path) -> list[str]:
    """What is in a directory, and instead of `ADAPTER_NAME` and `RUNS_NAME` what is in those."""
    paths = list(directory.iterdir())
    folders = [path for path in paths if path.name in (ADAPTER_NAME, RUNS_NAME) and path.is_dir()]
    inside = [f"{folder.name}/{path.name}" for folder in folders for path in folder.iterdir()]
    return [*(path.name for path in paths if path not in folders), *inside]


def _is_name(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", ADAPTER_NAME, RUNS_NAME) and Path(file).name == file


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file, or something else in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
