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
