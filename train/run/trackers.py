"""Experiment trackers: those that `Trainer` knows, checked before anything is computed."""

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from kwise.errors import ConfigError

NONE = "none"


def check_tracker(name: str) -> list[str]:
    """What `TrainingArguments(report_to=…)` is to be.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    if name == NONE:
        return []
    if name not in INTEGRATION_TO_CALLBACK:
        raise ConfigError(
            f"--report-to {name}: known are {', '.join(sorted({NONE, *INTEGRATION_TO_CALLBACK}))}"
        )
    if name not in get_available_reporting_integrations():
        raise ConfigError(
            f"--report-to {name} needs its package, which is not installed: pip install {name.replace('_', '-')}"
        )
    return [name]
