"""The way of a row: read, window, scorer, form, file. Everything but the scorer is in one thread.

A few windows are in flight. While the scorer computes one, the next one is read and encoded, and
the results of the one before are written. Results are taken in the order of the windows, so the
output keeps the order of the input. Memory holds a few windows, however long the input is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, Protocol

from kwise.bulk.input.windows import InputRow, Window
from kwise.bulk.output.json_line import json_line
from kwise.bulk.output.run_record import Counts
from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.bulk.scorers.thread import ScorerThread
from kwise.errors import KwiseError, Unavailable
from kwise.types import Reward, ScoredGroup

# The time between checkpoints, each of which waits for the disk.
_CHECKPOINT_S = 2.0

RowsOf = Callable[[InputRow, ScoredGroup], Iterator[dict[str, Any]]]
"""Returns the rows of the output of a row of the input."""


class Output(Protocol):
    """Where the lines go."""

    def write(self, line: bytes) -> None: ...
    def write_bad(self, line: bytes) -> None: ...
    def checkpoint(self, counts: Counts, *, is_read: bool = False) -> None: ...
    def finish(self) -> None: ...


class Pipeline:
    """Scores windows and writes their rows.

    Args:
        scorer: scores windows.
        output: where the lines go.
        rows_of: makes the rows of the output.
        counts: what earlier parts of the run have done.
        on_progress: gets the counts after each window.
        on_problem: gets each row that was not scored, as a whole or in a part.
    """

    def __init__(
        self,
        scorer: ScorerThread,
        output: Output,
        rows_of: RowsOf,
        *,
        counts: Counts,
        on_progress: Callable[[Counts], None] = lambda _: None,
        on_problem: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.counts = counts
        self._scorer = scorer
        self._output = output
        self._rows_of = rows_of
        self._on_progress = on_progress
        self._on_problem = on_problem

    def run(self, windows: Iterable[Window]) -> None:
        """Score all windows. The last checkpoint says that everything is read.

        Raises:
            KwiseError: the scorer failed as a whole, or its model changed.
            OSError: the input cannot be read, or the output cannot be written.
        """
        in_flight: deque[tuple[Window, Future[Sequence[GroupResult]]]] = deque()
        checkpoint_s = monotonic()
        for window in windows:
            in_flight.append((window, self._scorer.submit(window.groups)))
            if len(in_flight) < self._scorer.scorer.max_windows:
                continue
            self._write(*_taken(in_flight))
            if monotonic() - checkpoint_s >= _CHECKPOINT_S:
                self._output.checkpoint(self.counts)
                checkpoint_s = monotonic()
        while in_flight:
            self._write(*_taken(in_flight))
        self._output.checkpoint(self.counts, is_read=True)
        self._output.finish()

    def _write(self, window: Window, results: Sequence[GroupResult]) -> None:
        remaining = iter(results)
        for row in window.rows:
            result = None if row.group is None else next(remaining)
            if isinstance(result, ScoredGroup):
                self.counts += self._write_scored(row, result)
            else:
                problem = _problem_of_row(row, result)
                self._tell(problem)
                self.counts += Counts(rows=1, bad_rows=1)
        self._on_progress(self.counts)

    def _write_scored(self, row: InputRow, scored: ScoredGroup) -> Counts:
        _check_model(scored, self._scorer.scorer.identity)
        num_written = 0
        for fields in self._rows_of(row, scored):
            self._output.write(json_line(fields))
            num_written += 1
        rewards = [reward for reward in scored.rewards if isinstance(reward, Reward)]
        for number, error in enumerate(scored.rewards):
            if isinstance(error, KwiseError):
                self._tell({**_place(row), "response": number, **_problem_of_error(error)})
        return Counts(
            rows=1,
            responses=len(rewards),
            failed_responses=len(scored.rewards) - len(rewards),
            tokens=sum(reward.tokens for reward in rewards),
            written_rows=num_written,
        )

    def _tell(self, problem: dict[str, Any]) -> None:
        self._output.write_bad(json_line(problem))
        self._on_problem(problem)


def _taken(
    in_flight: "deque[tuple[Window, Future[Sequence[GroupResult]]]]",
) -> tuple[Window, Sequence[GroupResult]]:
    window, future = in_flight.popleft()
    return window, future.result()


def _check_model(scored: ScoredGroup, identity: ModelIdentity) -> None:
    """Check that a group comes from the model of the run.

    Raises:
        Unavailable: it does not.
    """
    for part in ("fingerprint", "precision"):
        if getattr(scored, part) != getattr(identity, part):
            raise Unavailable(
                f"the server has another model now: {part} {getattr(scored, part)} and not "
                f"{getattr(identity, part)}; rewards of two models do not belong in one output"
            )


def _problem_of_row(row: InputRow, error: KwiseError | None) -> dict[str, Any]:
    if error is not None:
        return {**_place(row), **_problem_of_error(error)}
    assert row.problem is not None, "a row has a group or a problem"
    return {**_place(row), "field": row.problem.field, "reason": row.problem.problem}


def _place(row: InputRow) -> dict[str, Any]:
    return {"row": row.number, "file": row.path, "line": row.line}


def _problem_of_error(error: KwiseError) -> dict[str, Any]:
    """Return the field and the reason of an error. One of a server has the field in its message."""
    field, reason = getattr(error, "field", ""), getattr(error, "problem", "")
    return {"field": field, "reason": reason or getattr(error, "message", "") or str(error)}
