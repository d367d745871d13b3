"""The way of a row: read, window, scorer, form, file. Everything but the scorer is in one thread.

A few windows are in flight. While the scorer computes one, the next one is read and encoded, and
the results of the one before are written. Results are taken in the order of the windows, so the
output keeps the order of the input. Memory holds a few windows, however long the input is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from kwise.bulk.input.row import InputRow, UnreadFile
from kwise.bulk.input.windows import Window
from kwise.bulk.output.json_line import json_line
from kwise.bulk.output.run_record import Counts
from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.bulk.scorers.thread import ScorerThread
from kwise.errors import KwiseError, Unavailable
from kwise.types import Reward, ScoredGroup

LinesOf = Callable[[InputRow, GroupResult], Iterator[bytes]]
"""Returns the lines of the output of a row of the input. A bad row has its error as the result."""

_BAD_ROW = Counts(rows=1, bad_rows=1)
_UNREAD_FILE = Counts(rows=1, unread_files=1)


class Output(Protocol):
    """Where the lines go."""

    def write(self, line: bytes) -> None: ...
    def write_bad(self, line: bytes) -> None: ...
    def checkpoint(self, counts: Counts) -> None: ...
    def end(self, counts: Counts) -> None: ...
    def finish(self) -> None: ...


class NoOutput:
    """An `Output` that keeps nothing, for runs that use the results as they come."""

    def write(self, line: bytes) -> None: ...
    def write_bad(self, line: bytes) -> None: ...
    def checkpoint(self, counts: Counts) -> None: ...
    def end(self, counts: Counts) -> None: ...
    def finish(self) -> None: ...


class Pipeline:
    """Scores windows and writes their rows.

    Args:
        scorer: scores windows.
        output: where the lines go.
        lines_of: makes the lines of the output.
        counts: what earlier parts of the run have done.
        on_progress: gets the counts after each window.
        on_problem: gets each row that was not scored, as a whole or in a part.
    """

    def __init__(
        self,
        scorer: ScorerThread,
        output: Output,
        lines_of: LinesOf,
        *,
        counts: Counts,
        on_progress: Callable[[Counts], None] = lambda _: None,
        on_problem: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.counts = counts
        self._scorer = scorer
        self._output = output
        self._lines_of = lines_of
        self._on_progress = on_progress
        self._on_problem = on_problem

    def run(self, windows: Iterable[Window]) -> None:
        """Score all windows, and put the output in its place.

        Raises:
            KwiseError: the scorer failed as a whole, or its model changed.
            OSError: the input cannot be read, or the output cannot be written.
        """
        in_flight: deque[tuple[Window, Future[Sequence[GroupResult]]]] = deque()
        for window in windows:
            in_flight.append((window, self._scorer.submit(window.groups)))
            if len(in_flight) >= self._scorer.scorer.max_windows:
                self._write(*in_flight.popleft())
        while in_flight:
            self._write(*in_flight.popleft())
        self._output.end(self.counts)
        self._output.finish()

    def _write(self, window: Window, future: "Future[Sequence[GroupResult]]") -> None:
        """Wait for the results of a window and write its rows."""
        results = iter(future.result())
        for row in window.rows:
            result = next(results) if row.problem is None else row.problem
            if isinstance(result, ScoredGroup):
                done = self._scored(row, result)
            else:
                done = _UNREAD_FILE if isinstance(result, UnreadFile) else _BAD_ROW
            num_written = 0
            for line in self._lines_of(row, result):
                self._output.write(line)
                num_written += 1
            if isinstance(result, KwiseError):
                self._tell({**_place(row), **_problem_of_error(result)})
            self.counts += replace(done, written_rows=num_written)
        self._on_progress(self.counts)
        self._output.checkpoint(self.counts)

    def _scored(self, row: InputRow, scored: ScoredGroup) -> Counts:
        """Check a result, tell of the responses that were not scored, and count."""
        _check_model(scored, self._scorer.scorer.identity)
        rewards = [reward for reward in scored.rewards if isinstance(reward, Reward)]
        for number, error in enumerate(scored.rewards):
            if isinstance(error, KwiseError):
                self._tell({**_place(row), "response": number, **_problem_of_error(error, number)})
        return Counts(
            rows=1,
            responses=len(rewards),
            failed_responses=len(scored.rewards) - len(rewards),
            tokens=sum(reward.tokens for reward in rewards),
        )

    def _tell(self, problem: dict[str, Any]) -> None:
        self._output.write_bad(json_line(problem))
        self._on_problem(problem)


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


def _place(row: InputRow) -> dict[str, Any]:
    return {"row": row.number, "file": row.path, "line": row.line}


def _problem_of_error(error: KwiseError, response: int | None = None) -> dict[str, Any]:
    """Return the reason of an error, and the field if it is about one."""
    field, reason = getattr(error, "field", ""), getattr(error, "problem", "")
    if not field and response is not None and error.response is None:
        field = f"responses[{response}]"
    told = {"reason": reason or getattr(error, "message", "") or str(error)}
    return {"field": field, **told} if field else told
