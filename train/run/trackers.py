"""Experiment trackers that Trainer supports, checked before training starts."""

from pathlib import Path

from transformers import Trainer
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from kwise.errors import ConfigError

NONE = "none"
# Trackers whose package has another name.
_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}


def check_tracker(name: str) -> list[str]:
    """Return the value of `TrainingArguments(report_to=…)`.

    Raises:
        ConfigError: the tracker does not exist, or its package is not installed.
    """
    if name == NONE:
        return []
    if name not in INTEGRATION_TO_CALLBACK:
        raise ConfigError(
            f"--report-to {name}: not known; known are "
            f"{', '.join(sorted({NONE, *INTEGRATION_TO_CALLBACK}))}"
        )
    if name not in get_available_reporting_integrations():
        raise ConfigError(
            f"--report-to {name} needs its package: pip install "
            f"{_PACKAGES.get(name, name.replace('_', '-'))}"
        )
    return [name]


def set_tracker_directory(trainer: Trainer, directory: Path) -> None:
    """Let a tracker that writes files, such as TensorBoard, write them to `directory`.

    transformers 4 reads the directory from the arguments, transformers 5 from the tracker's
    callback.
    """
    trainer.args.logging_dir = str(directory)
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "logging_dir"):
            callback.logging_dir = str(directory)
