"""The record of a run, next to its output: the request, the model and the progress.

A run that was stopped goes on from its record. When the run is finished, the record says where the
output comes from. It is replaced as a whole, after the output has reached the disk, so it never
promises more than there is.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kwise.bulk.scorers.protocol import ModelIdentity
from kwise.errors import ConfigError
from kwise.options import flag_of
from kwise.publish import publish_text

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The counts of a run, earlier parts of it included.

    Attributes:
        rows: the rows of the input that were read.
        bad_rows: those that were not scored.
        unread_files: the files that could not be read to the end; each counts as a row too.
        responses: the responses that have a reward.
        failed_responses: those that have none, in rows that were scored.
        tokens: the tokens of the conversations that were scored.
        written_rows: the rows of the output.
    """

    rows: int = 0
    bad_rows: int = 0
    unread_files: int = 0
    responses: int = 0
    failed_responses: int = 0
    tokens: int = 0
    written_rows: int = 0

    @property
    def has_failures(self) -> bool:
        """True if something of the input was not scored."""
        return bool(self.bad_rows or self.unread_files or self.failed_responses)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The record of a run.

    Attributes:
        options: the options that decide what is written.
        input: path, size and time of change of each file of the input.
        model: the model that computes the rewards.
        counts: how far the run came.
        output_bytes: the length of the output then.
        bad_bytes: the length of the file of bad rows then.
        is_read: whether all rows of the input are in the output.
        is_finished: whether the output is in its place.
    """

    options: dict[str, Any]
    input: list[list[Any]]
    model: ModelIdentity
    counts: Counts = field(default_factory=Counts)
    output_bytes: int = 0
    bad_bytes: int = 0
    is_read: bool = False
    is_finished: bool = False

    def write(self, path: Path) -> None:
        """Put the record in the place of the one that is there.

        Raises:
            OSError: it cannot be written, and the old one is in its place.
        """
        content = json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1) + "\n"
        publish_text(content, path)

    @classmethod
    def read(cls, path: Path) -> "RunRecord | None":
        """Read the record of a run; return None if there is none.

        Raises:
            ConfigError: the file is not a record.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.pop("schema", None) != _SCHEMA:
            raise ConfigError(f"{path} is not the record of a run of this version of kwise")
        try:
            return cls(
                **{
                    **content,
                    "model": ModelIdentity(**content["model"]),
                    "counts": Counts(**content["counts"]),
                }
            )
        except (KeyError, TypeError):
            raise ConfigError(f"{path} is not the record of a run") from None

    def check_same(self, asked: "RunRecord", path: Path) -> None:
        """Check that `asked` would write what this unfinished run writes.

        Raises:
            ConfigError: an option, the input or the model differs; names it.
        """
        advice = "give the same options, or begin anew with --overwrite"
        for name in sorted(self.options.keys() | asked.options.keys()):
            before, now = self.options.get(name), asked.options.get(name)
            if before != now:
                raise ConfigError(
                    f"{flag_of(name)} is {now}, and was {before} in the run of {path}: {advice}"
                )
        if self.input != asked.input:
            name = _changed(self.input, asked.input)
            raise ConfigError(
                f"{name} has changed since the run of {path}; --overwrite begins anew"
            )
        _check_same_server(self.model.server_options, asked.model.server_options, path)
        for part, before in asdict(self.model).items():
            if before != (now := getattr(asked.model, part)):
                raise ConfigError(
                    f"the model's {part} was {before} in the run of {path}, and is {now}: rewards "
                    "of two models do not belong in one output; --overwrite begins anew"
                )

    def at(
        self, counts: Counts, output_bytes: int, bad_bytes: int, *, is_read: bool
    ) -> "RunRecord":
        """Return the record of the same run at another place."""
        return replace(
            self,
            counts=counts,
            output_bytes=output_bytes,
            bad_bytes=bad_bytes,
            is_read=is_read,
        )

    def finished(self) -> "RunRecord":
        """Return the record of the run with its output in place."""
        return replace(self, is_finished=True)


def _check_same_server(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Check that the server answers as it did in the run of `path`.

    Raises:
        ConfigError: one of its options differs; names it.
    """
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"the server has {flag_of(name)} {now.get(name)}, and had {before.get(name)} in "
                f"the run of {path}: start it as before, or begin anew with --overwrite"
            )


def _changed(before: list[list[Any]], now: list[list[Any]]) -> str:
    """Return the name of the first file of the input that differs."""
    for old, new in zip(before, now, strict=False):
        if old != new:
            return str(new[0])
    return str((before + now)[min(len(before), len(now))][0])
