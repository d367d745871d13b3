"""Rankings made in Label Studio with List and Ranker, exported as JSON: one ranking per annotation.

    {"data": {"prompt": …, "items": [{"id", "title", "body"}, …]},
     "annotations": [{"completed_by", "was_cancelled",
                      "result": [{"type": "ranker", "from_name", "value": {"ranker": {"rank": [id, …]}}}]}]}

(https://labelstud.io/tags/ranker, https://labelstud.io/guide/task_format). `ranker` has the ids in order, best first, under one
key, the Ranker's own name (in early versions the ids alone); or, with Bucket tags, the ids of each bucket, be it one; the order
of the buckets is not in the export and is asked for: --buckets BEST … WORST. Items of one bucket are tied. Those in no bucket
named (Label Studio keeps them under "_") are left out and counted, as are cancelled annotations. An item's text is its `body`,
or where there is none its `title`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kwise.train.data.formats.annotation import choose_prompt, one_question
from kwise.train.data.formats.fields import as_list, records, refuse, required, text
from kwise.train.data.formats.items import Item, Left, Ranked, ReadOptions, Row
from kwise.train.rankings.json_value import json_type


def is_label_studio(row: Row) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def read_label_studio(row: Row, options: ReadOptions) -> Iterator[Item]:
    task = required(row, "data")
    if not isinstance(task, dict):
        refuse("data", f"must be an object, not {json_type(task)}")
    annotations = records(required(row, "annotations"), "annotations")
    if not annotations:
        yield Left(what="row", reason="no annotator's ranking")
    for index, annotation in enumerate(annotations):
        at = f"annotations[{index}]"
        if annotation.get("was_cancelled"):
            yield Left(what="annotation", reason="cancelled")
            continue
        results = records(required(annotation, "result", at), f"{at}.result")
        rankers = {
            str(result.get("from_name")): result
            for result in results
            if result.get("type") == "ranker"
        }
        if not rankers or (options.question and options.question not in rankers):
            yield Left(what="annotation", reason="question not answered", answered=tuple(rankers))
            continue
        question = one_question(tuple(rankers), options.question)
        yield from _ranking(task, question, rankers[question], f"{at}.result", options)


def _ranking(
    task: Mapping[str, Any], question: str, result: Row, at: str, options: ReadOptions
) -> Iterator[Item]:
    value = required(result, "value", at)
    order = (
        required(value, "ranker", f"{at}.value")
        if isinstance(value, dict)
        else refuse(f"{at}.value", "must be an object")
    )
    if isinstance(order, dict) and order.keys() == {question} and not options.buckets:
        [order] = order.values()
    groups, num_left = _groups(order, f"{at}.value.ranker", options.buckets)
    if num_left:
        yield Left(what="response", reason="in no bucket of --buckets", num=num_left)
    ids = [item for group in groups for item in group]
    name, texts = _items(task, ids, at)
    chosen = choose_prompt(task, [name], options.prompt_column)
    yield Ranked(
        prompt=chosen.prompt,
        responses=tuple(texts[item] for item in ids),
        ranks=tuple(rank for rank, group in enumerate(groups, start=1) for _ in group),
        note=chosen.note,
        guesses=chosen.guesses if options.question else (("--question", question), *chosen.guesses),
    )


def _groups(order: Any, at: str, buckets: tuple[str, ...]) -> tuple[list[list[str]], int]:
    """(ids in groups that are tied, the best first; how many ids are in no such group)."""
    if isinstance(order, list):
        return [[item] for item in _ids(order, at)], 0
    if not isinstance(order, dict):
        refuse(at, f"must be a list of ids or an object of such lists, not {json_type(order)}")
    if not buckets:
        names = ", ".join(name[:40] for name in order if name != "_") or "_ alone"
        refuse(at, f"is in buckets ({names}); say their order, best first, with --buckets")
    left = sum(len(_ids(ids, at)) for name, ids in order.items() if name not in buckets)
    return [_ids(order.get(name) or [], f"{at}.{name}") for name in buckets], left


def _ids(value: Any, at: str) -> list[str]:
    return [str(item) for item in as_list(value, at)]


def _items(task: Mapping[str, Any], ids: list[str], at: str) -> tuple[str, dict[str, str]]:
    """(the name of the list that has these ids, the text of each)."""
    for name, value in task.items():
        if isinstance(value, list) and all(
            isinstance(item, dict) and "id" in item for item in value
        ):
            items = {str(item["id"]): (index, item) for index, item in enumerate(value)}
            if value and items.keys() >= set(ids):
                texts = {
                    key: text(
                        item,
                        "body" if item.get("body") is not None else "title",
                        f"data.{name}[{index}]",
                    )
                    for key, (index, item) in items.items()
                }
                return name, texts
    return refuse(at, "has ids that no list of the data has")
