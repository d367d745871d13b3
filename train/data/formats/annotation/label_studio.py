"""Rankings made in Label Studio, exported as JSON: one per annotation.

List and Ranker:

    {"data": {"prompt": …, "items": [{"id", "title", "body"}, …]},
     "annotations": [{"completed_by", "was_cancelled",
                      "result": [{"type": "ranker", "from_name",
                                  "value": {"ranker": {"rank": [id, …]}}}]}]}

`ranker` has the ids in order, best first, under the Ranker's name; early versions have the list
alone. With Bucket tags it has the ids of each bucket. Items of a bucket are tied; the order of the
buckets is not in the export, so --buckets gives it. Items in other buckets (Label Studio's own is
"_") and cancelled annotations are skipped. An item's text is its `body`, else its `title`.

Pairwise:

    {"data": {"prompt": …, "answer1": …, "answer2": …},
     "annotations": [{"result": [{"type": "pairwise", "from_name", "to_name": "answer1,answer2",
                                  "value": {"selected": "left"}}]}]}

`to_name` has the names of the two tags. If they are not the names of fields, the two fields that
are not the prompt are the answers, provided that their names sort as they stand.

https://labelstud.io/tags/ranker, https://labelstud.io/tags/pairwise,
https://labelstud.io/guide/task_format
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kwise.meanings import row_meaning
from kwise.train.data.rows.annotation_tools import (
    choose_prompt,
    choose_question,
    join_names,
    matching_field,
)
from kwise.train.data.rows.fields import (
    as_list,
    as_objects,
    refuse,
    required,
    required_object,
    string_field,
)
from kwise.train.data.rows.items import RankedResponses, ReadOptions, RowItem, Skipped
from kwise.train.data.rows.row import Row
from kwise.train.rankings.json_value import json_type

_SIDES = ("left", "right")


def is_label_studio(row: Mapping[str, Any]) -> bool:
    """Return whether `row` is an exported task."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def read_label_studio(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield one ranking per annotation that has an answer to the question."""
    task = required_object(row, "data")
    task.is_columns = True
    annotations = as_objects(required(row, "annotations"), "annotations")
    if not annotations:
        yield Skipped(what="row", reason="no annotator's ranking")
    for index, annotation in enumerate(annotations):
        at = f"annotations[{index}]"
        if annotation.get("was_cancelled"):
            yield Skipped(what="annotation", reason="cancelled")
            continue
        results = as_objects(required(annotation, "result", at), f"{at}.result")
        answers = {
            str(result.get("from_name")): result
            for result in results
            if str(result.get("type")) in _READERS
        }
        if not answers or (options.question and options.question not in answers):
            yield Skipped(
                what="annotation", reason="question not answered", answered=tuple(answers)
            )
            continue
        question = choose_question(tuple(answers), options.question)
        read = _READERS[answers[question]["type"]]
        yield from read(task, question, answers[question], f"{at}.result", options)


def _ranking(
    task: Row, question: str, result: Row, at: str, options: ReadOptions
) -> Iterator[RowItem]:
    value = required_object(result, "value", at)
    order = required(value, "ranker", f"{at}.value")
    if isinstance(order, Row) and order.keys() == {question} and not options.buckets:
        order = order[question]
    tied_groups, num_unused = _tied_groups(order, f"{at}.value.ranker", options.buckets)
    if num_unused:
        yield Skipped(what="response", reason="in no bucket of --buckets", num=num_unused)
    ids = [item for group in tied_groups for item in group]
    list_name, texts = _item_texts(task, ids, at)
    chosen = choose_prompt(task, [list_name], options.prompt_column, "data")
    yield RankedResponses(
        prompt=chosen.prompt,
        responses=tuple(texts[item] for item in ids),
        ranks=tuple(rank for rank, group in enumerate(tied_groups, start=1) for _ in group),
        guesses=chosen.guesses if options.question else (("--question", question), *chosen.guesses),
    )


def _pair(
    task: Row, question: str, result: Row, at: str, options: ReadOptions
) -> Iterator[RowItem]:
    selected = string_field(required_object(result, "value", at), "selected", f"{at}.value")
    if selected not in _SIDES:
        refuse(f"{at}.value.selected", "must be left or right")
    sides = _sides(task, string_field(result, "to_name", at), f"{at}.to_name", options)
    chosen = choose_prompt(task, sides, options.prompt_column, "data")
    texts = tuple(string_field(task, side, "data") for side in sides)
    if texts[0] == texts[1]:
        yield Skipped(what="annotation", reason="both responses are the same")
        return
    yield RankedResponses(
        prompt=chosen.prompt,
        responses=texts,
        ranks=(1, 2) if selected == "left" else (2, 1),
        guesses=chosen.guesses if options.question else (("--question", question), *chosen.guesses),
    )


_READERS = {"ranker": _ranking, "pairwise": _pair}


def _sides(task: Row, tags: str, at: str, options: ReadOptions) -> list[str]:
    """Return the names of the left and the right field."""
    named = [matching_field(tag.strip(), task) for tag in tags.split(",")]
    sides = [name for name in named if name is not None]
    if len(sides) == len(named) == 2:
        return sides
    prompt_column = options.prompt_column or "prompt"
    texts = [
        name
        for name, value in task.items()
        if isinstance(value, str) and name != prompt_column and row_meaning(name) is None
    ]
    if len(texts) != 2 or texts != sorted(texts):
        refuse(at, f"does not name two fields of the data; fields: {join_names(task)}")
    task.note(f"Pairwise: left is the field {texts[0][:40]}, right is {texts[1][:40]}")
    return texts


def _tied_groups(order: Any, at: str, buckets: tuple[str, ...]) -> tuple[list[list[str]], int]:
    """Return (groups of tied ids, best first; the number of ids in no group)."""
    if isinstance(order, list):
        return [[item] for item in _ids(order, at)], 0
    if not isinstance(order, Row):
        refuse(at, f"must be a list of ids or an object of such lists, not {json_type(order)}")
    if not buckets:
        names = ", ".join(name[:40] for name in order if name != "_") or "only _"
        refuse(at, f"is in buckets ({names}); give their order, best first, with --buckets")
    num_unused = sum(len(_ids(order[name], at)) for name in order if name not in buckets)
    return [_ids(order.get(name) or [], f"{at}.{name}") for name in buckets], num_unused


def _ids(value: Any, at: str) -> list[str]:
    return [str(item) for item in as_list(value, at)]


def _item_texts(task: Row, ids: list[str], at: str) -> tuple[str, dict[str, str]]:
    """Return (the name of the list that has these ids, the text of each of its items by id)."""
    for name, value in task.items():
        if isinstance(value, list) and all(isinstance(i, dict) and "id" in i for i in value):
            index_of = {str(item["id"]): index for index, item in enumerate(value)}
            if value and index_of.keys() >= set(ids):
                items = task[name]
                return name, {
                    str(items[index]["id"]): _text(items[index], f"data.{name}[{index}]")
                    for index in index_of.values()
                }
    return refuse(at, "has ids that no list of the data has")


def _text(item: Row, at: str) -> str:
    return string_field(item, "body" if item.has("body") else "title", at)
