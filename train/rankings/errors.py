"""The error of unusable data."""

from collections.abc import Sequence

MAX_PROBLEMS = 20
"""The number of bad lines to report at once: enough to see the pattern, few enough to read."""


class RankingsError(ValueError):
    """The data is not usable. `problems` has one line per problem, "FILE:LINE: field: problem".

    Problems never quote the texts of the data.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class UnreadableFile(RankingsError):
    """A file in which no row, or no further row, can be found.

    Attributes:
        row: the line or row that could not be read; None if the file as a whole is the problem.
        reason: what is wrong, without file and row.
    """

    def __init__(self, name: str, reason: str, *, row: int | None = None) -> None:
        super().__init__(
            [f"{name}: {reason}"]
            if row is None
            else [f"{name}:{row}: row: {reason}; no row can be found after it"]
        )
        self.row = row
        self.reason = reason
