"""Texts that are messages, templated text or a transcript are read as turns, with a note."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.train.data.read import read_rankings
from kwise.train.data.rows.words import is_between_words
from tests.train.data.format_rows import converted, turns

CHATML = "<|im_start|>{}\n{}<|im_end|>\n"
LLAMA3 = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
GEMMA = "<start_of_turn>{}\n{}<end_of_turn>\n"
ZEPHYR = "<|{}|>\n{}</s>\n"


def written(template: str, *contents: str) -> str:
    return "".join(template.format(m["role"], m["content"]) for m in turns(*contents))


def pair(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("row", "note"),
    [
        *(
            (
                pair(written(t, "P", "x", "Q") + t.format("assistant", "")[:-cut], "a", "b"),
                "prompt is a text in ",
            )
            for t, cut in ((CHATML, 11), (LLAMA3, 10), (GEMMA, 14), (ZEPHYR, 5))
        ),
        (
            pair("<|prompter|>P<|endoftext|><|assistant|>x<|endoftext|><|prompter|>Q", "a", "b"),
            "prompt is a text in OpenAssistant's template",
        ),
        (
            pair(
                "<｜begin▁of▁sentence｜><｜User｜>P<｜Assistant｜>x<｜User｜>Q<｜Assistant｜>",
                "a",
                "b",
            ),
            "prompt is a text in DeepSeek's template",
        ),
        *(
            (pair(prompt, "a", "b"), "prompt is a transcript")
            for prompt in (
                "### Human: P### Assistant: x### Human: Q### Assistant:",
                "USER: P ASSISTANT: x</s>USER: Q ASSISTANT:",
                "用户：P\n助手：x\n用户：Q\n助手：",
            )
        ),
        (
            {
                k: "<s>[INST] P [/INST] x</s><s>[INST] Q [/INST] " + t
                for k, t in (("chosen", "a</s>"), ("rejected", "b"))
            },
            "chosen is a text in Llama 2's template",
        ),
        (
            {k: written(CHATML, "P", "x", "Q", t) for k, t in (("chosen", "a"), ("rejected", "b"))},
            "chosen is a text in ChatML",
        ),
        (
            pair(
                written(CHATML, "P", "x", "Q"), *(written(CHATML, "P", "x", "Q", t) for t in "ab")
            ),
            "prompt is a text in ChatML",
        ),
        (pair(json.dumps(turns("P", "x", "Q")), "a", "b"), "prompt is messages in a text"),
        (pair(str(turns("P", "x", "Q")), "a", "b"), "prompt is messages in a text"),
        (
            pair(str(turns("P", "x", "Q")).replace("}, {", "}\n {"), "a", "b"),
            "prompt is messages in a text",
        ),
        (
            {
                k: json.dumps(turns("P", "x", "Q", t))
                for k, t in (("chosen", "a"), ("rejected", "b"))
            },
            "chosen is messages in a text",
        ),
        (
            pair("Human: P\nAssistant: x\nHuman: Q\nAssistant:", "a", "b"),
            "prompt is a transcript",
        ),
        (pair("User: P\nAssistant: x\nUser: Q\nAssistant:", "a", "b"), "prompt is a transcript"),
        (
            {"prompt": "User: P\n\nAssistant: x\n\nUser: Q", "ranking": ["a", "b"]},
            "prompt is a transcript",
        ),
        (
            pair(turns("P", "x", "Q"), *(json.dumps([turns("", t)[1]]) for t in "ab")),
            "chosen is messages in a text",
        ),
        (
            {
                "prompt": turns("P", "x", "Q"),
                "ranking": [json.dumps([turns("", t)[1]]) for t in "ab"],
            },
            "the responses are messages or transcripts in texts",
        ),
        (
            pair(turns("P", "x", "Q"), "a<|im_end|>", "b</s>"),
            "a response ends with a marker of a chat template",
        ),
        (
            {"prompt": turns("P", "x", "Q"), "ranking": ["Assistant: a", "Assistant: b"]},
            "the responses begin with 'Assistant:'",
        ),
    ],
)
def test_a_text_is_read_as_what_its_shape_shows(
    tmp_path: Path, row: dict[str, Any], note: str
) -> None:
    rankings, report = converted(tmp_path, [row])
    assert rankings == ["u P | a x | u Q: a > b"]
    assert not note or any(remark.startswith(note) for remark in report.notes)


def test_a_ranking_of_kwises_own_schema_is_read_so_too(tmp_path: Path) -> None:
    responses = [{"text": t, "rank": i} for i, t in enumerate(("a</s>", "b</s>"), start=1)]
    row = {"prompt": written(CHATML, "P"), "responses": responses, "id": 1}
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps(row) + "\n")
    lines: list[str] = []
    [ranking] = read_rankings(path, progress=lines.append)
    assert (ranking.prompt[0].content, ranking.responses) == ("P", ("a", "b"))
    assert len(lines) == 2 and "prompt is a text in ChatML: it is read as turns" in lines[1]


def test_alpacas_template_is_taken_off(tmp_path: Path) -> None:
    prompt = (
        "Below is an instruction that describes a task. Write a response.\n\n"
        "### Instruction:\nTranslate.\n\n### Input:\nGood day\n\n### Response:\n"
    )
    assert converted(tmp_path, [pair(prompt, "a", "b")])[0] == ["Translate.\n\nGood day: a > b"]


def test_a_marker_of_which_the_prompt_speaks_stays(tmp_path: Path) -> None:
    row = pair("Is it <|im_end|> or </s>?", "It is <|im_end|>", "It is </s>")
    [ranking], report = converted(tmp_path, [row])
    assert ranking.endswith(": It is <|im_end|> > It is </s>") and not report.notes


@pytest.mark.parametrize(
    "row",
    [
        pair("Which token ends a sequence of Llama 2?", "It is </s>", "It is <|endoftext|>"),
        pair("How does it end?", "So: </s>", "So: <eos>"),
        pair("Write a play.", "Assistant: A.\nBob: B.\nAssistant: C.", "Assistant: A.\nBob: C."),
        pair("Write a line for the assistant.", "Assistant: A", "Assistant: B"),
        pair("List the number 1", "List the number 10", "List the number 100"),
    ],
)
def test_an_answer_that_only_looks_like_a_residue_stays(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    """Such answers lost their beginning or end; two of the pairs were then said to be the same."""
    expected = [f"{row['prompt']}: {row['chosen']} > {row['rejected']}"]
    assert converted(tmp_path, [row])[0] == expected
    ranking = {"prompt": row["prompt"], "ranking": [row["chosen"], row["rejected"]]}
    assert converted(tmp_path, [ranking])[0] == expected


def test_a_prompt_that_all_responses_repeat_is_removed(tmp_path: Path) -> None:
    question = "Why is the sky blue?"
    repeated = pair(question, f"{question} Air.", f"{question}\nPaint.")
    quoted = pair(question, f"{question} Air.", "Paint.")
    rankings, report = converted(tmp_path, [repeated, quoted, pair("Hi", "Hi there", "Hi!")])
    assert rankings == [
        f"{question}: Air. > Paint.",
        f"{question}: {question} Air. > Paint.",
        "Hi: Hi there > Hi!",
    ]
    assert report.notes == {
        "the responses begin with the text of the prompt, which is removed (see --keep-prompt)": 1,
        "a response begins with the text of the prompt: kept as it is": 1,
    }
    rankings, report = converted(tmp_path, [repeated], keep_prompt=True)
    assert rankings == [f"{question}: {question} Air. > {question}\nPaint."]


def test_the_indentation_of_code_stays_when_the_prompt_is_removed(tmp_path: Path) -> None:
    prompt = "def double(x):"
    rows = [pair(prompt, f"{prompt}\n    return 2 * x", f"{prompt}\n    pass")]
    assert converted(tmp_path, rows)[0] == [f"{prompt}:     return 2 * x >     pass"]
    texts = [response["text"] for response in own_ranking(rows[0])["responses"]]
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps(own_ranking(rows[0])) + "\n")
    lines: list[str] = []
    assert [r.responses for r in read_rankings(path, progress=lines.append)] == [tuple(texts)]
    assert len(lines) == 1 and lines[0].endswith(
        "a response begins with the text of the prompt: kept as it is"
    )


def own_ranking(row: dict[str, Any]) -> dict[str, Any]:
    """Return a pair in kwise's own format."""
    texts = (row["chosen"], row["rejected"])
    responses = [{"text": text, "rank": rank} for rank, text in enumerate(texts, start=1)]
    return {"prompt": row["prompt"], "responses": responses}


