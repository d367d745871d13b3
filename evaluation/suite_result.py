"""The scores of a public benchmark. Part of the schema of the JSON file, see `result.py`."""

from dataclasses import dataclass

from kwise.evaluation.estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetSize:
    """The rows of a subset.

    Attributes:
        num_scored: the rows that have rewards.
        num_read: the rows of the data.
        num_published: the rows of the published benchmark.
    """

    name: str
    num_scored: int
    num_read: int
    num_published: int

    @property
    def is_complete(self) -> bool:
        """True if the scored rows are all rows of the published benchmark."""
        return self.num_scored == self.num_read == self.num_published


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score of a benchmark.

    Attributes:
        level: "overall", "category" or "subset".
        estimate: None if the data has no row for it, or for an overall score if `incomplete` is not
            empty.
        num_rows: the rows that it is computed from.
        incomplete: the subsets with other rows than the published benchmark.
    """

    name: str
    level: str
    estimate: Estimate | None
    num_rows: int
    incomplete: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMatrix:
    """Scores by the style of the right response (rows) and of the wrong one (columns)."""

    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """The scores of a benchmark by its own rules.

    Attributes:
        equal_rewards: a sentence: how it counts a right and a wrong response with equal rewards.
        scores: overall scores first, subsets last.
        matrix: None if the benchmark has no such table.
        subsets: the rows of each subset that the reported scores need.
        unread_files: files of the directory that do not belong to the evaluation.
    """

    name: str
    title: str
    source: str
    equal_rewards: str
    scores: tuple[Score, ...]
    matrix: ScoreMatrix | None
    subsets: tuple[SubsetSize, ...]
    unread_files: tuple[str, ...]
