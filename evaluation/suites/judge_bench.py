"""JudgeBench (Tan et al. 2024, arXiv:2410.12784).

The data is https://huggingface.co/datasets/ScalerLab/JudgeBench, splits `gpt` and `claude`, the
same rows as in data/ of https://github.com/ScalerLab/JudgeBench: pair_id, original_id, source,
question, response_model, response_A, response_B, label ("A>B" or "B>A"). The rules are those of
run_judge.py and utils/metrics.py there, commit e2c52c2, with --single_game, the option for reward
models, whose rewards do not depend on the order of the responses.

- The category of a pair is the beginning of its source.
- A score is the share of right pairs; the overall score is over all pairs, not over categories.
- The official judges decide for B if both rewards are equal, so that such a pair counts 1 if B is
  right. A constant reward scores the share of the label B>A.
- The splits have responses of different models, and each has scores of its own.
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
from kwise.evaluation.suites.columns import prompt_of
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.score_tree import SubsetMean
from kwise.train.data.rows.fields import refuse, string_field
from kwise.train.data.rows.row import Row

_CATEGORIES = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}
# The pairs of each category, by the model that wrote the responses.
_NUM_PAIRS = {
    "gpt-4o-2024-05-13": {"Knowledge": 154, "Reasoning": 98, "Math": 56, "Coding": 42},
    "claude-3-5-sonnet-20240620": {"Knowledge": 154, "Reasoning": 51, "Math": 34, "Coding": 31},
}
_LABELS = ("A>B", "B>A")


def _fits(row: Mapping[str, Any]) -> bool:
    texts = ("question", "response_A", "response_B", "source", "response_model")
    return all(isinstance(row.get(key), str) for key in texts) and row.get("label") in _LABELS


def _read(row: Row, _: PurePath) -> BenchmarkItem:
    label, source = string_field(row, "label"), string_field(row, "source")
    model = string_field(row, "response_model")
    responses = (string_field(row, "response_A"), string_field(row, "response_B"))
    if label not in _LABELS:
        refuse("label", f"is {label[:20]!a}; it must be {' or '.join(_LABELS)}")
    if model not in _NUM_PAIRS:
        refuse("response_model", f"is {model[:40]!a}; JudgeBench has {' and '.join(_NUM_PAIRS)}")
    category = next((name for start, name in _CATEGORIES.items() if source.startswith(start)), None)
    if category is None:
        refuse("source", f"is {source[:40]!a}; it must begin with one of {', '.join(_CATEGORIES)}")
    return BenchmarkItem(
        prompt=prompt_of(row, "question"),
        responses=responses if label == "A>B" else (responses[1], responses[0]),
        num_right=1,
        subset=_subset(model, category),
        role=label[0],
    )


def _subset(model: str, category: str) -> str:
    return f"{model}: {category}"


def _outcome(unit: Sequence[tuple[BenchmarkItem, Rewards]]) -> Outcome:
    ((item, (right, wrong)),) = unit
    is_decided_for_right = right >= wrong if item.role == "B" else right > wrong
    return {"score": float(is_decided_for_right)}


def _scores(model: str) -> tuple[ScoreDefinition, ...]:
    subsets = tuple(_subset(model, category) for category in _CATEGORIES.values())
    overall = {_subset(model, "Overall"): SubsetMean(subsets=subsets)}
    categories = {subset: SubsetMean(subsets=(subset,)) for subset in subsets}
    return (
        *definitions(ScoreLevel.OVERALL, overall, frozenset(subsets)),
        *definitions(ScoreLevel.CATEGORY, categories, frozenset(subsets)),
    )


JUDGE_BENCH = Benchmark(
    name=SuiteName.JUDGE_BENCH,
    title="JudgeBench",
    source="https://github.com/ScalerLab/JudgeBench, arXiv:2410.12784",
    equal_rewards="A pair with equal rewards counts 1 if response B is right, and else 0.",
    fits=_fits,
    read=_read,
    reads_file=lambda _: False,
    published={
        _subset(model, category): num
        for model, categories in _NUM_PAIRS.items()
        for category, num in categories.items()
    },
    outcome=_outcome,
    scores=tuple(score for model in _NUM_PAIRS for score in _scores(model)),
)