@pytest.mark.parametrize(
    "text",
    [
        "What does <|im_start|> mean?",
        '{"role": "admin", "from": 3}',
        "Human: is this a transcript?",
        "<s>struck</s>",
        "[1, 2]",
        "### Instruction: none",
        "User: root\nShell: bash",
        '[{"role": "user"}]',
    ],
)
def test_other_texts_stay_as_they_are(tmp_path: Path, text: str) -> None:
    rankings, report = converted(tmp_path, [{"prompt": "P", "ranking": [text, "b"]}])
    assert rankings == [f"P: {text} > b"] and not report.notes
    if "role" not in text or "admin" in text:
        rankings, report = converted(tmp_path, [{"prompt": text, "ranking": ["a", "b"]}])
        assert rankings == [f"{text}: a > b"] and not report.notes


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (pair("<|im_start|>user P", "a", "b"), "prompt: begins with a marker of a chat template"),
        (
            pair("<|start|>user<|message|>P<|end|>", "a", "b"),
            "prompt: begins with a marker of a chat template",
        ),
        (
            {"prompt": "P", "ranking": [written(CHATML, "Q", "a"), "b"]},
            "responses[0]: is in ChatML, but is not one answer to the prompt",
        ),
        (
            {"prompt": "P", "ranking": ["<|im_start|>assistant\n<|im_end|>", "b"]},
            "responses[0]: is in ChatML, but is not one answer to the prompt",
        ),
        (
            pair(str(turns("P"))[:-2] + "]", "a", "b"),
            "prompt: looks like a list of messages in a text, but is neither JSON nor Python's",
        ),
        (
            pair("P", json.dumps(turns("P", "a")), "b"),
            "rejected: differs from chosen in type",
        ),
    ],
)
def test_a_text_that_only_begins_like_turns_is_refused(
    tmp_path: Path, row: dict[str, Any], problem: str
) -> None:
    _, report = converted(tmp_path, [row], skip_bad=True)
    assert report.first_unreadable.startswith(f"{tmp_path / 'rows.jsonl'}:1: {problem}")


def test_words_end_at_white_space_and_in_some_scripts_anywhere() -> None:
    assert [i for i in range(6) if is_between_words("ab cd", i)] == [3]
    assert [i for i in range(5) if is_between_words("天空是a", i)] == [1, 2, 3]
    assert not is_between_words("\u0e01\u0e34", 1)  # a vowel sign of Thai stays with its letter
