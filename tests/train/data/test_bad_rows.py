"""Rows that cannot be read: the message names file, row, field and problem."""

from pathlib import Path
from typing import Any

import pytest

from kwise.train.data.formats.table import detect
from tests.train.data.format_rows import (
    ARGILLA_FIELDS,
    ASSISTANT,
    HH,
    USER,
    battle,
    battle_55k,
    converted,
    parts,
    ranker,
    studio,
    summary,
    turns,
)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"chosen": f"{HH} a", "rejected": "b"},
            "rejected: differs from chosen in type: one is a text, the other has turns",
        ),
        (
            {"chosen": "It is.", "rejected": "That is."},
            "chosen: has no beginning in common with rejected",
        ),
        (
            {"chosen": "\n\nHuman: P\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: a"},
            "chosen: has no turn in common",
        ),
        (
            {"question": "P", "chosen": "It is", "rejected": "It is no"},
            "row: has no 'prompt', but 'question'; if that is the prompt",
        ),
        (
            {"steps": turns("P"), "chosen": "It is", "rejected": "It is no"},
            "row: has no 'prompt', but 'steps'; if that is the prompt",
        ),
        ({"prompt": "P", "chosen": "a", "rejected": None}, "row: has no 'rejected'"),
        (
            {"prompt": "P", "chosen": "a", "rejected": turns("b")},
            "rejected: differs from chosen in type",
        ),
        (
            {
                "prompt": "P",
                "chosen": [{"role": ASSISTANT, "content": None}],
                "rejected": turns("b"),
            },
            "chosen[0]: has no 'content'",
        ),
        (
            {"prompt": "P", "chosen": turns("Q", "a"), "rejected": turns("Q", "b")},
            "chosen: begins neither with the prompt",
        ),
        (
            {
                "prompt": turns("Q", "x", "P"),
                "chosen": turns("P", "a"),
                "rejected": turns("P", "b"),
            },
            "chosen: begins neither with the prompt",
        ),
        (
            {
                "prompt": "P",
                "chosen": "a",
                "rejected": "b",
                "score_chosen": "x",
                "score_rejected": 1,
            },
            "score_chosen: is a string that is not a number",
        ),
        (
            {
                "chosen": [{**turns("P")[0], "tool_calls": [1]}, turns("", "a")[1]],
                "rejected": turns("P", "b"),
            },
            "chosen[0]: has 'tool_calls', tools or calls of tools, which kwise cannot use here",
        ),
        (
            {
                "chosen": [{"role": USER, "content": [*parts("P"), {"type": "image_url"}]}],
                "rejected": turns("P", "b"),
            },
            "chosen[0].content[1].type: is 'image_url'; only text can be read",
        ),
        (
            {
                "chosen": [{"role": USER, "content": [{"type": "text"}]}],
                "rejected": turns("P", "b"),
            },
            "chosen[0].content[0]: has no 'text'",
        ),
        (
            {"instruction": "P", "completions": [{"response": "a", "score": 1}]},
            "completions[0]: has no 'overall_score'",
        ),
        (
            {"instruction": "P", "completions": [{"response": "a", "overall_score": True}]},
            "completions[0].overall_score: must be a number",
        ),
        (
            {"prompt": "\n\nHuman: x", "answers": [{"answer": "a", "rank": 0}]},
            "answers[0].rank: must be an integer of at least 1",
        ),
        ({**summary("a", "b"), "choice": 2}, "choice: must be 0 or 1"),
        ({**summary("a", "b"), "info": {"post": "x"}}, "info: has no 'subreddit'"),
        (battle("a", "b", "model_c"), "winner: must be one of"),
        ({**battle("a", "b", "model_a"), "turn": 0}, "turn: must be an integer of at least 1"),
        (
            {**battle("a", "b", "model_a"), "turn": 2},
            "turn: is 2, but a conversation has only 2 messages",
        ),
        (
            {**battle_55k(["P"], ["a"], ["b"]), "winner_tie": 1},
            "winner_model_a: winner_model_b and winner_tie: one of",
        ),
        (
            battle_55k(["P", "Q"], ["a", "b"], ["a"]),
            "response_b: has 1 turns, but the prompt has 2",
        ),
        (battle_55k(["P"], ["a"], [3]), "response_b[0]: must be a string, not a number"),
        (battle_55k([], [], []), "prompt: must not be empty"),
        (
            {**battle_55k(["P"], ["a"], ["b"]), "prompt": "P"},
            "prompt: not JSON: Expecting value at column 1",
        ),
        (
            {"prompt": "P", "response_1": "a", "response_2": "b", "preference_strength": -100},
            "preference_strength: must be an integer from -3 to 3",
        ),
        (
            {"prompt": "P", "response_1": "a", "response_2": "b", "preference_strength": 0.5},
            "preference_strength: must be an integer from -3 to 3",
        ),
        (studio(ranker({"rank": ["x", "q"]})), "annotations[0].result: has ids that no list"),
        (
            studio(ranker({"best": ["x"], "_": ["y"]})),
            "annotations[0].result.value.ranker: is in buckets (best)",
        ),
        (
            studio(ranker({"relevant": ["x", "y"]})),
            "annotations[0].result.value.ranker: is in buckets (relevant)",
        ),
        (
            studio(ranker({"_": ["x", "y"]})),
            "annotations[0].result.value.ranker: is in buckets (only _)",
        ),
        (
            {
                "fields": {"a": "1", "b": "2", "c": "3", "d": "4"},
                "responses": {"q": [{"value": ["a", "b"]}]},
            },
            "fields: the prompt could be c, d; choose it with --prompt-column",
        ),
        (
            {
                **ARGILLA_FIELDS,
                "q.responses": [["reply-1", "reply-2"], ["reply-2"]],
                "q.responses.status": ["draft"],
            },
            "q.responses.status: has 1 entries for 2 answers",
        ),
        (
            {
                "fields": ARGILLA_FIELDS,
                "responses": {"q": [{"value": ["reply-1"]}], "r": [{"value": ["reply-1"]}]},
            },
            "row: has the rankings q, r; choose one with --question",
        ),
        (
            {
                "prompt": "P",
                "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2, "score": 1}],
            },
            "responses[0]: ranks and scores are mixed in one ranking",
        ),
        (
            {"prompt": "P", "chosen": "\ud800", "rejected": "b"},
            "responses[0].text: has half of a surrogate pair",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_field(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    good = {"prompt": "P", "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1}]}
    _, report = converted(tmp_path, [row, good], skip_bad=True, format=detect(row))
    assert report.first_unreadable.startswith(f"{tmp_path / 'rows.jsonl'}:1: {problem}")
