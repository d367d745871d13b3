"""The progress of a run: a line per logged step, a line per evaluation."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class ProgressLines(TrainerCallback):
    """A callback that writes lines, which a terminal and a CI log show equally well."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._started_s = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started_s, self._first_step = time.perf_counter(), state.global_step
        if state.global_step:
            self._write(f"resuming after step {state.global_step} of {state.max_steps}")

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
        step_s = (time.perf_counter() - self._started_s) / max(
            state.global_step - self._first_step, 1
        )
        left_s = step_s * (state.max_steps - state.global_step)
        self._write(
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"learning rate {logs['learning_rate']:.1e}  {step_s:.2f} s/step  {left_s:.0f} s left"
        )
