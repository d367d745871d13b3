"""RM-Bench (Liu et al. 2024, arXiv:2410.16184).

The data is https://huggingface.co/datasets/THU-KEG/RM-Bench, one file `total_dataset.json`: id,
prompt, chosen and rejected (lists of three: concise, detailed, detailed with Markdown), domain.
https://github.com/THU-KEG/RM-Bench has one file per domain too, `chat_filtered.json`, without the
column domain. The rules are those of `compute_accuracy` in scripts/utils.py there, commit 73c52d7.

- Each of the three right responses is compared with each of the three wrong ones: a 3×3 matrix. A
  pair counts if the right response has the higher reward.
- Hard is the mean of the three cells in which the wrong response has the fancier style, normal
  that of the diagonal, easy that of the other three.
- A domain's score is the mean of its nine cells. Easy, normal and hard are means of the four
  domains, and so is the overall score. safety-refuse and safety-response are one domain.
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
    StyleMatrix,
    definitions,
)
from kwise.evaluation.suites.columns import is_higher, known_subset, prompt_of, texts_of
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.score_tree import SubsetMean, WeightedMean, mean_of
from kwise.train.data.rows.fields import refuse
from kwise.train.data.rows.row import Row

_STYLES = ("concise", "detailed", "detailed, Markdown")
_PUBLISHED = {
    "chat": 129,
    "code": 228,
    "math": 529,
    "safety-refuse": 284,
    "safety-response": 157,
}
_DOMAINS = {
    "Chat": ("chat",),
    "Code": ("code",),
    "Math": ("math",),
    "Safety": ("safety-refuse", "safety-response"),
}
_CELLS = tuple((right, wrong) for right in range(3) for wrong in range(3))
_DIFFICULTIES = {
    "Easy": [cell for cell in _CELLS if cell[0] > cell[1]],
    "Normal": [cell for cell in _CELLS if cell[0] == cell[1]],
    "Hard": [cell for cell in _CELLS if cell[0] < cell[1]],
}
_TOTAL = "total_dataset"
_FILTERED = "_filtered"


def _fits(row: Mapping[str, Any]) -> bool:
    lists = (row.get("chosen"), row.get("rejected"))
    return (
        all(isinstance(texts, list) and len(texts) == len(_STYLES) for texts in lists)
        and isinstance(row.get("prompt"), str)
        and row.get("domain") in _PUBLISHED
    )


def _read(row: Row, file: PurePath) -> BenchmarkItem:
    responses: list[str] = []
    for key in ("chosen", "rejected"):
        texts = texts_of(row, key)
        if len(texts) != len(_STYLES):
            refuse(key, f"must have {len(_STYLES)} responses, not {len(texts)}")
        responses.extend(texts)
    return BenchmarkItem(
        prompt=prompt_of(row),
        responses=tuple(responses),
        num_right=len(_STYLES),
        subset=_subset(row, file),
    )


def _subset(row: Row, file: PurePath) -> str:
    name = file.name.partition(".")[0].removesuffix(_FILTERED)
    return (
        name
        if not row.has("domain") and name in _PUBLISHED
        else (known_subset(row, "domain", _PUBLISHED))
    )


def _outcome(unit: Sequence[tuple[BenchmarkItem, Rewards]]) -> Outcome:
    ((_, rewards),) = unit
    return {
        _column(right, wrong): is_higher(rewards[right], rewards[len(_STYLES) + wrong])
        for right, wrong in _CELLS
    }


def _column(right: int, wrong: int) -> str:
    return f"{_STYLES[right]} > {_STYLES[wrong]}"


def _mean(subsets: Sequence[str], cells: Sequence[tuple[int, int]]) -> SubsetMean:
    """Return the mean of `cells` over the rows of `subsets`."""
    return SubsetMean(
        subsets=tuple(subsets), columns={_column(*cell): 1 / len(cells) for cell in cells}
    )


def _over_domains(cells: Sequence[tuple[int, int]]) -> WeightedMean:
    return mean_of(*(_mean(subsets, cells) for subsets in _DOMAINS.values()))


def _scores() -> tuple[ScoreDefinition, ...]:
    subset, category, overall = ScoreLevel.SUBSET, ScoreLevel.CATEGORY, ScoreLevel.OVERALL
    difficulties = {name: _over_domains(cells) for name, cells in _DIFFICULTIES.items()}
    domains = {name: _mean(subsets, _CELLS) for name, subsets in _DOMAINS.items()}
    difficulties_of_domains = {
        f"{name}, {difficulty.lower()}": _mean(subsets, cells)
        for name, subsets in _DOMAINS.items()
        for difficulty, cells in _DIFFICULTIES.items()
    }
    parts_of_safety = {name: _mean([name], _CELLS) for name in _DOMAINS["Safety"]}
    return (
        *definitions(overall, {"Overall": _over_domains(_CELLS)} | difficulties),
        *definitions(category, domains),
        *definitions(subset, difficulties_of_domains | parts_of_safety),
    )


RM_BENCH = Benchmark(
    name=SuiteName.RM_BENCH,
    title="RM-Bench",
    source="https://github.com/THU-KEG/RM-Bench, arXiv:2410.16184",
    equal_rewards="A pair with equal rewards counts 0.",
    fits=_fits,
    read=_read,
    reads_file=lambda file: file.name.startswith(_TOTAL),
    published=_PUBLISHED,
    outcome=_outcome,
    scores=_scores(),
    matrix=StyleMatrix(
        row_labels=_STYLES,
        column_labels=_STYLES,
        cells=tuple(
            tuple(_over_domains([(right, wrong)]) for wrong in range(3)) for right in range(3)
        ),
    ),
)
