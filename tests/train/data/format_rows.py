"""Builders of small rows in the shapes of the formats, and their conversion."""

import json
from pathlib import Path
from typing import Any

from kwise.train.data.convert.convert import convert
from kwise.train.data.convert.json_line import json_line
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.convert.report import ConversionReport

USER, ASSISTANT = "user", "assistant"


def turns(*contents: str) -> list[dict[str, str]]:
    """Return messages, alternately of the user and the assistant."""
    return [
        {"role": (USER, ASSISTANT)[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]


def converted(
    tmp_path: Path, rows: list[Any], **options: Any
) -> tuple[list[str], ConversionReport]:
    """Return (each ranking as "prompt: best > tied = tied", report)."""
    path = tmp_path / "rows.jsonl"
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(content, encoding="utf-8")
    report = ConversionReport()
    config = ConvertConfig(input=(str(path),), **options)
    lines = [json_line(ranked.row) for ranked in convert(config, report)]
    return [shown(json.loads(line)) for line in lines], report


def shown(ranking: dict[str, Any]) -> str:
    prompt = ranking["prompt"]
    if not isinstance(prompt, str):
        prompt = " | ".join(f"{turn['role'][0]} {turn['content']}" for turn in prompt)
    by_label: dict[float, list[str]] = {}
    for response in ranking["responses"]:
        by_label.setdefault(response.get("rank", -response.get("score", 0)), []).append(
            response["text"]
        )
    is_scored = "score" in ranking["responses"][0]
    order = " > ".join(
        " = ".join(sorted(texts)) + (f" ({-label:g})" if is_scored else "")
        for label, texts in sorted(by_label.items())
    )
    return f"{prompt}: {order}"


def ranker(order: Any, **more: Any) -> dict[str, Any]:
    return {
        "result": [
            {"from_name": "rank", "to_name": "list", "type": "ranker", "value": {"ranker": order}}
        ],
        **more,
    }


def studio(*annotations: dict[str, Any]) -> dict[str, Any]:
    items = [
        {"id": "x", "title": "X", "body": "ex"},
        {"id": "y", "title": "why"},
        {"id": "z", "title": "Z", "body": "zed"},
    ]
    return {"id": 1, "data": {"prompt": "P", "items": items}, "annotations": list(annotations)}


def pairwise(selected: str, to_name: str, **fields: str) -> dict[str, Any]:
    """Return a task of Label Studio in which one annotator has compared two fields."""
    result = {
        "from_name": "pw",
        "to_name": to_name,
        "type": "pairwise",
        "value": {"selected": selected},
    }
    return {"id": 1, "data": {"prompt": "P", **fields}, "annotations": [{"result": [result]}]}


def scored(text: str, score: Any) -> dict[str, Any]:
    return {"text": text, "score": score}


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
POST = {
    "id": "t3_a",
    "post": "I did it.",
    "title": "Me",
    "subreddit": "tifu",
    "site": None,
    "article": None,
}
ARGILLA_FIELDS = {"prompt": "P", "reply-1": "one", "reply-2": "two", "reply-3": "three"}


def summary(
    better: str, worse: str, worker: str | None = "w1", post: dict[str, Any] = POST
) -> dict[str, Any]:
    texts = [{"text": f" {text}", "policy": "sup1", "note": "ok"} for text in (worse, better)]
    return {
        "info": post,
        "summaries": texts,
        "choice": 1,
        "worker": worker,
        "batch": "b",
        "split": "train",
        "extra": {},
    }


def answered(question: str, **fields: str | None) -> dict[str, Any]:
    """Return a record of Argilla 2 in which one annotator has answered `question`."""
    return {
        "fields": {**ARGILLA_FIELDS, **fields},
        "responses": {question: [{"value": ["reply-2", "reply-1", "reply-3"]}]},
    }


def battle(a: str, b: str, winner: str, judge: str = "j1", prompt: str = "P") -> dict[str, Any]:
    return {
        "question_id": 81,
        "model_a": "m",
        "model_b": "n",
        "winner": winner,
        "judge": judge,
        "conversation_a": turns(prompt, a),
        "conversation_b": turns(prompt, b),
        "turn": 1,
    }


def battle_55k(prompts: Any, a: Any, b: Any, winner: str = "model_a") -> dict[str, Any]:
    """Return a row of Kaggle's arena: lists with one text per turn, written as JSON."""
    texts = {
        "prompt": json.dumps(prompts),
        "response_a": json.dumps(a),
        "response_b": json.dumps(b),
    }
    return {
        "id": 1,
        "model_a": "m",
        **texts,
        **{f"winner_{w}": int(w == winner) for w in ("model_a", "model_b", "tie")},
    }


def parts(*texts: str) -> list[dict[str, Any]]:
    """Return content in the form of OpenAI's API, with the null images that Arrow adds."""
    return [{"type": "text", "text": text, "image": None} for text in texts]


TLDR = "SUBREDDIT: r/tifu\n\nTITLE: Me\n\nPOST: I did it.\n\nTL;DR:"
