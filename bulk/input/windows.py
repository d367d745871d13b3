"""Windows of rows: they are cut at the same rows whenever the same input is read.

A window ends when it has about as many tokens as `max_tokens`, so that its batches are nearly all
full, and at 16 MB of text or 4,096 rows, so that memory is bounded whatever the rows are. Neither
the time nor the place where an earlier run ended plays a part.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwise.bulk.input.files import InputFile
from kwise.bulk.input.row import BadRow, InputRow, UnreadFile
from kwise.train.data.files.read_rows import read_rows
from kwise.train.data.rows.items import RowProblem
from kwise.train.rankings.errors import UnreadableFile
from kwise.train.rankings.open_file import display_name
from kwise.types import Group, Message

MAX_WINDOW_ROWS = 4096
_MAX_CHARACTERS = 16 << 20
# English has about four characters a token.
_CHARACTERS_PER_TOKEN = 4
_NOTHING_READ = "nothing after it in this file was read"


GroupOf = Callable[[Any], Group]
"""Returns the group that a row describes; raises BadRow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Consecutive rows that are scored together."""

    rows: list[InputRow]

    @property
    def groups(self) -> list[Group]:
        """The groups of the rows that are not bad, in order."""
        return [row.group for row in self.rows if row.group is not None]


FieldsOf = Callable[[Any], Any]
"""Returns what the output needs of a row that was read."""


def _whole(row: Any) -> Any:
    return row


def read_input(
    files: Sequence[InputFile],
    group_of: GroupOf,
    skip_rows: int = 0,
    fields_of: FieldsOf = _whole,
) -> Iterator[InputRow]:
    """Yield the rows of the files after the first `skip_rows`.

    A file from which no further row can be read ends with one bad row, and the next file follows.

    Raises:
        ConfigError: a package that a file needs is missing.
        OSError: a file cannot be read.
    """
    number = 0
    for file in files:
        for line, content in _rows_of_file(file.path):
            number += 1
            if number > skip_rows:
                row = _input_row(number, file.path, line, content, group_of)
                yield replace(row, fields=fields_of(row.fields))


def cut_windows(rows: Iterable[InputRow], max_tokens: int, max_rows: int) -> Iterator[Window]:
    """Yield the rows in windows of about `max_tokens` tokens and at most `max_rows` rows."""
    window: list[InputRow] = []
    tokens = characters = 0
    for row in rows:
        window.append(row)
        row_tokens, row_characters = _sizes(row.group)
        row_characters += _characters(row.fields)
        tokens += row_tokens
        characters += row_characters
        if tokens >= max_tokens or characters >= _MAX_CHARACTERS or len(window) == max_rows:
            yield Window(rows=window)
            window, tokens, characters = [], 0, 0
    if window:
        yield Window(rows=window)


def _rows_of_file(path: str) -> Iterator[tuple[int, Any]]:
    line = 0
    try:
        for line, content in read_rows(path):
            yield line, content
    except UnreadableFile as error:
        yield error.row or line + 1, UnreadFile("", f"{error.reason}; {_NOTHING_READ}")


def _input_row(number: int, path: str, line: int, content: Any, group_of: GroupOf) -> InputRow:
    group, problem = None, None
    if isinstance(content, BadRow):
        content, problem = None, content
    elif isinstance(content, RowProblem):
        content, problem = None, BadRow.of(content)
    else:
        try:
            group = group_of(content)
        except BadRow as error:
            problem = error
    return InputRow(
        number=number,
        path=display_name(path),
        line=line,
        fields=content,
        group=group,
        problem=problem,
    )


def _characters(fields: Any) -> int:
    """Return the characters of the texts that are kept for the output, at the top level."""
    values = fields.values() if isinstance(fields, dict) else ()
    return sum(len(value) for value in values if isinstance(value, str | bytes))


def _sizes(group: Group | None) -> tuple[int, int]:
    """Return (tokens, characters) of a group, roughly; its prompt counts once."""
    if group is None:
        return 0, 0
    responses: Any = group.responses
    prompt: Any = group.prompt
    is_text = isinstance(prompt[0], Message)
    length = sum(len(message.content) for message in prompt) if is_text else len(prompt)
    length += sum(map(len, responses))
    return (length // _CHARACTERS_PER_TOKEN + 1, length) if is_text else (length, 8 * length)
