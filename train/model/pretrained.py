"""Reading pretrained models: transformers' warnings are hidden, and its errors become one line.

A name that is neither a path nor known to the hub is told at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers.utils import logging as transformers_logging

from kwise.engine.artifact.names import MANIFEST
from kwise.errors import ConfigError
from kwise.libraries.errors import cause_of, is_foreign, library_errors, root_of
from kwise.train.checkpoint.files import CONFIGS, directories_with_config, file_problem
from kwise.train.options.model_path import HUB_NAME

_HUB_TIMEOUT_S = 5.0


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

    If a file is the cause, the error names it.

    The warnings say, for instance, that a new head should be trained, which is about to happen.

    Args:
        option: what the command line calls the model, for instance "--model".

    Raises:
        ConfigError: the model cannot be read.
    """
    check_source(option, name)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with naming_files(option, name), library_errors(f"{option} {name}: cannot be read"):
            yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def naming_files(option: str, name: str) -> Iterator[None]:
    """Let the error of a library name the file of the checkpoint `name` that is its cause.

    Raises:
        ConfigError: as in the block, but about the file.
    """
    try:
        yield
    except ConfigError as error:
        # Only an error that comes from a library has a cause.
        if error.__cause__ is not None and (problem := file_problem(name)):
            raise ConfigError(f"{option} {name}: {problem}") from error.__cause__
        raise


def check_source(option: str, name: str) -> None:
    """Raise ConfigError if `name` is neither a directory or file nor a model that can be fetched.

    transformers would ask the hub for one file after another, with pauses between many attempts.
    """
    path = Path(name)
    if path.is_dir() and (path / MANIFEST).is_file() and not (path / "config.json").is_file():
        raise ConfigError(
            f"{option} {name}: is an artifact of kwise export; give the checkpoint that it was "
            "exported from"
        )
    if path.is_dir() and not any((path / file).is_file() for file in CONFIGS):
        problem = f"{option} {name}: cannot be read: the directory has no config.json"
        inner = directories_with_config(path)
        raise ConfigError(f"{problem}; one is in {', '.join(inner[-3:])}" if inner else problem)
    if path.exists() and not path.is_dir() and path.suffix != ".gguf":
        raise ConfigError(
            f"{option} {name}: cannot be read: it must be the directory of a checkpoint, or a "
            ".gguf file"
        )
    if path.exists():
        return
    problem = f"{option} {name}: there is no such file or directory"
    if not HUB_NAME.fullmatch(name):
        raise ConfigError(problem)
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in CONFIGS):
        return
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{problem}; as a name on the hub it is not in the cache, and HF_HUB_OFFLINE forbids "
            "to ask the hub"
        )
    if refusal := _ask_hub(name):
        raise ConfigError(f"{problem}, and {refusal}")


@cache
def _ask_hub(name: str) -> str:
    """Ask the hub for a model, once. Return why it does not give it, or "" if it does."""
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except RepositoryNotFoundError:  # the hub says the same of a private model
        return "the hub has no model of this name; a private one needs HF_TOKEN"
    except HfHubHTTPError as error:
        return f"the hub refuses it: {cause_of(error)}"
    except Exception as error:  # of the HTTP library, which differs between versions
        if not is_foreign(error):
            raise
        return f"the hub cannot be reached: {cause_of(root_of(error))}"
    return ""
