"""The directory of an unfinished run: what it is resumed from, and how its checkpoint appears.

    DIR.unfinished/run.json         which run this is: options, data, validation before training
    DIR.unfinished/checkpoint-200/  a step checkpoint of Trainer: weights, optimizer, schedule,
                                    random states; at last the marker `complete`
    DIR.unfinished/final/           the finished checkpoint while it is being written

It exists exactly while a run is unfinished. It lies beside DIR, not in it, so that DIR is replaced
as a whole: readers see the earlier checkpoint or the new one, never a mixture.

A SIGKILL may leave the newest step checkpoint half written. Trainer writes several files and then
deletes older checkpoints, so none of its files shows that all are there; the marker `complete`,
written last, does. It lists the files with their sizes. Two checkpoints are kept, because the one
before the one being written is always complete.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kwise.errors import ConfigError
from kwise.publish import publish_directory, publish_file
from kwise.train.run.processes import Processes

REPORT_NAME = "training_report.json"
ADAPTER_NAME = "adapter"  # directory of the adapter before it was merged
TRACKER_NAME = "runs"  # directory of a tracker's files
_MARKER, _PARTIAL = "complete", "run.json.partial"


class MarkComplete(TrainerCallback):
    """A callback that marks a step checkpoint when all processes have written their part."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._processes.wait()
        if self._processes.is_main:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sizes = {name: (directory / name).stat().st_size for name in file_names(directory)}
            (directory / _MARKER).write_text(json.dumps(sizes), encoding="utf-8")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Correct the path of the best checkpoint, which is wrong after the directory was moved."""
        if state.best_global_step:
            name = f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(Path(args.output_dir) / name)


class UnfinishedRun:
    """The run whose checkpoint will be `output`, and its directory.

    Attributes:
        output: the directory that --output names, resolved.
        path: `output` with the suffix ".unfinished".
    """

    def __init__(self, output: Path) -> None:
        self.output = output.resolve()
        self.path = Path(f"{self.output}.unfinished")

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that the run may write to its directories; change nothing.

        Raises:
            ConfigError: a directory is not empty, and the options do not allow what would be done
                with it.
        """
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"--output: {self.output} is not a directory")
        if self.output.is_mount():
            raise ConfigError(
                f"--output: {self.output} is a mount point, which cannot be replaced; name a "
                "directory in it"
            )
        if self.output.is_dir() and self.output.samefile(os.curdir):
            raise ConfigError(
                f"--output: {self.output} is the current directory, which the checkpoint would "
                "replace; start kwise elsewhere or name another directory"
            )
        is_unfinished = _has_files(self.path)
        if is_unfinished and not self._is_ours():
            raise ConfigError(
                f"--output: {self.path} is not known to have been written by kwise train; move it"
            )
        if resume and not is_unfinished:
            raise ConfigError(f"--resume: {self.path} has no unfinished run")
        if resume or overwrite:
            self._check_output("--resume" if resume else "--overwrite")
        elif is_unfinished:
            raise ConfigError(
                f"--output: {self.path} has an unfinished run; choose --resume or --overwrite"
            )
        elif _has_files(self.output):
            raise ConfigError(f"--output: {self.output} is not empty; choose --overwrite")

    def open(self, *, overwrite: bool) -> None:
        """Make the directory; delete an earlier unfinished run if `overwrite`.

        Call it after `check`, when the run is sure to begin. An earlier finished checkpoint stays
        until `publish`.
        """
        if overwrite and self.path.is_dir():
            self._delete()
        self.path.mkdir(parents=True, exist_ok=True)

    def newest_complete(self) -> Path | None:
        """Return the step checkpoint to resume from; None if there is none.

        Trainer would resume without an optimizer whose file is missing, and arrive at other
        weights.
        """
        whole = [path for path in self._marked() if _damaged_file(path) is None]
        return whole[-1] if whole else None

    def damages(self) -> list[str]:
        """Return a line about each step checkpoint that is not whole any more."""
        damaged = {path.name: _damaged_file(path) for path in self._marked()}
        return [
            f"{name} is not used: {file} is missing or has another size"
            for name, file in damaged.items()
            if file is not None
        ]

    def _marked(self) -> list[Path]:
        """Return the step checkpoints that were written whole, the oldest first."""
        marked = [marker.parent for marker in self.path.glob(f"checkpoint-*/{_MARKER}")]
        return sorted(marked, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def read_run(self) -> dict[str, Any] | None:
        """Return what `write_run` wrote; None if the run was interrupted before."""
        run = _read_object(self.path / "run.json")
        return run if run is not None and {"config", "rankings_sha256"} <= run.keys() else None

    def write_run(self, run: dict[str, Any]) -> None:
        """Record which run this is. After a crash the file has the old content or the new one."""
        partial = self.path / _PARTIAL
        partial.write_text(json.dumps(run, indent=2), encoding="utf-8")
        publish_file(partial, self.path / "run.json")

    def make_final(self) -> Path:
        """Return an empty directory for the finished checkpoint."""
        final = self.path / "final"
        shutil.rmtree(final, ignore_errors=True)  # an earlier attempt may have been interrupted
        final.mkdir()
        return final

    def publish(self, final: Path) -> None:
        """Replace the output directory by `final` in one step, and delete the run's state.

        A run that is killed meanwhile can be resumed.

        Raises:
            ConfigError: the output directory has a file that kwise train is not known to have
                written; nothing is changed.
        """
        self._check_output("--output", "; move it and give --resume")
        publish_directory(final, self.output)
        self._delete()

    def _is_ours(self) -> bool:
        """Return whether a run is recorded in the directory, or was about to be."""
        if self.read_run() is not None:
            return True
        return self.path.is_dir() and {path.name for path in self.path.iterdir()} <= {_PARTIAL}

    def _delete(self) -> None:
        """Delete the directory; run.json goes last, because it shows that the rest is ours."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != "run.json":
                path.unlink()
        shutil.rmtree(self.path)

    def _check_output(self, option: str, advice: str = "") -> None:
        """Raise ConfigError if the output directory has files that its report does not list."""
        if not self.output.is_dir():
            return
        foreign = sorted(set(_leaves(self.output)) - set(self._published()))
        if foreign:
            raise ConfigError(
                f"{option}: {self.output} has {foreign[0]}, which kwise train is not known to have "
                f"written{advice}"
            )

    def _published(self) -> list[str]:
        """Return the files that the report in the output directory lists; none if it is foreign."""
        report = _read_object(self.output / REPORT_NAME)
        if report is None or not {"files", "rankings_by_size", "versions"} <= report.keys():
            return []
        return [REPORT_NAME, *(name for name in report["files"] if _is_checkpoint_file(name))]


def file_names(directory: Path) -> list[str]:
    """Return the files of a checkpoint: "NAME" or "adapter/NAME"."""
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )


def _damaged_file(checkpoint: Path) -> str | None:
    """Return a file that does not have the size in the marker; None if all have it."""
    for name, size in (_read_object(checkpoint / _MARKER) or {}).items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            return str(name)
    return None


def _has_files(directory: Path) -> bool:
    return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


def _leaves(directory: Path) -> list[str]:
    """Return everything below `directory` that is not a directory with something in it."""
    return [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    ]


def _is_checkpoint_file(name: Any) -> bool:
    """Return whether a report may list this name.

    A report that was tampered with must not list other files.
    """
    if not isinstance(name, str):
        return False
    folder, _, file = name.rpartition("/")
    return folder in ("", ADAPTER_NAME, TRACKER_NAME) and Path(file).name == file


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file is missing or has something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
