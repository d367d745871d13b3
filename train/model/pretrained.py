"""Reading pretrained models: transformers' warnings are hidden, and its errors become one line.

transformers raises many kinds of exceptions for a model that it cannot read, some of them pages
long. The user gets the name from the command line and the beginning of the message.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from kwise.errors import ConfigError

_MAX_CHARACTERS = 300


def source_of(model: str) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` finds a model.

    It is a Hugging Face directory, a hub name or a `.gguf` file.
    """
    path = Path(model)
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return {"pretrained_model_name_or_path": model}


@contextmanager
def reading(option: str, name: str) -> Iterator[None]:
    """Hide the warnings of `from_pretrained(name)`, and turn its errors into a ConfigError.

    The warnings say, for instance, that a new head should be trained, which is about to happen.

    Args:
        option: what the command line calls the model, for instance "--model".

    Raises:
        ConfigError: the model cannot be read.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{option} {name}: {_problem(name, error)}") from error
    finally:
        transformers_logging.set_verbosity(before)


def _problem(name: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    line = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
    return (
        f"cannot be read: {line}"
        if Path(name).exists()
        else f"there is no such file or directory; the hub says: {line}"
    )
