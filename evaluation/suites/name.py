"""The names of the benchmarks. Imports the standard library only, for the options of commands."""

from enum import Enum


class SuiteName(Enum):
    """The benchmarks, by the names of their repositories."""

    REWARD_BENCH = "reward-bench"
    REWARD_BENCH_2 = "reward-bench-2"
    RM_BENCH = "rm-bench"
    JUDGE_BENCH = "judge-bench"
