"""Progress and the summary: rates, what is left, and problems by kind."""

import io

from kwise.bulk.output.run_record import Counts
from kwise.bulk.progress import Progress
from kwise.bulk.summary import Problems, summary_lines
from kwise.duration import duration


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_resumed_run_counts_its_own_rows_for_the_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    before = Counts(rows=1000, tokens=50_000)
    progress = Progress(3000, before, stream=stream, now=clock)
    progress.update(Counts(rows=1100, tokens=60_000))
    assert stream.getvalue() == "", "too soon"
    clock.now_s = 100.0
    progress.update(Counts(rows=2000, tokens=150_000))
    assert stream.getvalue() == (
        "2,000 of about 3,000 (67%) groups, 10.0 groups/s, 1,000 tokens/s, 1 min 40 s left\n"
    )


def test_a_terminal_has_one_line_that_goes_away() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress(None, Counts(), stream=stream, now=clock)
    for rows in (10_000, 5):
        clock.now_s += 1
        progress.update(Counts(rows=rows, tokens=rows))
    progress.close()
    first, second, end = stream.getvalue().split("\r")[1:4]
    assert first == "10,000 groups, 10,000.0 groups/s, 10,000 tokens/s"
    assert second.strip() == "5 groups, 2.5 groups/s, 2 tokens/s"
    assert len(second) == len(first)
    assert end == " " * len(second.rstrip())


def test_nothing_is_drawn_over_the_output() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress(5, Counts(), is_shown=False, stream=stream, now=clock)
    clock.now_s = 60.0
    progress.update(Counts(rows=5))
    progress.close()
    assert stream.getvalue() == ""


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 3599, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "2 h 05 min",
    ]


def test_problems_that_differ_in_numbers_are_one_kind() -> None:
    problems = Problems()
    for line in range(1, 8):
        problem = {"file": "f", "line": line, "field": f"responses[{line}]", "reason": "too long"}
        problems.add(problem)
    problems.add({"file": "f", "line": 9, "reason": "not JSON"})
    counts = Counts(
        rows=21, bad_rows=1, unread_files=1, responses=30, failed_responses=7, tokens=100
    )
    lines = summary_lines(counts, Counts(), problems, seconds=2.0, bad_rows="f.bad")
    assert lines == [
        "19 groups with 30 responses scored, 0 rows written; 20 rows in 2 s: 10.0 groups/s, "
        "50 tokens/s",
        "not scored: 1 row and 7 responses of other rows; see f.bad",
        "not read to the end: 1 file; see f.bad",
        "  7 × f:1: responses[1]: too long",
        "  1 × f:9: not JSON",
    ]


def test_memory_for_problems_is_bounded() -> None:
    problems = Problems()
    for number in range(3000):
        name = "x" * number
        problems.add({"file": "f", "line": 1, "field": name, "reason": "unlike any other"})
    lines = problems.lines()
    assert len(lines) == 6
    assert sum(int(line.split("×")[0].replace(",", "")) for line in lines) == 3000
