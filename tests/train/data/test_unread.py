"""What no format asks for is read, refused or named in a note, whatever the format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kwise.train.data.formats.table import FORMATS
from kwise.train.data.rows.items import ReadOptions, RowProblem
from kwise.train.data.rows.read_row import RowContents, read_row
from kwise.train.rankings.errors import RankingsError
from tests.train.data.format_rows import answered, converted, ranker, studio, turns
from tests.train.data.test_formats import CASES

PAIR = {"prompt": "P", "chosen": "a", "rejected": "b"}
SYSTEM = {"system": "S"}


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in `value` that are not the columns of a list of objects."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if (isinstance(value, dict) and not any(isinstance(item, list) for item in inner)) or (
        isinstance(value, dict) and not all(isinstance(item, list) for item in inner)
    ):
        yield value
    if isinstance(value, dict | list):
        for item in inner:
            yield from objects_in(item)


def read(case: tuple[Any, ...], row: Any) -> RowContents:
    return read_row(FORMATS[case[1]].read, row, ReadOptions())


@pytest.mark.parametrize("case", CASES, ids=[f"{case[1].value}: {case[0]}" for case in CASES])
def test_no_format_can_lose_a_key_anywhere_in_a_row(case: tuple[Any, ...]) -> None:
    """An unknown key is counted, and tools are refused, in each object of each format's rows."""
    row = json.loads(json.dumps(case[2][0]))
    lost = set(read(case, row).unread)
    for index, _ in enumerate(objects_in(row)):
        changed = json.loads(json.dumps(row))
        place = list(objects_in(changed))[index]
        place["a-new-key"] = "text"
        contents = read(case, changed)
        if _is_part_of(set(contents.unread), changed) or "a-new-key" in str(contents.notes):
            continue  # the object that has the key is counted
        assert set(contents.unread) - lost
        place["tools"] = [{"name": "search"}]
        with pytest.raises(RowProblem, match="has 'tools', tools or calls of tools"):
            read(case, changed)


