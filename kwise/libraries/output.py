"""Silence what other libraries write to standard error, which is for the lines of kwise.

They advise to install packages that kwise does not need, draw progress bars into logs, and warn of
their own code. Errors are still shown. `kwise COMMAND --debug` silences nothing.
"""

import logging
import os
import sys
import warnings

# Read by the libraries when they are imported.
_ENVIRONMENT = {
    "DATASETS_VERBOSITY": "error",
    "GRPC_VERBOSITY": "NONE",  # its errors reach Python as exceptions too
    "HF_HUB_VERBOSITY": "error",
    "OPTIMUM_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",  # the default of bars; those of downloads appear in a terminal
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def silence_libraries() -> None:
    """Silence other libraries in this process. Call this before they are imported.

    What the user has set in the environment or with `python -W` stays. The filter of warnings is
    the last one, so that those of a test runner come first.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore", append=True)
    # Without a handler Python prints the warnings of any logger.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_is_shown)
    logging.basicConfig(handlers=[handler])


def _is_shown(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] == "kwise"
