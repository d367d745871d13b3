"""The table of a benchmark's scores for a terminal."""

from collections.abc import Sequence

from kwise.evaluation.report.aligned import aligned_lines, interval_text
from kwise.evaluation.suite_result import Score, ScoreMatrix, SubsetSize, SuiteResult

_INDENTS = {"overall": "", "category": "", "subset": "  "}
_MAX_NAMED = 3


def suite_lines(suite: SuiteResult, level: str) -> list[str]:
    """Return the lines of the scores; `level` is that of the intervals, "95%"."""
    lines = aligned_lines(
        (suite.title, "score", level, "rows"), [_cells(score) for score in suite.scores]
    )
    if suite.matrix is not None:
        lines += ["", *_matrix(suite.matrix)]
    if incomplete := [size for size in suite.subsets if not size.is_complete]:
        lines += ["", _incomplete(incomplete, len(suite.subsets))]
    return lines


def _cells(score: Score) -> tuple[str, ...]:
    return (
        _INDENTS[score.level] + score.name,
        "-" if score.estimate is None else f"{score.estimate.value:.1%}",
        interval_text(score.estimate, "{:.1%}"),
        f"{score.num_rows:,}",
    )


def _matrix(matrix: ScoreMatrix) -> list[str]:
    rows = [
        (label, *("-" if cell is None else f"{cell:.1%}" for cell in cells))
        for label, cells in zip(matrix.row_labels, matrix.cells, strict=True)
    ]
    return aligned_lines(("right response, by the wrong one's style", *matrix.column_labels), rows)


def _incomplete(sizes: Sequence[SubsetSize], num_subsets: int) -> str:
    named = [
        f"{size.name} ({size.num_scored:,} of {size.num_published:,} rows)"
        for size in sizes[:_MAX_NAMED]
    ]
    more = f" and {len(sizes) - _MAX_NAMED} more" if len(sizes) > _MAX_NAMED else ""
    return (
        f"{len(sizes)} of {num_subsets} subsets do not have exactly the published rows: "
        f"{', '.join(named)}{more}; an overall score that needs them is not given"
    )
