"""Rankings made in Label Studio with List and Ranker, exported as JSON: one per annotation.

    {"data": {"prompt": …, "items": [{"id", "title", "body"}, …]},
     "annotations": [{"completed_by", "was_cancelled",
                      "result": [{"type": "ranker", "from_name",
                                  "value": {"ranker": {"rank": [id, …]}}}]}]}

`ranker` has the ids in order, best first, under the Ranker's name; early versions have the list
alone. With Bucket tags it has the ids of each bucket. Items of a bucket are tied; the order of the
buckets is not in the export, so --buckets gives it. Items in other buckets (Label Studio's own is
"_") and cancelled annotations are skipped. An item's text is its `body`, else its `title`.

https://labelstud.io/tags/ranker, https://labelstud.io/guide/task_format
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kwise.train.data.rows.annotation_tools import choose_prompt, choose_question
from kwise.train.data.rows.fields import as_list, as_objects, refuse, required, string_field
from kwise.train.data.rows.items import RankedResponses, ReadOptions, Row, RowItem, Skipped
from kwise.train.rankings.json_value import json_type


def is_label_studio(row: Row) -> bool:
    """Return whether `row` is an exported task."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def read_label_studio(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield one ranking per annotation that has an answer to the question."""
    task = required(row, "data")
    if not isinstance(task, dict):
        refuse("data", f"must be an object, not {json_type(task)}")
    annotations = as_objects(required(row, "annotations"), "annotations")
    if not annotations:
        yield Skipped(what="row", reason="no annotator's ranking")
    for index, annotation in enumerate(annotations):
        at = f"annotations[{index}]"
        if annotation.get("was_cancelled"):
            yield Skipped(what="annotation", reason="cancelled")
            continue
        results = as_objects(required(annotation, "result", at), f"{at}.result")
        rankers = {
            str(result.get("from_name")): result
            for result in results
            if result.get("type") == "ranker"
        }
        if not rankers or (options.question and options.question not in rankers):
            yield Skipped(
                what="annotation", reason="question not answered", answered=tuple(rankers)
            )
            continue
        question = choose_question(tuple(rankers), options.question)
        yield from _ranking(task, question, rankers[question], f"{at}.result", options)


def _ranking(
    task: Mapping[str, Any], question: str, result: Row, at: str, options: ReadOptions
) -> Iterator[RowItem]:
    value = required(result, "value", at)
    if not isinstance(value, dict):
        refuse(f"{at}.value", "must be an object")
    order = required(value, "ranker", f"{at}.value")
    if isinstance(order, dict) and order.keys() == {question} and not options.buckets:
        [order] = order.values()
    tied_groups, num_unused = _tied_groups(order, f"{at}.value.ranker", options.buckets)
    if num_unused:
        yield Skipped(what="response", reason="in no bucket of --buckets", num=num_unused)
    ids = [item for group in tied_groups for item in group]
    list_name, texts = _item_texts(task, ids, at)
    chosen = choose_prompt(task, [list_name], options.prompt_column)
    yield RankedResponses(
        prompt=chosen.prompt,
        responses=tuple(texts[item] for item in ids),
        ranks=tuple(rank for rank, group in enumerate(tied_groups, start=1) for _ in group),
        note=chosen.note,
        guesses=chosen.guesses if options.question else (("--question", question), *chosen.guesses),
    )


def _tied_groups(order: Any, at: str, buckets: tuple[str, ...]) -> tuple[list[list[str]], int]:
    """Return (groups of tied ids, best first; the number of ids in no group)."""
    if isinstance(order, list):
        return [[item] for item in _ids(order, at)], 0
    if not isinstance(order, dict):
        refuse(at, f"must be a list of ids or an object of such lists, not {json_type(order)}")
    if not buckets:
        names = ", ".join(name[:40] for name in order if name != "_") or "only _"
        refuse(at, f"is in buckets ({names}); give their order, best first, with --buckets")
    num_unused = sum(len(_ids(ids, at)) for name, ids in order.items() if name not in buckets)
    return [_ids(order.get(name) or [], f"{at}.{name}") for name in buckets], num_unused


def _ids(value: Any, at: str) -> list[str]:
    return [str(item) for item in as_list(value, at)]


def _item_texts(task: Mapping[str, Any], ids: list[str], at: str) -> tuple[str, dict[str, str]]:
    """Return (the name of the list that has these ids, the text of each of its items by id)."""
    for name, value in task.items():
        if isinstance(value, list) and all(isinstance(i, dict) and "id" in i for i in value):
            items = {str(item["id"]): (index, item) for index, item in enumerate(value)}
            if value and items.keys() >= set(ids):
                return name, {
                    item_id: _text(item, f"data.{name}[{index}]")
                    for item_id, (index, item) in items.items()
                }
    return refuse(at, "has ids that no list of the data has")


def _text(item: Row, at: str) -> str:
    return string_field(item, "body" if item.get("body") is not None else "title", at)
