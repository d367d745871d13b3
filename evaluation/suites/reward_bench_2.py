"""RewardBench 2 (Malik et al. 2025, arXiv:2506.01937).

The data is https://huggingface.co/datasets/allenai/reward-bench-2, split `test`: id, prompt, chosen
(a list), rejected (a list), num_correct, num_incorrect, total_completions, models, subset,
additional_metadata. The rules are those of https://github.com/allenai/reward-bench at commit
05a9005: `reroll_and_score_dataset` in rewardbench/utils.py, called by scripts/run_v2.py.

- A row counts if its one right response has the highest of the four rewards. If it shares the
  highest reward with m - 1 wrong responses, the row counts 1/m.
- The subset Ties has many right responses and its own score: see `ties.py`.
- The overall score is the mean of the six subsets.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from kwise.evaluation.suites.benchmark import (
    Benchmark,
    BenchmarkItem,
    Outcome,
    Rewards,
    ScoreDefinition,
    ScoreLevel,
    definitions,
)
from kwise.evaluation.suites.columns import known_subset, prompt_of, texts_of
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.score_tree import SubsetMean, mean_of
from kwise.evaluation.suites.ties import (
    COMPONENTS,
    REFERENCE,
    TIED,
    TIES_WEIGHTS,
    ties_outcome,
)
from kwise.train.data.rows.fields import refuse, string_field
from kwise.train.data.rows.row import Row

_TIES = "Ties"
_PUBLISHED = {
    "Factuality": 475,
    "Precise IF": 160,
    "Math": 183,
    "Safety": 450,
    "Focus": 495,
    _TIES: 102,
}


def _fits(row: Mapping[str, Any]) -> bool:
    lists, counts = ("chosen", "rejected"), ("num_correct", "num_incorrect", "subset")
    return all(isinstance(row.get(key), list) for key in lists) and row.keys() >= set(counts)


def _read(row: Row, _: PurePath) -> BenchmarkItem:
    chosen, rejected = texts_of(row, "chosen"), texts_of(row, "rejected")
    subset = known_subset(row, "subset", _PUBLISHED)
    unit = role = ""
    if subset == _TIES:
        role, _colon, unit = string_field(row, "id").partition(":")
        if role not in (REFERENCE, TIED) or not unit:
            refuse("id", f"must be {REFERENCE}:NUMBER or {TIED}:NUMBER in the subset {_TIES}")
        if role == TIED and len(chosen) < 2:
            refuse("chosen", "must have at least two responses in a tied row")
    elif len(chosen) != 1:
        refuse("chosen", f"must have one response, not {len(chosen)}, outside the subset {_TIES}")
    return BenchmarkItem(
        prompt=prompt_of(row),
        responses=(*chosen, *rejected),
        num_right=len(chosen),
        subset=subset,
        unit=unit,
        role=role,
    )


def _outcome(unit: Sequence[tuple[BenchmarkItem, Rewards]]) -> Outcome:
    if unit[0][0].subset == _TIES:
        return ties_outcome({item.role: (rewards, item.num_right) for item, rewards in unit})
    ((_, rewards),) = unit
    highest = max(rewards)
    return {"score": 1 / rewards.count(highest) if rewards[0] == highest else 0.0}


def _scores() -> tuple[ScoreDefinition, ...]:
    values = {
        name: SubsetMean(subsets=(name,), columns=TIES_WEIGHTS)
        if name == _TIES
        else SubsetMean(subsets=(name,))
        for name in _PUBLISHED
    }
    components = {
        f"{_TIES}: {name}": SubsetMean(subsets=(_TIES,), columns={column: 1.0})
        for column, name in COMPONENTS.items()
    }
    return (
        *definitions(ScoreLevel.OVERALL, {"Overall": mean_of(*values.values())}),
        *definitions(ScoreLevel.CATEGORY, values),
        *definitions(ScoreLevel.SUBSET, components, frozenset({_TIES})),
    )


REWARD_BENCH_2 = Benchmark(
    name=SuiteName.REWARD_BENCH_2,
    title="RewardBench 2",
    source="https://github.com/allenai/reward-bench, arXiv:2506.01937",
    equal_rewards="A row in which m responses, the right one among them, share the highest reward "
    "counts 1/m. In Ties, equal rewards of a right and a wrong response count 0.",
    fits=_fits,
    read=_read,
    reads_file=lambda file: file.parts[-1].startswith("test"),
    published=_PUBLISHED,
    outcome=_outcome,
    scores=_scores(),
)
