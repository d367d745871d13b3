"""Tables for a terminal."""

from collections.abc import Sequence

from kwise.evaluation.estimate import Estimate

_GAP = "  "


def aligned_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        _GAP.join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def interval_text(estimate: Estimate | None, form: str) -> str:
    """Return "LOW to HIGH", each in `form`; "" without an interval."""
    if estimate is None or estimate.interval is None:
        return ""
    return f"{form.format(estimate.interval.low)} to {form.format(estimate.interval.high)}"
