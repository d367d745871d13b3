"""Lines of progress come every ten seconds, or fewer in a long run."""

import pytest

from kwise.train.report.pace import Pace


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(num_rankings: int, seconds_each: float) -> list[str]:
    """Return the lines of work that goes at one pace, with the second of each."""
    clock = Clock()
    pace = Pace(num_rankings, clock)
    lines = []
    for _ in range(num_rankings):
        clock.seconds += seconds_each
        if pace.add(1, 300):
            lines.append(f"{clock.seconds:g} s: {pace.done:.0%}, {pace.say()}")
    return lines


def test_a_line_says_the_share_the_pace_and_what_is_left() -> None:
    assert lines_of(90, 5)[:2] == [
        "10 s: 2%, 60 tokens/s, 7 min 20 s left",
        "20 s: 4%, 60 tokens/s, 7 min 10 s left",
    ]


@pytest.mark.parametrize(("num_rankings", "seconds_each"), [(100_000, 0.5), (40, 3600), (9, 1)])
def test_a_run_has_at_most_fifty_lines_however_long_it_is(
    num_rankings: int, seconds_each: float
) -> None:
    assert len(lines_of(num_rankings, seconds_each)) == {0.5: 49, 3600: 39, 1: 0}[seconds_each]


def test_nothing_is_said_when_all_is_done_or_nothing_was_to_do() -> None:
    clock = Clock()
    pace = Pace(1, clock)
    clock.seconds = 100
    assert not pace.add(1, 10) and pace.left_s == 0
    assert Pace(0, clock).left_s == 0
