"""The parts of a benchmark: its rows, the outcome of a row, and the scores that follow from them.

    row ──read──▶ BenchmarkItem ──rewards──▶ outcome of a unit ──means by subset──▶ scores

A unit is what counts once in a mean: one row, or in the Ties subset of RewardBench 2 two rows that
belong together. Its outcome has one number per column, for example "score": 1 if the reward of
the right response is the highest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.score_tree import SubsetMean, WeightedMean
from kwise.train.data.rows.row import Row
from kwise.types import Conversation

Rewards = tuple[float, ...]
Outcome = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkItem:
    """One row of a benchmark.

    Attributes:
        prompt: the conversation up to the response.
        responses: the right ones first.
        num_right: the number of right responses.
        subset: the subset that the row belongs to.
        unit: rows with the same unit in one subset are scored together; "" if the row is alone.
        role: what the outcome depends on besides the rewards: the part of the row in its unit, or
            the letter of the right response.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    num_right: int
    subset: str
    unit: str = ""
    role: str = ""


class ScoreLevel(Enum):
    """The importance of a score, from one subset to the whole benchmark."""

    SUBSET = "subset"
    CATEGORY = "category"
    OVERALL = "overall"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDefinition:
    """A score of a benchmark.

    Attributes:
        name: as the benchmark's leaderboard calls it.
        only_with: report the score only if the data has one of these subsets; empty: always.
    """

    name: str
    level: ScoreLevel
    value: SubsetMean | WeightedMean
    only_with: frozenset[str] = frozenset()


def definitions(
    level: ScoreLevel,
    values: Mapping[str, SubsetMean | WeightedMean],
    only_with: frozenset[str] = frozenset(),
) -> tuple[ScoreDefinition, ...]:
    """Return the definitions of scores of one level, by name."""
    return tuple(
        ScoreDefinition(name=name, level=level, value=value, only_with=only_with)
        for name, value in values.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleMatrix:
    """Scores in rows and columns.

    Attributes:
        row_labels, column_labels: the styles of the right and of the wrong response.
        cells: one score per row and column.
    """

    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    cells: tuple[tuple[SubsetMean | WeightedMean, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark.

    Attributes:
        title: its name in sentences.
        source: where its data and its rules come from.
        equal_rewards: a sentence: how it counts a right and a wrong response with equal rewards.
        fits: return whether a row is of this benchmark and of no other one, by its columns.
        read: return the item of a row, or raise `RowProblem`. The path of the file, relative to the
            directory that was given, names the subset where the row does not.
        reads_file: return whether a file of a directory belongs to the evaluation. If it does for
            no file, all files are read.
        published: the number of rows of each subset. Scores of other data cannot be compared with
            published ones.
        outcome: return the outcome of a unit.
        scores: in the order in which they are reported.
        matrix: a table of scores, if the benchmark has one.
    """

    name: SuiteName
    title: str
    source: str
    equal_rewards: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Row, PurePath], BenchmarkItem]
    reads_file: Callable[[PurePath], bool]
    published: Mapping[str, int]
    outcome: Callable[[Sequence[tuple[BenchmarkItem, Rewards]]], Outcome]
    scores: tuple[ScoreDefinition, ...]
    matrix: StyleMatrix | None = field(default=None)
