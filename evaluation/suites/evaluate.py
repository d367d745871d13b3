"""The scores of a benchmark from the rewards of its rows, with bootstrap intervals.

Units are resampled within their subset, because the benchmark fixes how many each subset has.
Scores are means of means, so that a resample needs the means of each subset's columns only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from kwise.evaluation.estimate import Estimate, Interval
from kwise.evaluation.metrics.bootstrap import percentile_interval
from kwise.evaluation.result import Evaluation, Settings
from kwise.evaluation.suite_result import Score, ScoreMatrix, SubsetSize, SuiteResult
from kwise.evaluation.suites.benchmark import (
    Benchmark,
    BenchmarkItem,
    Rewards,
    ScoreDefinition,
    ScoreLevel,
)
from kwise.evaluation.suites.outcomes import outcomes_by_subset
from kwise.evaluation.suites.read import BenchmarkRows
from kwise.evaluation.suites.score_tree import SubsetMeans


def suite_result(rows: BenchmarkRows, evaluation: Evaluation) -> SuiteResult:
    """Return the scores of the rows from the rewards of their rankings in `evaluation`."""
    rewards = {ranking.origin: ranking.rewards for ranking in evaluation.rankings}
    return score_benchmark(
        rows.benchmark,
        [(item, rewards.get(origin)) for origin, item in rows.items],
        evaluation.settings,
        unread_files=rows.unread_files,
    )


def score_benchmark(
    benchmark: Benchmark,
    items: Sequence[tuple[BenchmarkItem, Rewards | None]],
    settings: Settings,
    *,
    unread_files: Sequence[str] = (),
) -> SuiteResult:
    """Return the scores of all items that have rewards.

    Rewards are in the order of the item's responses; None for a row that could not be scored. An
    overall score is given only if each of its subsets has all rows of the published benchmark.
    """
    scored = [(item, rewards) for item, rewards in items if rewards is not None]
    outcomes = outcomes_by_subset(benchmark, scored)
    means = {subset: rows.means() for subset, rows in outcomes.items()}
    rng = np.random.default_rng(settings.seed)
    resampled = {
        subset: rows.resampled(settings.num_resamples, rng) for subset, rows in outcomes.items()
    }
    read = Counter(item.subset for item, _ in items)
    reported = [
        definition
        for definition in benchmark.scores
        if not definition.only_with or definition.only_with & read.keys()
    ]
    sizes = _sizes(benchmark, reported, read, Counter(item.subset for item, _ in scored))
    return SuiteResult(
        name=benchmark.name.value,
        title=benchmark.title,
        source=benchmark.source,
        equal_rewards=benchmark.equal_rewards,
        scores=tuple(
            _score(definition, means, resampled, sizes, settings) for definition in reported
        ),
        matrix=_matrix(benchmark, means),
        subsets=tuple(sizes.values()),
        unread_files=tuple(unread_files),
    )


def _sizes(
    benchmark: Benchmark,
    reported: Sequence[ScoreDefinition],
    read: Counter[str],
    scored: Counter[str],
) -> dict[str, SubsetSize]:
    """Return the sizes of the subsets that the reported scores need, by name."""
    needed = frozenset().union(*(definition.value.subset_names() for definition in reported))
    return {
        name: SubsetSize(
            name=name,
            num_scored=scored[name],
            num_read=read[name],
            num_published=num_published,
        )
        for name, num_published in benchmark.published.items()
        if name in needed
    }


def _score(
    definition: ScoreDefinition,
    means: Mapping[str, SubsetMeans],
    resampled: Mapping[str, SubsetMeans],
    sizes: Mapping[str, SubsetSize],
    settings: Settings,
) -> Score:
    subsets = definition.value.subset_names()
    incomplete = tuple(
        size.name for size in sizes.values() if size.name in subsets and not size.is_complete
    )
    (value,) = definition.value.values(means).tolist()
    is_given = not (incomplete and definition.level is ScoreLevel.OVERALL)
    estimate = None
    if is_given and not np.isnan(value):
        present = [means[subset] for subset in subsets if subset in means]
        can_resample = all(subset.num_units > 1 for subset in present)
        estimate = Estimate(
            value=value,
            interval=_interval(definition, resampled, settings) if can_resample else None,
        )
    return Score(
        name=definition.name,
        level=definition.level.value,
        estimate=estimate,
        num_rows=sum(size.num_scored for size in sizes.values() if size.name in subsets),
        incomplete=incomplete,
    )


def _interval(
    definition: ScoreDefinition, resampled: Mapping[str, SubsetMeans], settings: Settings
) -> Interval | None:
    """Return the percentile interval over the resamples in which the score is defined."""
    values_B = definition.value.values(resampled)
    defined_B = values_B[~np.isnan(values_B)]
    return percentile_interval(defined_B, settings.confidence) if len(defined_B) else None


def _matrix(benchmark: Benchmark, means: Mapping[str, SubsetMeans]) -> ScoreMatrix | None:
    if benchmark.matrix is None:
        return None
    values = [[cell.values(means).item() for cell in row] for row in benchmark.matrix.cells]
    return ScoreMatrix(
        row_labels=benchmark.matrix.row_labels,
        column_labels=benchmark.matrix.column_labels,
        cells=tuple(tuple(None if np.isnan(cell) else cell for cell in row) for row in values),
    )
