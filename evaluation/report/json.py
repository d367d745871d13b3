"""The JSON files of evaluations, which `kwise eval --compare` reads again, and of comparisons."""

import json
from pathlib import Path

import msgspec

from kwise.errors import ConfigError
from kwise.evaluation.result import SCHEMA_VERSION, Evaluation, ModelComparison
from kwise.publish import publish_text


class _Header(msgspec.Struct):
    schema_version: int
    differences: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # only comparisons have them


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation, each ranking on a line of its own. The file appears as a whole."""
    fields = msgspec.to_builtins(evaluation)
    lines = [json.dumps(ranking, ensure_ascii=False) for ranking in fields.pop("rankings")]
    head = json.dumps(fields, indent=2, ensure_ascii=False).removesuffix("\n}")
    listed = ",\n    ".join(lines)
    publish_text(f'{head},\n  "rankings": [\n    {listed}\n  ]\n}}\n', path)


def write_comparison(comparison: ModelComparison, path: Path) -> None:
    """Write a comparison. The file appears as a whole."""
    fields = msgspec.to_builtins(comparison)
    publish_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", path)


def read_json(path: Path) -> Evaluation:
    """Return the evaluation that `write_json` wrote.

    Raises:
        ConfigError: the file is not an evaluation, or of another version of the schema.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        header = msgspec.json.decode(content, type=_Header)
        version = header.schema_version
        if header.differences is not msgspec.UNSET:
            raise ConfigError(f"{path}: is a comparison of two results; give a result of one model")
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path}: has schema version {version}, and this version of kwise reads "
                f"{SCHEMA_VERSION}; evaluate again"
            )
        evaluation = msgspec.json.decode(content, type=Evaluation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not a result of kwise eval: {error}") from None
    for ranking in evaluation.rankings:
        values = (ranking.ranks, ranking.lengths, ranking.rewards, ranking.scores)
        if len({len(value) for value in values if value is not None}) != 1:
            raise ConfigError(
                f"{path}: is not a result of kwise eval: the ranking {ranking.origin} has ranks, "
                "scores, lengths and rewards of different numbers of responses"
            )
    return evaluation
