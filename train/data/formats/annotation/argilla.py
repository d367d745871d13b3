"""Rankings made in Argilla: the answers to a ranking question, one ranking per annotator.

A record has fields, one of them the prompt and one per response, and a `RankingQuestion` whose
options are named like the response fields (`reply-1` for `reply-1`, `reply_1` or "Reply 1").
Answers that were not submitted are skipped. Four shapes of export are read:

- Argilla 1, `FeedbackDataset` as JSON: `{"fields": {…}, "responses": [{"user_id", "status",
  "values": {QUESTION: {"value": [{"value", "rank"}]}}}]}`;
- Argilla 1 on the Hub: one column per field, and `QUESTION: [{"user_id", "value": {"rank": […],
  "value": […]}, "status"}]` (https://huggingface.co/datasets/NextWealth/Python-DPO);
- Argilla 2, `to_list()`: `{"fields": {…}, "responses": {QUESTION: [{"value": [option, …],
  "user_id"}]}}`, without a status, so that all answers are read;
- Argilla 2, `to_list(flatten=True)` and `to_datasets()`: one column per field, and
  `QUESTION.responses`, `QUESTION.responses.users`, `QUESTION.responses.status`
  (argilla-io/argilla: argilla/src/argilla/records/_io/_generic.py). Argilla 2 lists options in
  order, best first, without ties.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kwise.train.data.rows.annotation_tools import (
    choose_prompt,
    choose_question,
    join_names,
    matching_field,
    required_field,
)
from kwise.train.data.rows.fields import (
    as_list,
    as_objects,
    as_rank,
    as_string,
    refuse,
    required,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem, Skipped
from kwise.train.data.rows.row import Row

_FLAT_SUFFIX = ".responses"
_META_KEYS = frozenset(
    {
        "id",
        "external_id",
        "status",
        "metadata",
        "vectors",
        "suggestions",
        "responses",
        "_server_id",
    }
)

Answer = tuple[Any, Any]
"""(value, status)."""


def is_argilla(row: Mapping[str, Any]) -> bool:
    """Return whether `row` has one of the four shapes."""
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return True
    return any(key.endswith(_FLAT_SUFFIX) for key in row) or any(
        _is_hub_question(value) for value in row.values()
    )


def read_argilla(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield one ranking per annotator who answered the question."""
    fields, answers = _fields(row), _answers(row)
    rankings = {
        name: given
        for name, given in answers.items()
        if any(_is_ranking(value, fields) for value, _ in given)
    }
    if options.question and all(value is None for value, _ in answers.get(options.question, ())):
        yield Skipped(what="row", reason="question not answered", answered=tuple(rankings))
        return
    if not rankings:
        yield Skipped(
            what="row", reason="no annotator's ranking of options that are named like the fields"
        )
        return
    question = choose_question(tuple(rankings), options.question)
    if others := sorted(answers.keys() - {question}):
        row.note(f"answers to other questions are not read: {join_names(others)}")
    for value, status in rankings[question]:
        if status not in (None, "submitted"):
            yield Skipped(what="annotation", reason="not submitted", answered=(question,))
        elif value is None:
            yield Skipped(what="annotation", reason="question not answered")
        else:
            yield _ranking(question, value, fields, options)


def _ranking(question: str, value: Any, fields: Row, options: ReadOptions) -> RankedResponses:
    ranked_options = _ranked_options(value, question)
    names = [required_field(option, fields, f"{question}.value") for option, _ in ranked_options]
    chosen = choose_prompt(fields, names, options.prompt_column, "")
    return RankedResponses(
        prompt=chosen.prompt,
        responses=tuple(as_string(fields[name], name) for name in names),
        ranks=tuple(rank for _, rank in ranked_options),
        guesses=chosen.guesses if options.question else (("--question", question), *chosen.guesses),
    )


def _ranked_options(value: Any, question: str) -> list[tuple[str, int]]:
    """Return (option, rank) for each option of one answer."""
    if isinstance(value, list) and all(isinstance(option, str) for option in value):
        return [(option, rank) for rank, option in enumerate(value, start=1)]
    ranked_options = []
    choices = as_objects(value, f"{question}.value")
    ranks = [choice.get("rank") for choice in choices]
    if ranks and all(rank is None for rank in ranks):  # the Argilla 2 server stores only the order
        ranks = list(range(1, len(choices) + 1))
    for index, (choice, rank) in enumerate(zip(choices, ranks, strict=True)):
        at = f"{question}.value[{index}]"
        option = as_string(required(choice, "value", at), f"{at}.value")
        ranked_options.append((option, as_rank(rank, f"{at}.rank")))
    return ranked_options


def _fields(row: Row) -> Row:
    """Return the fields of the record, without null ones."""
    if isinstance(row.peek("fields"), dict):
        fields: Row = row["fields"]
        fields.is_columns = True
        return fields.only([name for name in fields if fields.peek(name) is not None])
    return row.only(
        [
            name
            for name, value in row.items()
            if value is not None
            and name not in _META_KEYS
            and "." not in name
            and "-suggestion" not in name
            and not _is_hub_question(value)
        ]
    )


def _answers(row: Row) -> dict[str, list[Answer]]:
    """Return the answers to each question of any type."""
    answers: dict[str, list[Answer]] = {}
    nested = row.get("responses") if "fields" in row else None
    if isinstance(nested, Row):  # Argilla 2
        for name in nested:
            answers[name] = [
                (answer.get("value"), answer.get("status"))
                for answer in as_objects(nested[name], f"responses.{name}")
            ]
    elif isinstance(nested, list):  # Argilla 1
        for index, response in enumerate(as_objects(nested, "responses")):
            values = response.get("values") or Row({}, row.notes)
            if not isinstance(values, Row):
                refuse(f"responses[{index}].values", "must be an object")
            for name in values:
                answer = values[name]
                value = answer.get("value") if isinstance(answer, Row) else answer
                answers.setdefault(name, []).append((value, response.get("status")))
    for key, value in list(row.items()):
        if key.endswith(_FLAT_SUFFIX) and isinstance(value, list):
            status = as_list(row.get(f"{key}.status") or [None] * len(value), f"{key}.status")
            if len(status) != len(value):
                refuse(f"{key}.status", f"has {len(status)} entries for {len(value)} answers")
            answers[key.removesuffix(_FLAT_SUFFIX)] = list(zip(row[key], status, strict=True))
        elif _is_hub_question(value):
            answers[key] = [(answer.get("value"), answer.get("status")) for answer in row[key]]
    return answers


def _is_hub_question(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, dict) and {"user_id", "value"} <= v.keys() for v in value)
    )


def _is_ranking(value: Any, fields: Mapping[str, Any]) -> bool:
    """Return whether an answer is a ranking; labels, ratings and texts have the same place."""
    if isinstance(value, dict):
        return {"rank", "value"} <= value.keys()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    if all(isinstance(choice, dict) and "rank" in choice for choice in value):
        return True
    return all(isinstance(choice, str) and matching_field(choice, fields) for choice in value)
