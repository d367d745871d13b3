"""Rows with a prompt and a list of responses.

- completions, `{"prompt", "completions": [{"text", "score"}, …]}`; the text may also be called
  `content`, `completion` or `response`, and a `rank` may stand in place of the score. The list may
  be `responses`, `answers`, `candidates`, `outputs` or `generations`. It may also have the texts
  alone, beside a list `scores`, `ratings` or `ranks` of the same length (distilabel,
  https://distilabel.argilla.io).
- ranking, `{"prompt", "ranking": [best, …, worst]}`; a list in place of a text has tied texts.
- reward-bench-2, `{"prompt", "chosen": [text, …], "rejected": [text, …]}`; those of one list are
  tied (https://huggingface.co/datasets/allenai/reward-bench-2; Malik et al. 2025,
  arXiv:2506.01937).

The prompt is `prompt` or `instruction`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kwise.train.data.rows.fields import (
    as_list,
    as_objects,
    as_rank,
    as_string,
    refuse,
    required,
    value_at_path,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.scored_list import NO_SCORE, as_score
from kwise.train.data.rows.shapes import prompt_field
from kwise.types import Conversation

_PROMPTS = ("prompt", "instruction")
_LISTS = ("completions", "responses", "answers", "candidates", "outputs", "generations")
_TEXTS = ("text", "content", "completion", "response", "answer", "output")
_SCORES = ("score", "rating", "reward")
_LABEL_LISTS = ("scores", "ratings", "rewards", "ranks")
# The last word of the name of a label of which 1 is the best: rank, human_ranking, a.Place.
_RANK_NAME = re.compile(r"(?:^|[^a-z])(?:rank|ranking|position|place)s?$", re.IGNORECASE)


def is_completions(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has a list of responses with their labels, inside or beside it."""
    return any(name in row for name in _PROMPTS) and _labelled_list(row) is not None


def _labelled_list(row: Mapping[str, Any]) -> str | None:
    """Return the name of the list of responses that have labels, or None."""
    has_label_list = _first(_LABEL_LISTS, row) is not None
    for name, responses in row.items():
        if name not in _LISTS or not isinstance(responses, list) or not responses:
            continue
        if not all(isinstance(item, dict) for item in responses):
            if has_label_list:
                return name
        elif any(_first(_TEXTS, item) and _first((*_SCORES, "rank"), item) for item in responses):
            return name
    return None


