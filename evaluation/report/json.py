"""The JSON file of an evaluation, which `kwise eval --compare` reads again."""

from pathlib import Path
from typing import Any

import msgspec

from kwise.errors import ConfigError
from kwise.evaluation.result import SCHEMA_VERSION, Evaluation
from kwise.publish import publish_text


class _Header(msgspec.Struct):
    schema_version: int


def as_json(result: Any) -> str:
    """Return a result as JSON, indented, with one ranking in many lines."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1).decode() + "\n"


def write_json(result: Any, path: Path) -> None:
    """Write a result; the file appears as a whole."""
    publish_text(as_json(result), path)


def read_json(path: Path) -> Evaluation:
    """Return the evaluation that `write_json` wrote.

    Raises:
        ConfigError: the file is not an evaluation, or of another version of the schema.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        version = msgspec.json.decode(content, type=_Header).schema_version
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path}: has schema version {version}, and this version of kwise reads "
                f"{SCHEMA_VERSION}; evaluate again"
            )
        return msgspec.json.decode(content, type=Evaluation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not a result of kwise eval: {error}") from None
