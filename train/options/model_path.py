"""The check of paths that the command line names, before torch is imported, so it takes no time.

`kwise.train.model.pretrained` checks hub names, after torch was imported and the data was read.
"""

import re
from pathlib import Path

from kwise.errors import ConfigError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
"""NAME or OWNER/NAME, as the hub allows them."""

_SUFFIXES = {".gguf", ".safetensors", ".bin", ".pt", ".pth"}


def check_model_path(option: str, name: str) -> None:
    """Raise an error if a model's name is a path that does not exist.

    Args:
        option: what the command line calls the model, for instance "--model".

    Raises:
        ConfigError: the path does not exist.
    """
    if not Path(name).exists() and _is_path(name):
        raise ConfigError(f"{option} {name}: there is no such file or directory")


def check_template_path(name: str | Path | None) -> None:
    """Raise an error if a chat template is a path that does not exist.

    Args:
        name: a file, or the name of one of the model's own templates.

    Raises:
        ConfigError: the path does not exist.
    """
    if name and ("/" in str(name) or Path(name).suffix) and not Path(name).exists():
        raise ConfigError(f"--chat-template {name}: No such file or directory")


def _is_path(name: str) -> bool:
    """Return whether a name cannot be one on the hub, NAME or OWNER/NAME, or is a path here."""
    first, _, rest = name.partition("/")
    return (
        HUB_NAME.fullmatch(name) is None
        or Path(name).suffix in _SUFFIXES
        or (bool(rest) and Path(first).is_dir())
    )
