"""Time contenders on workloads, in turns, and compare each with the first one.

A workload is a list of repeats, each some groups; the first repeat is the warm-up. Within a repeat
the contenders run in turns, so that what else the machine does concerns all of them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

from kwise.benchmarks.model.baselines import MAX_PADDED_ROWS
from kwise.benchmarks.options import PrecisionBenchConfig
from kwise.benchmarks.workload import run_queued
from kwise.engine.config import CPU_PROMPT_CACHE_BYTES
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.session import Session
from kwise.export.precision.agreement import Groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The groups of each repeat, the warm-up first.

    singly: run one group after another, not as if all waited at once.
    again: run each group once before it is timed.
    """

    repeats: Sequence[Groups]
    singly: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall time and CPU time per group of one run."""

    seconds: float
    cpu_s: float
    is_extrapolated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A session to measure.

    padded: it runs each group as a batch of its own.
    emulated: it is too slow for more than one sequence per group or more than one repeat.
    has_fidelity: measure its fidelity too.
    """

    session: Session
    padded: bool = False
    emulated: bool = False
    has_fidelity: bool = True

    def time(self, groups: Groups, workload: Workload, config: PrecisionBenchConfig) -> Timing:
        """Run one repeat of the workload, with an empty prompt cache."""
        run = self._run_padded if self.padded else self._run_queued
        if not workload.singly:
            return run(groups, config)
        timings = []
        for group in groups:
            if workload.again:
                run([group], config)
            timings.append(run([group], config))
        return Timing(
            seconds=statistics.mean(timing.seconds for timing in timings),
            cpu_s=statistics.mean(timing.cpu_s for timing in timings),
            is_extrapolated=any(timing.is_extrapolated for timing in timings),
        )

    def _run_queued(self, groups: Groups, config: PrecisionBenchConfig) -> Timing:
        self.session.prompt_cache = PromptCache(CPU_PROMPT_CACHE_BYTES)
        cpu_started_s = process_time()
        seconds, _ = run_queued(self.session, groups, config.max_batch_tokens)
        cpu_s = process_time() - cpu_started_s
        return Timing(seconds=seconds / len(groups), cpu_s=cpu_s / len(groups))

    def _run_padded(self, groups: Groups, config: PrecisionBenchConfig) -> Timing:
        longest = [max(group, key=lambda sequence: len(sequence.token_ids)) for group in groups]
        num_rows = [
            len(group) * len(sequence.token_ids)
            for group, sequence in zip(groups, longest, strict=True)
        ]
        seconds, cpu_s, num_measured_rows, is_extrapolated = 0.0, 0.0, 0, False
        ends_at = perf_counter() + config.max_seconds
        for group, sequence, rows in zip(groups, longest, num_rows, strict=True):
            is_single = self.emulated or rows > MAX_PADDED_ROWS
            factor = len(group) if is_single else 1
            started_s, cpu_started_s = perf_counter(), process_time()
            self.session.run([sequence] if is_single else group)
            seconds += (perf_counter() - started_s) * factor
            cpu_s += (process_time() - cpu_started_s) * factor
            num_measured_rows += rows
            is_extrapolated = is_extrapolated or is_single
            if self.emulated and perf_counter() > ends_at:
                break
        per_group = sum(num_rows) / num_measured_rows / len(groups)
        return Timing(
            seconds=seconds * per_group, cpu_s=cpu_s * per_group, is_extrapolated=is_extrapolated
        )


@dataclass(slots=True)
class _Runs:
    """The runs of one contender, and the total time spent."""

    timings: list[Timing] = field(default_factory=list)
    spent_s: float = 0.0


def measure_time(
    contenders: dict[str, Contender], workload: Workload, config: PrecisionBenchConfig
) -> dict[str, Any]:
    """Return the figures by contender; the first contender is the reference.

    The first repeat is the warm-up. It counts only for a contender that has no other run.
    """
    runs = {name: _Runs() for name in contenders}
    for number, groups in enumerate(workload.repeats):
        for name, contender in contenders.items():
            own = runs[name]
            min_runs = 0 if contender.emulated else 1
            is_late = own.spent_s > config.max_seconds or (contender.emulated and number > 1)
            if number > min_runs and is_late:
                continue
            started = perf_counter()
            own.timings.append(contender.time(groups, workload, config))
            own.spent_s += perf_counter() - started
    reference = next(iter(contenders))
    wall_s = {name: [timing.seconds for timing in own.timings] for name, own in runs.items()}
    cpu_s = {name: [timing.cpu_s for timing in own.timings] for name, own in runs.items()}
    return {
        name: figure_of(wall_s[name], wall_s[reference])
        | {
            "cpu_ratio": figure_of(cpu_s[name], cpu_s[reference])["ratio"],
            "extrapolated": own.timings[-1].is_extrapolated or len(own.timings) == 1,
        }
        for name, own in runs.items()
    }


def figure_of(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Return medians of seconds and of ratios within a repeat.

    Both sequences begin with the warm-up.
    """
    first = 1 if min(len(seconds), len(reference)) > 1 else 0
    timed = seconds[1:] or seconds
    ratios = [a / b for a, b in zip(seconds[first:], reference[first:], strict=False)]
    return {
        "seconds": statistics.median(timed),
        "ratio": statistics.median(ratios),
        "runs": len(timed),
    }
