"""Objects of a data row that remember what was read of them.

Every reader gets the row as a `Row`. Afterwards `unread` tells what no reader asked for, so that
a new format cannot lose a column without a word, whichever columns it knows.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kwise.meanings import says_nothing

_MAX_LISTS = 3
"""Lists inside lists in which objects are looked for."""
_INDEX = re.compile(r"\[\d+\]")


class Row(dict[str, Any]):
    """An object of a row, such as the row itself, a message or a response.

    `row[key]` and `row.get(key)` count as reading a key; `in`, `has` and iteration do not. Objects
    inside become `Row`s when they are read, also the objects of a list.

    Attributes:
        was_read: the keys that were read.
        notes: remarks on the whole row and their counts; shared with the objects inside.
        is_message: True for a message of a conversation.
        is_columns: True for an object whose keys are columns: the row, or a tool's fields in it.
        objects: the objects that `as_objects` made of an object of equally long lists.
        in_texts: (path, value) of what a text of this row spells out.
    """

    __slots__ = ("in_texts", "is_columns", "is_message", "notes", "objects", "was_read")

    def __init__(self, values: Mapping[str, Any], notes: Counter[str]) -> None:
        super().__init__(values)
        self.notes = notes
        self.was_read: set[str] = set()
        self.is_message = False
        self.is_columns = False
        self.objects: list[Row] | None = None
        self.in_texts: list[tuple[str, Any]] = []

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.was_read.add(key)
        wrapped = self.wrap(value)
        if wrapped is not value:
            super().__setitem__(key, wrapped)
        return wrapped

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if there is none."""
        return self[key] if key in self else default  # noqa: SIM401 - this is `get` itself

    def peek(self, key: str) -> Any:
        """Return the value of `key`, or None if there is none; this does not count as reading."""
        return super().get(key)

    def has(self, key: str) -> bool:
        """Return whether `key` has a value that says something; this does not count as reading."""
        return not says_nothing(super().get(key))

    def only(self, keys: Collection[str]) -> "Row":
        """Return a view with some of the keys; what is read of it is read of this object."""
        view = Row({key: self.wrap(self.peek(key)) for key in keys}, self.notes)
        super().update(view)
        view.was_read = self.was_read
        return view

    def note(self, remark: str) -> None:
        """Count a remark on how this row was read; the report shows it."""
        self.notes[remark] += 1

    def add_in_text(self, value: Any, at: str) -> Any:
        """Add what the text at the path `at` spells out, and return it with `Row`s."""
        wrapped = self.wrap(value)
        self.in_texts.append((at, wrapped))
        return wrapped

    def wrap(self, value: Any, depth: int = _MAX_LISTS) -> Any:
        """Return `value` with its objects, or those of a list, as `Row`s."""
        if isinstance(value, dict):
            return value if isinstance(value, Row) else Row(value, self.notes)
        if depth and isinstance(value, list) and any(isinstance(i, dict | list) for i in value):
            return [self.wrap(item, depth - 1) for item in value]
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A key that no reader asked for.

    owner: the object that has the key; at: its path from the root, with indices.
    path: of the key, with `[]` for each element of a list, so that rows can be counted together.
    """

    key: str
    owner: Row
    at: str
    path: str

    @property
    def value(self) -> Any:
        """The value of the key."""
        return self.owner.peek(self.key)


def unread(row: Row, at: str = "") -> Iterator[Unread]:
    """Yield what was not read of `row`, which is at the path `at`; nothing for empty values.

    An object that was not read as a whole is one entry.
    """
    for index, made in enumerate(row.objects or ()):
        yield from unread(made, f"{at}[{index}]")
    for where, value in row.in_texts:
        for inner, path in _objects_in(value, where):
            yield from unread(inner, path)
    for key, value in dict.items(row):
        path = f"{at}.{key}" if at else key
        if key in row.was_read:
            for inner, where in _objects_in(value, path):
                yield from unread(inner, where)
        elif not says_nothing(value):
            yield Unread(key=key, owner=row, at=at, path=_INDEX.sub("[]", path))


def _objects_in(value: Any, at: str, depth: int = _MAX_LISTS) -> Iterator[tuple[Row, str]]:
    if isinstance(value, Row):
        yield value, at
    elif depth and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _objects_in(item, f"{at}[{index}]", depth - 1)