def _is_part_of(lost: set[str], changed: Any) -> bool:
    """Return whether the new key is inside an object that is counted as a whole."""
    pending = [(changed, "")]
    while pending:
        value, path = pending.pop()
        if isinstance(value, list):
            pending += [(item, f"{path}[]") for item in value]
        elif isinstance(value, dict):
            if "a-new-key" in value:
                return any(
                    path == name or path.startswith((f"{name}.", f"{name}[")) for name in lost
                )
            pending += [(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()]
    return False


def test_columns_that_are_not_read_are_counted_in_a_line_per_count(tmp_path: Path) -> None:
    rows = [{**PAIR, "source": "s", "tags": ["x"], "empty": [None, ""]}, {**PAIR, "source": "s"}]
    _, report = converted(tmp_path, rows)
    assert report.unread == {"source": 2, "tags": 1}
    assert report.lines()[1:] == ["note: 2 x not read: source", "note: 1 x not read: tags"]
    many = [{**PAIR, **{f"c{i}": 1 for i in range(n)}} for n in range(1, 40)]
    assert len(converted(tmp_path, many)[1].lines()) == 9


def test_rows_with_all_columns_of_public_data_sets_are_read(tmp_path: Path) -> None:
    completion = {"annotations": {"honesty": {"Rating": "4"}}, "custom_system_prompt": "S"}
    rows: list[Any] = [
        {
            "source": "x",
            "instruction": "P",
            "models": ["m", "n"],
            "completions": [
                {**completion, "response": text, "overall_score": score, "fine-grained_score": 3}
                for text, score in (("a", 7), ("b", 5.0))
            ],
            "correct_answers": ["None"],
        },
        {
            "prompt": "P",
            "prompt_id": "1",
            "chosen": turns("P", "a"),
            "rejected": turns("P", "b"),
            "messages": turns("P", "a"),
            "score_chosen": 7,
            "score_rejected": 5,
        },
        {
            "domain": "code",
            "context": turns("P"),
            "response1": "a",
            "response2": "b",
            "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "r"}],
        },
    ]
    rankings, report = converted(tmp_path, rows)
    assert rankings == ["P: a (7) > b (5)"] * 2 + ["P: a (2) > b (0)"]
    assert not report.notes and report.unread == {
        "completions[].annotations": 2,
        "completions[].custom_system_prompt": 2,
        "correct_answers": 1,
        "models": 1,
        "source": 1,
        "messages": 1,
        "prompt_id": 1,
        "domain": 1,
        "individual_preference": 1,
    }


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, **SYSTEM},
        {**PAIR, "system_prompt": "S"},
        {"chosen": "P a", "rejected": "P b", **SYSTEM},
        {"chosen": turns("P", "a"), "rejected": turns("P", "b"), **SYSTEM},
        {"chosen": "\n\nHuman: P\n\nAssistant: a", "rejected": "\n\nHuman: P\n\nAssistant: b"}
        | SYSTEM,
        {
            "prompt": "\n\nHuman: P",
            "answers": [{"answer": x, "rank": i} for i, x in ((1, "a"), (2, "b"))],
        }
        | SYSTEM,
        {"prompt": "P", "responses": [{"text": x, "rank": i} for i, x in ((1, "a"), (2, "b"))]}
        | SYSTEM,
        {"conversation_a": turns("P", "a"), "conversation_b": turns("P", "b"), "winner": "model_a"}
        | SYSTEM,
        answered("q", system="S", prompt="P", **{"reply-1": "b", "reply-2": "a"}),
    ],
)
def test_a_system_message_in_a_column_is_put_before_the_prompt(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    [ranking], report = converted(tmp_path, [row])
    assert ranking.replace(" ", "").startswith("sS|uP:a>b")
    assert "system" not in report.unread


def test_system_and_history_go_before_the_prompt_once(tmp_path: Path) -> None:
    history = turns("Q", "x")
    rows: list[Any] = [
        {**PAIR, "prompt": turns("Q", "x", "P"), "history": history},
        {**PAIR, "history": [["Q", "x"]], "system": "S"},
        {**PAIR, "history": "Human: Q\n\nAssistant: x", "tools": "[]"},
        {**PAIR, "history": '[["Q", "x"]]', "system": ""},
        {**PAIR, "prompt": [{"role": "system", "content": "S"}, *turns("P")], "system": "S"},
    ]
    assert converted(tmp_path, rows)[0] == [
        "u Q | a x | u P: a > b",
        "s S | u Q | a x | u P: a > b",
        "u Q | a x | u P: a > b",
        "u Q | a x | u P: a > b",
        "s S | u P: a > b",
    ]


LABEL_STUDIO = studio(ranker({"rank": ["x", "y"]}))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**PAIR, "tools": [{"name": "w"}]}, "row: has 'tools', tools or calls of tools"),
        ({**PAIR, "Images": ["cat.png"]}, "row: has 'Images', images, audio or video"),
        ({**PAIR, "documents": [{"text": "d"}]}, "row: has 'documents', a text that the answer"),
        ({**PAIR, "context": "The note says 5."}, "row: has 'context', a text that the answer"),
        (
            {**PAIR, "chat_template_kwargs": {"enable_thinking": False}},
            "row: has 'chat_template_kwargs', arguments of the chat template",
        ),
        ({**PAIR, "question": "Q"}, "row: has 'question', a part of the prompt"),
        ({**PAIR, "input": "Q"}, "row: has 'input', a part of the prompt"),
        ({**PAIR, "history": [["a"]]}, "history[0]: must be a question and its answer"),
        ({**PAIR, "history": "before"}, "history: is a text, but neither a transcript nor JSON"),
        (
            {**PAIR, "prompt": turns("Q", "x", "P"), "history": [["R", "y"]]},
            "history: is given beside a prompt that has earlier turns",
        ),
        (
            {**PAIR, "system": "S", "prompt": [{"role": "system", "content": "T"}, *turns("P")]},
            "prompt: has another system message",
        ),
        (
            {**PAIR, "system": "S", "system_prompt": "T"},
            "system_prompt: is a second system message",
        ),
        (
            {**PAIR, "prompt": [{**turns("P")[0], "name": "Ada"}]},
            "prompt[0]: has 'name', the name of a speaker",
        ),
        (
            {**PAIR, "chosen": [{"role": "assistant", "content": "", "refusal": "No."}]},
            "chosen[0]: has refusal, a refusal beside the answer, and no content",
        ),
        (
            {
                **PAIR,
                "chosen": [{"role": "assistant", "content": None, "function_call": {"name": "w"}}],
            },
            "chosen[0]: has function_call, tools or calls of tools, and no content",
        ),
        (
            {**PAIR, "prompt": json.dumps([{**turns("P")[0], "tool_calls": [1]}])},
            "prompt[0]: has 'tool_calls', tools or calls of tools",
        ),
        (
            {**PAIR, "history": [{**turns("Q")[0], "name": "Ada"}, turns("", "x")[1]]},
            "history[0]: has 'name', the name of a speaker",
        ),
        (
            {**PAIR, "prompt": [{"from": "function_call", "value": "{}"}]},
            "prompt[0].from: is function_call, a call of a tool",
        ),
        (
            {"prompt": "P", "responses": [{"text": "a", "rank": 1, "reasoning_content": "r"}]},
            "responses[0]: has 'reasoning_content', reasoning beside the answer",
        ),
        (
            {**LABEL_STUDIO, "data": {**LABEL_STUDIO["data"], "context": {"note": "5"}}},
            "data: has 'context', a text that the answer",
        ),
        (
            '{"prompt": "P", "chosen": "a", "rejected": "b", "prompt": "Q"}',
            "row: an object has the key",
        ),
    ],
)
def test_what_changes_the_conversation_is_refused(tmp_path: Path, row: Any, problem: str) -> None:
    _, report = converted(tmp_path, [row], skip_bad=True)
    assert report.first_unreadable.startswith(f"{tmp_path / 'rows.jsonl'}:1: {problem}")


def test_all_columns_to_ignore_are_named_at_once(tmp_path: Path) -> None:
    _, report = converted(tmp_path, [{**PAIR, "tools": "t", "context": "c"}], skip_bad=True)
    assert report.first_unreadable.endswith("--ignore-columns tools context")


