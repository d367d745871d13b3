"""Training runs that are small enough for tests, as options and as a command line."""

import sys
from pathlib import Path
from typing import Any

import pytest

from kwise.train.options.config import Precision, TrainConfig
from kwise.train.run.training import train

KILL_AT = str(Path(__file__).parent / "programs" / "kill_at.py")

IGNORED_WARNINGS = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    # Trainer warns if two step checkpoints are written within a second. It orders them by number.
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),
]


def options(data: Path, model: Path, output: Path, **changed: Any) -> dict[str, Any]:
    """Return options of a short run.

    It does not rehearse the export, which takes seconds for each architecture and template in each
    process, and which tests/export/test_rehearsal.py is about.
    """
    base = {
        "epochs": 4.0,
        "learning_rate": 1e-3,
        "rankings_per_step": 2,
        "precision": Precision.FP32,
        "save_every": 5,
        "export_check": False,
    }
    return {"data": str(data), "model": str(model), "output": output, **base, **changed}


def command(settings: dict[str, Any], killed_at: str = "") -> list[str]:
    """Return the command that trains with these options.

    With `killed_at`, the process is killed at the line of progress that begins with it; see
    programs/kill_at.py.
    """
    flags = [_flag(name, value) for name, value in settings.items() if name != "data"]
    killer = [KILL_AT, killed_at] if killed_at else []
    return [sys.executable, *killer, "-m", "kwise", "train", settings["data"], *flags]


def _flag(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option}={getattr(value, 'value', value)}"


def interrupted_at(line: str, config: TrainConfig) -> None:
    """Train until the line of progress that begins with `line`, and leave what a SIGKILL leaves."""

    class Interrupted(BaseException):  # train reports an Exception as a failure of a library
        pass

    def progress(text: str) -> None:
        if text.startswith(line):
            raise Interrupted

    with pytest.raises(Interrupted):
        train(config, progress)