def read_completions(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of the responses that have a label."""
    name = _labelled_list(row) or next((name for name in _LISTS if row.has(name)), _LISTS[0])
    responses = as_list(required(row, name), name)
    if responses and all(isinstance(item, Row) for item in responses):
        yield from _labelled(as_objects(responses, name), name, _prompt(row), options)
    else:
        yield from _beside_labels(row, responses, name, options)


def names_ranks(label: str) -> bool:
    """Return whether the label of this name is a rank: 1 is the best, not the highest."""
    return _RANK_NAME.search(label) is not None


def lacks_labels(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has a prompt and a list of responses, and no labels for them."""
    return (
        any(name in row for name in _PROMPTS)
        and any(isinstance(row.get(name), list) for name in _LISTS)
        and _labelled_list(row) is None
    )


def is_ranking(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has a list `ranking`."""
    return any(name in row for name in _PROMPTS) and isinstance(row.get("ranking"), list)


def read_ranking(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking of a row whose list has the best response first."""
    groups = []
    for index, item in enumerate(as_list(required(row, "ranking"), "ranking")):
        at = f"ranking[{index}]"
        groups.append(
            [as_string(text, at) for text in (item if isinstance(item, list) else [item])]
        )
    yield _in_groups(row, groups)


def is_reward_bench_2(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has lists of texts as chosen and rejected, or a list and a text."""
    sides = [row.get("chosen"), row.get("rejected")]
    return (
        any(name in row for name in _PROMPTS)
        and all(isinstance(side, str) or _is_texts(side) for side in sides)
        and any(isinstance(side, list) for side in sides)
    )


def read_reward_bench_2(row: Row, _: ReadOptions) -> Iterator[RowItem]:
    """Yield the ranking in which each chosen response is above each rejected one."""
    groups = []
    for name in ("chosen", "rejected"):
        value = required(row, name)
        texts = [value] if isinstance(value, str) else as_list(value, name)
        groups.append([as_string(text, f"{name}[{i}]") for i, text in enumerate(texts)])
    yield _in_groups(row, groups)


def _labelled(
    responses: Sequence[Row], name: str, prompt: Conversation, options: ReadOptions
) -> Iterator[RowItem]:
    """Yield the ranking of responses that have a label each, of one kind in the whole list."""
    keys = (options.score_column,) if options.score_column else (*_SCORES, "rank")
    key = next((key for key in keys if any(item.has(key) for item in responses)), keys[0])
    for other in (*_SCORES, "rank"):
        if key in _SCORES and other != key and _contradict(responses, key, other):
            responses[0].note(f"{key} and {other} contradict each other: {key} is used")
    texts, labels = [], []
    for index, response in enumerate(responses):
        at = f"{name}[{index}]"
        text_key = _first(_TEXTS, response) or _TEXTS[0]
        text = response.get(text_key)
        value = value_at_path(response, key, at) if response.has(key.split(".")[0]) else (None, at)
        if (label := as_score(*value)) is None:
            yield NO_SCORE
            continue
        texts.append(as_string(text, f"{at}.{text_key}"))
        labels.append(as_rank(label, f"{at}.{key}") if names_ranks(key) else label)
    yield _with_labels(prompt, texts, labels, is_ranks=names_ranks(key))


def _contradict(responses: Sequence[Row], key: str, other: str) -> bool:
    """Return whether two responses have one order by `key` and the opposite one by `other`."""
    sign = -1 if other == "rank" else 1
    pairs = [(item.peek(key), item.peek(other)) for item in responses]
    known = [pair for pair in pairs if all(isinstance(label, int | float) for label in pair)]
    return any(a[0] < b[0] and sign * a[1] > sign * b[1] for a in known for b in known)


def _beside_labels(
    row: Row, responses: list[Any], name: str, options: ReadOptions
) -> Iterator[RowItem]:
    """Yield the ranking of texts that have their labels in a list of their own."""
    key = options.score_column or _first(_LABEL_LISTS, row) or _LABEL_LISTS[0]
    values = as_list(required(row, key), key)
    if len(values) != len(responses):
        refuse(key, f"has {len(values)} entries for {len(responses)} responses")
    texts, labels = [], []
    for index, text in enumerate(responses):
        at = f"{key}[{index}]"
        if (label := as_score(values[index], at)) is None:
            yield NO_SCORE
            continue
        texts.append(as_string(text, f"{name}[{index}]"))
        labels.append(as_rank(label, at) if names_ranks(key) else label)
    yield _with_labels(_prompt(row), texts, labels, is_ranks=names_ranks(key))


def _with_labels(
    prompt: Conversation, texts: Sequence[str], labels: Sequence[float], *, is_ranks: bool
) -> RankedResponses:
    return RankedResponses(
        prompt=prompt,
        responses=tuple(texts),
        ranks=tuple(int(label) for label in labels) if is_ranks else None,
        scores=None if is_ranks else tuple(labels),
    )


def _in_groups(row: Row, groups: Sequence[Sequence[str]]) -> RankedResponses:
    """Return the ranking of groups of tied texts, best group first."""
    return RankedResponses(
        prompt=_prompt(row),
        responses=tuple(text for group in groups for text in group),
        ranks=tuple(rank for rank, group in enumerate(groups, start=1) for _ in group),
    )


def _prompt(row: Row) -> Conversation:
    return prompt_field(row, next((name for name in _PROMPTS if row.has(name)), _PROMPTS[0]))


def _first(keys: Sequence[str], row: Mapping[str, Any]) -> str | None:
    present = {key for key, value in row.items() if value is not None}
    return next((key for key in keys if key in present), None)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