def test_a_refused_column_is_read_over_on_demand_and_counted(tmp_path: Path) -> None:
    rankings, report = converted(tmp_path, [{**PAIR, "tools": "t"}], ignore_columns=("tools",))
    assert rankings == ["P: a > b"] and report.unread == {"tools": 1}


def test_a_column_that_repeats_the_conversation_is_only_counted(tmp_path: Path) -> None:
    row = {**PAIR, "messages": turns("P", "a"), "question": "P", "images": [], "tools": None}
    rankings, report = converted(tmp_path, [row])
    assert rankings == ["P: a > b"] and report.unread == {"messages": 1, "question": 1}
    question = "Why is the sky blue?"
    repeated = {
        "prompt": question,
        "messages": turns(question, f"{question} Air."),
        "chosen": turns(question, f"{question} Air."),
        "rejected": turns(question, f"{question} Paint."),
    }
    assert converted(tmp_path, [repeated])[0] == [f"{question}: Air. > Paint."]


def test_names_of_roles_are_translated_and_counted(tmp_path: Path) -> None:
    sides = {
        key: [{"role": "Human", "content": "P"}, {"role": "gpt", "content": key}]
        for key in ("chosen", "rejected")
    }
    rankings, report = converted(tmp_path, [sides])
    assert rankings == ["P: chosen > rejected"]
    assert report.notes == {"role 'Human' is read as user": 2, "role 'gpt' is read as assistant": 2}
    narrated = {**PAIR, "prompt": [{"role": "narrator", "content": "N"}, *turns("P")]}
    rankings, report = converted(tmp_path, [narrated])
    assert rankings == ["n N | u P: a > b"]
    assert "role 'narrator' is not a usual one" in next(iter(report.notes))


def test_completions_with_contradicting_scores_are_left_out(tmp_path: Path) -> None:
    completions = [
        {"response": text, "overall_score": overall, "fine-grained_score": fine}
        for text, overall, fine in (
            ("a", 10.0, 1.25),
            ("b", 8.0, 4.75),
            ("c", 6, 3),
            ("d", 1, None),
        )
    ]
    row = {"instruction": "P", "completions": completions}
    rankings, report = converted(tmp_path, [row])
    assert rankings == ["P: b (8) > c (6) > d (1)"]
    [(what, reason)] = report.skipped
    assert what == "response" and reason.startswith("overall_score contradicts fine-grained_score")
    by_other = converted(tmp_path, [row], score_column="fine-grained_score")[0]
    assert by_other == ["P: b (4.75) > c (3) > a (1.25)"]


def test_scores_of_columns_that_contradict_each_other_are_dropped(tmp_path: Path) -> None:
    row = {**PAIR, "score_chosen": 9, "score_rejected": 2, "rating_chosen": 1, "rating_rejected": 3}
    rankings, report = converted(tmp_path, [row])
    assert rankings == ["P: a > b"]
    assert next(iter(report.notes)).startswith("columns of scores contradict each other")


def test_ratings_show_a_wrong_overall_score_too(tmp_path: Path) -> None:
    completions = [
        {"response": text, "overall_score": 10, "annotations": {"x": {"Rating": r}, "y": {}}}
        for text, r in (("a", "1"), ("b", "5"), ("c", "N/A"))
    ]
    rankings, report = converted(
        tmp_path, [{"instruction": "P", "completions": completions}], keep_tied=True
    )
    assert rankings == ["P: b = c (10)"] and sum(report.skipped.values()) == 1


def test_ranks_that_contradict_scores_are_counted(tmp_path: Path) -> None:
    completions = [{"text": t, "rank": i, "score": i} for i, t in ((1, "a"), (2, "b"))]
    rankings, report = converted(tmp_path, [{"prompt": "P", "completions": completions}])
    assert rankings == ["P: b (2) > a (1)"] and report.unread == {"completions[].rank": 2}
    assert report.notes == {"score and rank contradict each other: score is used": 1}


def test_each_row_is_read_by_its_own_format(tmp_path: Path) -> None:
    """Neither the first row nor an odd one decides how another is read."""
    rows: list[Any] = [
        {"chosen": "\n\nHuman: P\n\nAssistant: a", "rejected": "\n\nHuman: P\n\nAssistant: b"},
        {"chosen": "Q is a.", "rejected": "Q is b."},
        PAIR,
        {"prompt": "P", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]},
    ]
    for order in (rows, rows[::-1]):
        rankings, report = converted(tmp_path, order)
        assert sorted(rankings) == ["P: a > b", "P: a > b", "P: b (2) > a (1)", "Q is:  a. >  b."]
        assert report.lines()[0].startswith("trl (2 rows), ")
        assert report.lines()[0].endswith("(1 rows): 4 rows read, 4 rankings written")


def test_a_row_that_has_no_effect_for_an_option_is_refused(tmp_path: Path) -> None:
    rows = [{"instruction": "P", "completions": [{"response": "a", "x": 1}]}, PAIR]
    with pytest.raises(RankingsError, match=r":2: row: --score-column has no effect on .* trl"):
        converted(tmp_path, rows, score_column="x")
