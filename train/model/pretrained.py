"""What reading a pretrained model may say: transformers' warnings not at all, its errors in one line.

transformers reports a model that cannot be read with exceptions of many kinds, some of them pages long. Whoever named the
model on a command line gets that name and the beginning.
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
    """Where `from_pretrained` finds a Hugging Face directory, a hub name or a `.gguf` file."""
    path = Path(model)
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return {"pretrained_model_name_or_path": model}


@contextmanager
def reading(option: str, name: str) -> Iterator[None]:
    """Around `from_pretrained(name)`; `option` is how the command line calls the model, "--model" for instance.

    Warnings stay away: that a new head "should probably be trained" is what we are about to do.

    Raises:
        ConfigError: the model cannot be read, whatever the reason.
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
        else f"there is no such file or directory, and of the hub: {line}"
    )
