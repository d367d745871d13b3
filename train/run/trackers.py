"""Experiment trackers that Trainer supports, checked before training starts."""

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
