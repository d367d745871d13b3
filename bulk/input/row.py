"""A row of the input, and the error of a row that describes no group."""

from dataclasses import dataclass
from typing import Any

from kwise.errors import InvalidRequest
from kwise.train.data.rows.items import WHOLE_ROW, RowProblem
from kwise.types import Group


class BadRow(InvalidRequest):
    """A row that describes no group.

    Args:
        field: the column, with the place in it ("responses[3].text"); "" for the row as a whole.
        problem: what is wrong with it.
    """

    @classmethod
    def of(cls, problem: RowProblem) -> "BadRow":
        """Return the error of a row that the reader of its file could not read."""
        return cls("" if problem.field == WHOLE_ROW else problem.field, problem.problem)

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" if self.field else self.problem


class UnreadFile(BadRow):
    """The rest of a file, or the whole of it, in which no further row can be found.

    It has the number of the row that could not be read, so that a resumed run counts alike.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """A row of the input.

    Attributes:
        number: counts the rows of the whole input from 1.
        path: the file, for people.
        line: the line of the file, or the row of a file without lines, from 1; 0 if the row is
            not from a file.
        fields: what the output needs of the row; of a bad row, what could be read.
        group: the group that it describes; None if it is bad.
        problem: what is wrong with it; None if nothing is.
    """

    number: int
    path: str
    line: int
    fields: Any
    group: Group | None = None
    problem: BadRow | None = None

    @property
    def place(self) -> str:
        """FILE:LINE, for messages."""
        return f"{self.path}:{self.line}" if self.line else self.path
