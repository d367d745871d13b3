"""Rankings made in Argilla: answers to a ranking question, one ranking per annotator.

A record has fields, one of them the prompt and one for each response, and a `RankingQuestion` whose options are named like
the response fields (`reply-1` for `reply-1`, `reply_1` or "Reply 1"). Exports come in four shapes:

- Argilla 1, `FeedbackDataset` as JSON: `{"fields": {…}, "responses": [{"user_id", "status", "values":
  {QUESTION: {"value": [{"value", "rank"}]}}}]}` (https://docs.argilla.io/en/v1.15.0/guides/llms/practical_guides/create_dataset.html);
- Argilla 1 on the Hub: a column a field, and `QUESTION: [{"user_id", "value": {"rank": […], "value": […]}, "status"}]`
  (https://huggingface.co/datasets/NextWealth/Python-DPO);
- Argilla 2, `to_list()`: `{"fields": {…}, "responses": {QUESTION: [{"value": [option, …], "user_id"}]}}`, without a status;
- Argilla 2, `to_list(flatten=True)` and `to_datasets()`: a column a field, and `QUESTION.responses`, `QUESTION.responses.users`,
  `QUESTION.responses.status` (argilla-io/argilla: argilla/src/argilla/records/_io/_generic.py). Argilla 2 gives options in
  order, best first, and no ties.

Answers that are not submitted are left out and counted, where the export says so: of Argilla 2's nested lists all are taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kwise.train.data.formats.annotation import choose_prompt, field_named, one_question
from kwise.train.data.formats.fields import as_list, as_text, records, refuse, required
from kwise.train.data.formats.items import Item, Left, Ranked, ReadOptions, Row

_FLAT = ".responses"
_META = frozenset(
    {"id", "external_id", "status", "metadata", "vectors", "suggestions", "responses", "_server_id"}
)

Answer = tuple[Any, Any]
"""(value, status)."""


def is_argilla(row: Row) -> bool:
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return True
    return any(key.endswith(_FLAT) for key in row) or any(
        _is_hub_question(value) for value in row.values()
    )


def read_argilla(row: Row, options: ReadOptions) -> Iterator[Item]:
    fields, answers = _fields(row), _answers(row)
    rankings = {
        name: found
        for name, found in answers.items()
        if any(_is_ranking(value, fields) for value, _ in found)
    }
    if options.question and all(value is None for value, _ in answers.get(options.question, ())):
        yield Left(what="row", reason="question not answered", answered=tuple(rankings))
        return
    if not rankings:
        yield Left(
            what="row", reason="no annotator's ranking of options that are named like the fields"
        )
        return
    question = one_question(tuple(rankings), options.question)
    for value, status in rankings[question]:
        if status not in (None, "submitted"):
            yield Left(what="annotation", reason="not submitted", answered=(question,))
        elif value is None:
            yield Left(what="annotation", reason="question not answered")
        else:
            yield _ranking(question, value, fields, options)


def _ranking(question: str, value: Any, fields: Mapping[str, Any], options: ReadOptions) -> Ranked:
    ordered = _ordered(value, question)
    names = [field_named(option, fields, f"{question}.value") for option, _ in ordered]
    chosen = choose_prompt(fields, names, options.prompt_column)
    return Ranked(
        prompt=chosen.prompt,
        responses=tuple(as_text(fields[name], name) for name in names),
        ranks=tuple(rank for _, rank in ordered),
        note=chosen.note,
        guesses=chosen.guesses if options.question else (("--question", question), *chosen.guesses),
    )


def _ordered(value: Any, question: str) -> list[tuple[str, int]]:
    """(option, rank) of one answer."""
    if isinstance(value, list) and all(isinstance(option, str) for option in value):
        return [(option, rank) for rank, option in enumerate(value, start=1)]
    ordered = []
    choices = records(value, f"{question}.value")
    ranks = [choice.get("rank") for choice in choices]
    if ranks and all(rank is None for rank in ranks):  # the Argilla 2 server keeps the order alone
        ranks = list(range(1, len(choices) + 1))
    for index, (choice, rank) in enumerate(zip(choices, ranks, strict=True)):
        at = f"{question}.value[{index}]"
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            refuse(f"{at}.rank", "must be a whole number from 1 (the best) on")
        ordered.append((as_text(required(choice, "value", at), f"{at}.value"), rank))
    return ordered


def _fields(row: Row) -> dict[str, Any]:
    if isinstance(row.get("fields"), dict):
        return {name: value for name, value in row["fields"].items() if value is not None}
    return {
        name: value
        for name, value in row.items()
        if value is not None
        and name not in _META
        and "." not in name
        and "-suggestion" not in name
        and not _is_hub_question(value)
    }


def _answers(row: Row) -> dict[str, list[Answer]]:
    """The answers to each question, whatever the question."""
    answers: dict[str, list[Answer]] = {}
    nested = row.get("responses") if "fields" in row else None
    if isinstance(nested, dict):  # Argilla 2
        for name, found in nested.items():
            answers[name] = [
                (answer.get("value"), answer.get("status"))
                for answer in records(found, f"responses.{name}")
            ]
    elif isinstance(nested, list):  # Argilla 1
        for index, response in enumerate(records(nested, "responses")):
            values = response.get("values") or {}
            if not isinstance(values, dict):
                refuse(f"responses[{index}].values", "must be an object")
            for name, answer in values.items():
                value = answer.get("value") if isinstance(answer, dict) else answer
                answers.setdefault(name, []).append((value, response.get("status")))
    for key, value in row.items():
        if key.endswith(_FLAT) and isinstance(value, list):
            status = as_list(row.get(f"{key}.status") or [None] * len(value), f"{key}.status")
            if len(status) != len(value):
                refuse(f"{key}.status", f"has {len(status)} for {len(value)} answers")
            answers[key.removesuffix(_FLAT)] = list(zip(value, status, strict=True))
        elif _is_hub_question(value):
            answers[key] = [(answer.get("value"), answer.get("status")) for answer in value]
    return answers


def _is_hub_question(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, dict) and {"user_id", "value"} <= v.keys() for v in value)
    )


def _is_ranking(value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether an answer is to a ranking question: labels, ratings and texts stand in the same place."""
    if isinstance(value, dict):
        return {"rank", "value"} <= value.keys()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    if all(isinstance(choice, dict) and "rank" in choice for choice in value):
        return True
    return all(isinstance(choice, str) and field_named(choice, fields, "") for choice in value)
