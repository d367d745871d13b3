"""The choices that formats derived from single rows, because no option was given.

All rows have to agree on them. Which row came first says nothing about which choice is right, so
that a disagreement is a problem of the input, and the message counts the rows of each choice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kwise.train.data.rows.items import RankedResponses, RowItem

_MAX_CHOICES = 8
"""The number of choices to name in a message."""


@dataclass(slots=True)
class Guesses:
    """The number of rows per option and choice, and the first row of each."""

    _num_rows: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _first_row: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, origin: str, items: Iterable[RowItem]) -> None:
        """Count the guesses of the row at `origin`."""
        guesses = {
            guess for item in items if isinstance(item, RankedResponses) for guess in item.guesses
        }
        for option, choice in guesses:
            self._num_rows[option][choice] += 1
            self._first_row.setdefault((option, choice), origin)

    def problems(self) -> Iterator[str]:
        """Yield a line for each option for which the rows do not agree."""
        for option, num_rows in self._num_rows.items():
            if len(num_rows) > 1:
                choices = ", ".join(
                    f"{choice[:40]!a} in {num} rows (first {self._first_row[option, choice]})"
                    for choice, num in num_rows.most_common(_MAX_CHOICES)
                )
                advice = f"choose with kwise data convert {option}"
                yield f"{option}: the rows differ: {choices}; {advice}"
