"""The progress of a run: a line per logged step and per evaluation, and others in between."""

import math
from collections.abc import Callable
from time import monotonic
from typing import Any

from transformers import TrainerCallback

from kwise.train.report.pace import Pace


class ProgressLines(TrainerCallback):
    """A callback that writes lines, which a terminal and a CI log show equally well.

    Args:
        write: gets each line.
        rankings_per_pass: the rankings that all processes compute in a pass.
        rankings_per_step: the rankings of a step; the last one of an epoch has the rest.
        num_rankings: the rankings of an epoch.
        tokens_per_ranking: the mean number of tokens of the conversations of a ranking.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        rankings_per_pass: int,
        rankings_per_step: int,
        num_rankings: int,
        tokens_per_ranking: float,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._write = write
        self._per_pass, self._per_step = rankings_per_pass, rankings_per_step
        self._num_rankings, self._tokens_per_ranking = num_rankings, tokens_per_ranking
        self._now = now
        self._pace = Pace(0, now)
        self._first_step = self._passes = self._counted = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        self._passes, self._counted = 0, self._rankings_of(state.global_step)
        self._pace = Pace(self._rankings_of(state.max_steps) - self._counted, self._now)
        if state.global_step:
            self._write(f"resuming after step {state.global_step} of {state.max_steps}")

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._passes += 1
        of_step = self._rankings_of(state.global_step) + self._passes * self._per_pass
        self._count(min(of_step, self._rankings_of(state.global_step + 1)), state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._passes = 0
        self._count(self._rankings_of(state.global_step), state, control)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "eval_loss" in logs:
            loss, accuracy = logs["eval_loss"], logs["eval_accuracy"]
            best = (
                ""
                if state.best_metric is None or loss < state.best_metric
                else f", best loss {state.best_metric:.4f}"
            )
            self._write(
                f"validation at step {state.global_step}: loss {loss:.4f}, pairwise accuracy "
                f"{accuracy:.1%}{best}"
            )
        if not logs or "loss" not in logs:
            return
        step_s = self._pace.elapsed_s / max(state.global_step - self._first_step, 1)
        self._write(
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"learning rate {logs['learning_rate']:.1e}  {step_s:.2f} s/step  {self._pace.say()}"
        )

    def _rankings_of(self, num_steps: int) -> int:
        """Return the rankings of the first steps of the run."""
        epochs, steps = divmod(num_steps, math.ceil(self._num_rankings / self._per_step))
        return epochs * self._num_rankings + steps * self._per_step

    def _count(self, num_done: int, state: Any, control: Any) -> None:
        """Count all rankings up to `num_done` of the run."""
        rankings, self._counted = num_done - self._counted, num_done
        is_due = self._pace.add(rankings, rankings * self._tokens_per_ranking)
        if is_due and not control.should_log:  # else the step's own line follows
            self._write(f"training: step {state.global_step}/{state.max_steps}, {self._pace.say()}")
