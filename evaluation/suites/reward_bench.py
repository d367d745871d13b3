"""RewardBench (Lambert et al. 2024, arXiv:2403.13787).

The data is https://huggingface.co/datasets/allenai/reward-bench, split `filtered`: prompt, chosen,
rejected, chosen_model, rejected_model, subset, id. The rules are those of
https://github.com/allenai/reward-bench at commit 05a9005: `SUBSET_MAPPING` and `EXAMPLE_COUNTS` in
rewardbench/constants.py, `calculate_scores_per_section` in rewardbench/utils.py.

- A row counts if the chosen response has the higher reward.
- The score of a section weights its subsets by their prompts. math-prm has 447 prompts and the
  weight of 984, so that mathematics weighs as much as code.
- The overall score is the mean of the four sections. The paper adds a fifth section of prior test
  sets with half the weight, from https://huggingface.co/datasets/allenai/pref-test-sets; their
  scores are averaged without weights (`get_average_over_rewardbench` in
  analysis/get_benchmark_results.py). The names of those files are the names of the subsets.
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
from kwise.evaluation.suites.columns import is_higher, known_subset, prompt_of
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.score_tree import SubsetMean, WeightedMean, mean_of
from kwise.train.data.rows.fields import string_field
from kwise.train.data.rows.row import Row

_SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
_MATH_WEIGHT = 984
_PRIOR_SETS = {"anthropic_helpful": 6192, "anthropic_hhh": 221, "shp": 1741, "summarize": 9000}
_CORE = {subset: num for section in _SECTIONS.values() for subset, num in section.items()}
_PUBLISHED = _CORE | _PRIOR_SETS


def _fits(row: Mapping[str, Any]) -> bool:
    texts = ("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "subset")
    return all(isinstance(row.get(key), str) for key in texts) and row["subset"] in _CORE


def _read(row: Row, file: PurePath) -> BenchmarkItem:
    prior_set = _prior_set(file)
    return BenchmarkItem(
        prompt=prompt_of(row),
        responses=(string_field(row, "chosen"), string_field(row, "rejected")),
        num_right=1,
        subset=prior_set or known_subset(row, "subset", _PUBLISHED),
    )


def _prior_set(file: PurePath) -> str:
    """Return the prior test set of a file such as anthropic_hhh-00000-of-00001.parquet, or ""."""
    return next((part for part in _stems(file) if part in _PRIOR_SETS), "")


def _reads_file(file: PurePath) -> bool:
    """Return whether a file is of the split `filtered` or of a prior test set.

    The split `raw` has all responses before the authors removed bad ones.
    """
    return "filtered" in _stems(file) or bool(_prior_set(file))


def _stems(file: PurePath) -> list[str]:
    return [part.split(".")[0].split("-")[0] for part in file.parts]


def _outcome(unit: Sequence[tuple[BenchmarkItem, Rewards]]) -> Outcome:
    ((_, (chosen, rejected)),) = unit
    return {"score": is_higher(chosen, rejected)}


def _score(subset: str) -> SubsetMean:
    return SubsetMean(subsets=(subset,))


def _section(subsets: Mapping[str, int]) -> WeightedMean:
    return WeightedMean(
        parts=tuple(
            (_score(subset), _MATH_WEIGHT if subset == "math-prm" else num)
            for subset, num in subsets.items()
        )
    )


def _scores() -> tuple[ScoreDefinition, ...]:
    sections = {name: _section(subsets) for name, subsets in _SECTIONS.items()}
    prior = mean_of(*(_score(subset) for subset in _PRIOR_SETS))
    only_prior = frozenset(_PRIOR_SETS)
    five = WeightedMean(parts=(*((section, 1.0) for section in sections.values()), (prior, 0.5)))
    subset, category, overall = ScoreLevel.SUBSET, ScoreLevel.CATEGORY, ScoreLevel.OVERALL
    return (
        *definitions(overall, {"Overall": mean_of(*sections.values())}),
        *definitions(overall, {"Overall with prior sets": five}, only_prior),
        *definitions(category, sections),
        *definitions(category, {"Prior Sets": prior}, only_prior),
        *definitions(subset, {name: _score(name) for name in _CORE}),
        *definitions(subset, {name: _score(name) for name in _PRIOR_SETS}, only_prior),
    )


REWARD_BENCH = Benchmark(
    name=SuiteName.REWARD_BENCH,
    title="RewardBench",
    source="https://github.com/allenai/reward-bench, arXiv:2403.13787",
    equal_rewards="A pair with equal rewards counts 0.",
    fits=_fits,
    read=_read,
    reads_file=_reads_file,
    published=_PUBLISHED,
    outcome=_outcome,
    scores=_scores(),
)
