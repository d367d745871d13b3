"""The benchmarks. To add one, write its module and add it here."""

from collections.abc import Mapping
from typing import Any

from kwise.evaluation.suites.benchmark import Benchmark
from kwise.evaluation.suites.judge_bench import JUDGE_BENCH
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.reward_bench import REWARD_BENCH
from kwise.evaluation.suites.reward_bench_2 import REWARD_BENCH_2
from kwise.evaluation.suites.rm_bench import RM_BENCH

BENCHMARKS: dict[SuiteName, Benchmark] = {
    benchmark.name: benchmark for benchmark in (REWARD_BENCH, REWARD_BENCH_2, RM_BENCH, JUDGE_BENCH)
}


def recognise(row: Mapping[str, Any]) -> Benchmark | None:
    """Return the benchmark that a row is of, by its columns, or None."""
    return next((benchmark for benchmark in BENCHMARKS.values() if benchmark.fits(row)), None)
