"""Lines of progress come every ten seconds, or fewer in a long run, and say what is left."""

from types import SimpleNamespace

import pytest

from kwise.train.report.pace import Pace
from kwise.train.report.progress import ProgressLines


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


@pytest.mark.parametrize(("first_step", "left_s"), [(1, [50, 30, 20, 0]), (2, [30, 20, 0])])
def test_the_smaller_last_step_of_an_epoch_counts_as_what_it_is(
    first_step: int, left_s: list[int]
) -> None:
    """Epochs of three rankings have a step of two and one of one; a ranking takes ten seconds."""
    lines: list[str] = []
    clock = Clock()
    progress = ProgressLines(
        lines.append,
        rankings_per_pass=1,
        rankings_per_step=2,
        num_rankings=3,
        tokens_per_ranking=100,
        now=clock,
    )
    state = SimpleNamespace(global_step=first_step, max_steps=5)
    control = SimpleNamespace(should_log=True)
    progress.on_train_begin(None, state, control)
    for step in range(first_step, state.max_steps):
        for is_last in [False, True][step % 2 :]:
            clock.seconds += 10
            if not is_last:
                progress.on_substep_end(None, state, control)
        state.global_step += 1
        progress.on_step_end(None, state, control)
        progress.on_log(None, state, control, {"loss": 0.5, "learning_rate": 1e-5})
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.partition("s/step  ")[2] for line in steps] == [
        f"10 tokens/s, {seconds} s left" for seconds in left_s
    ]
