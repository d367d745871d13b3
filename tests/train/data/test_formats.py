"""Each format, by small rows of its shape that were written for this test: what they mean, and what is wrong with bad ones."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.train.data.convert import ConvertConfig, Merge, convert
from kwise.train.data.formats.scored import vote_score
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.tally import Tally
from kwise.train.rankings.errors import RankingsError

USER, ASSISTANT = "user", "assistant"


def turns(*contents: str) -> list[dict[str, str]]:
    """Messages, the user's and the assistant's in turn."""
    return [
        {"role": (USER, ASSISTANT)[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]


def converted(tmp_path: Path, rows: list[Any], **options: Any) -> tuple[list[str], Tally]:
    """(each ranking as "prompt: best > tied = tied", what was counted)."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tally = Tally()
    lines = list(convert(ConvertConfig(input=(str(path),), **options), tally))
    return [shown(json.loads(line)) for line in lines], tally


def shown(ranking: dict[str, Any]) -> str:
    prompt = ranking["prompt"]
    if not isinstance(prompt, str):
        prompt = " | ".join(f"{turn['role'][0]} {turn['content']}" for turn in prompt)
    by_judgement: dict[float, list[str]] = {}
    for response in ranking["responses"]:
        by_judgement.setdefault(response.get("rank", -response.get("score", 0)), []).append(
            response["text"]
        )
    is_scored = "score" in ranking["responses"][0]
    order = " > ".join(
        " = ".join(sorted(texts)) + (f" ({-judgement:g})" if is_scored else "")
        for judgement, texts in sorted(by_judgement.items())
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
    """A record of Argilla 2 in which one annotator has answered `question`."""
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
    """A row of Kaggle's arena: lists with a text a turn, written as JSON."""
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
    """Content as OpenAI's API has it, with a column for images as Arrow has it."""
    return [{"type": "text", "text": text, "image": None} for text in texts]


TLDR = "SUBREDDIT: r/tifu\n\nTITLE: Me\n\nPOST: I did it.\n\nTL;DR:"

CASES: list[tuple[str, FormatName, list[Any], list[str]]] = [
    (
        "ranks",
        FormatName.KWISE,
        [
            {
                "prompt": turns("P"),
                "responses": [{"text": "a", "rank": 2}, {"text": "b", "rank": 1, "id": 7}],
                "source": "s",
            }
        ],
        ["u P: b > a"],
    ),
    (
        "ranks here and scores there, as Parquet has them",
        FormatName.KWISE,
        [
            {
                "id": None,
                "prompt": "P",
                "responses": [
                    {"text": "a", "rank": 2, "score": None},
                    {"text": "b", "rank": 1, "score": None},
                ],
            },
            {
                "id": "2",
                "prompt": "Q",
                "responses": [
                    {"text": "a", "rank": None, "score": 2},
                    {"text": "b", "rank": None, "score": 3},
                ],
            },
        ],
        ["P: b > a", "Q: b (3) > a (2)"],
    ),
    (
        "scores",
        FormatName.KWISE,
        [{"prompt": "P", "responses": [{"text": "a", "score": 2}, {"text": "b", "score": 3}]}],
        ["P: b (3) > a (2)"],
    ),
    (
        "a shared beginning is the prompt",
        FormatName.HH_RLHF,
        [{"chosen": f"{HH} Because. ", "rejected": f"{HH} No\n\nreason."}],
        ["u Hi | a Hello. | u Why?: Because. > No\n\nreason."],
    ),
    (
        "explicit prompt, texts",
        FormatName.TRL,
        [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}],
        ["The sky is:  blue. >  green."],
    ),
    (
        "explicit prompt, messages",
        FormatName.TRL,
        [
            {
                "prompt": turns("P"),
                "chosen": [{"role": ASSISTANT, "content": "a"}],
                "rejected": [{"role": ASSISTANT, "content": "b"}],
            }
        ],
        ["P: a > b"],
    ),
    (
        "implicit prompt, messages",
        FormatName.TRL,
        [{"chosen": turns("P", "x", "Q", "a"), "rejected": turns("P", "x", "Q", "b")}],
        ["u P | a x | u Q: a > b"],
    ),
    (
        "implicit prompt, texts",
        FormatName.TRL,
        [{"chosen": "The sky is blue.", "rejected": "The sky is black."}],
        ["The sky is:  blue. >  black."],
    ),
    (
        "prompt as a transcript",
        FormatName.TRL,
        [{"prompt": HH, "chosen": " a", "rejected": " b"}],
        ["u Hi | a Hello. | u Why?: a > b"],
    ),
    (
        "prompt as a transcript, and whole transcripts",
        FormatName.TRL,
        [{"prompt": HH, "chosen": f"{HH} a", "rejected": f"{HH} b"}],
        ["u Hi | a Hello. | u Why?: a > b"],
    ),
    (
        "ultrafeedback binarized: a text, and conversations that begin with it; scores",
        FormatName.TRL,
        [
            {
                "prompt": "P",
                "chosen": turns("P", "a"),
                "rejected": turns("P", "b"),
                "score_chosen": 8.5,
                "score_rejected": 4.0,
            },
            {
                "prompt": "Q",
                "chosen": turns("Q", "a"),
                "rejected": turns("Q", "b"),
                "score_chosen": 5.0,
                "score_rejected": 5.0,
            },
        ],
        ["P: a (8.5) > b (4)", "Q: a > b"],
    ),
    (
        "a system message on one side alone",
        FormatName.TRL,
        [
            {
                "prompt": "P",
                **{
                    key: [{"role": "system", "content": "S"}, *turns("P", key)]
                    for key in ("chosen", "rejected")
                },
            },
            {"prompt": "P", "system": "S", "chosen": turns("P", "a"), "rejected": turns("P", "b")},
        ],
        ["s S | u P: chosen > rejected", "s S | u P: a > b"],
    ),
    (
        "a prompt that ends as it begins",
        FormatName.TRL,
        [
            {
                "prompt": turns("Go on.", "one", "Go on."),
                "chosen": turns("Go on.", "one", "Go on.", "a"),
                "rejected": turns("Go on.", "one", "Go on.", "b"),
            }
        ],
        ["u Go on. | a one | u Go on.: a > b"],
    ),
    (
        "completions in which the prompt is said again",
        FormatName.TRL,
        [
            {
                "prompt": turns("P"),
                "chosen": turns("P", "x", "P", "a")[1:],
                "rejected": turns("P", "x", "P", "b")[1:],
            }
        ],
        ["u P | a x | u P: a > b"],
    ),
    (
        "messages by columns, as Arrow has them",
        FormatName.TRL,
        [
            {
                key: {"role": [USER, ASSISTANT], "content": ["P", key]}
                for key in ("chosen", "rejected")
            }
        ],
        ["P: chosen > rejected"],
    ),
    (
        "a margin",
        FormatName.TRL,
        [{"prompt": "P", "chosen": "a", "rejected": "b", "margin": 0.5}],
        ["P: a (0.5) > b (0)"],
    ),
    (
        "overall_score, a number in a text, and none",
        FormatName.ULTRAFEEDBACK,
        [
            {
                "instruction": "P",
                "completions": [
                    {"response": "a", "overall_score": 7.0, "custom_system_prompt": "Be brief."},
                    {"response": "b", "overall_score": "8.5"},
                    {"response": "c", "overall_score": 7},
                    {"response": "d", "overall_score": None},
                ],
            }
        ],
        ["P: b (8.5) > a = c (7)"],
    ),
    (
        "rows of one prompt, wherever they are",
        FormatName.HELPSTEER2,
        [
            {"prompt": "P", "response": "a", "helpfulness": 3, "correctness": 4},
            {
                "prompt": "Q\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nR",
                "response": "c",
                "helpfulness": 0,
                "correctness": 0,
            },
            {"prompt": "P", "response": "b", "helpfulness": 4, "correctness": 1},
            {
                "prompt": "Q\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nR",
                "response": "d",
                "helpfulness": 1,
                "correctness": 0,
            },
        ],
        ["P: b (4) > a (3)", "u Q | a x | u R: d (1) > c (0)"],
    ),
    (
        "answers with ranks",
        FormatName.NECTAR,
        [
            {
                "prompt": "\n\nHuman: P \n\nAssistant: ",
                "answers": [
                    {"answer": text, "model": "m", "rank": rank}
                    for text, rank in (("a", 2.0), ("b", 1.0), ("c", 3.0))
                ],
            }
        ],
        ["P: b > a > c"],
    ),
    (
        "votes and the accepted answer",
        FormatName.STACK_EXCHANGE,
        [
            {
                "qid": 1,
                "question": "<p>P</p>",
                "answers": [
                    {"text": "a", "pm_score": 1, "selected": False},
                    {"text": "b", "pm_score": 4, "selected": True},
                ],
            }
        ],
        ["<p>P</p>: b (4) > a (1)"],
    ),
    (
        "a pair",
        FormatName.STACK_EXCHANGE_PAIRED,
        [{"qid": 1, "question": "P", "response_j": "a", "response_k": "b"}],
        ["P: a > b"],
    ),
    (
        "votes of the API",
        FormatName.STACK_EXCHANGE_API,
        [
            {
                "title": "T",
                "body": "<p>B</p>",
                "body_markdown": "B",
                "answers": [
                    {"body": "a", "score": 7, "is_accepted": False},
                    {"body": "b", "score": 7, "is_accepted": True},
                    {"body": "c", "score": -2, "is_accepted": False},
                ],
            }
        ],
        ["T\n\nB: b (4) > a (3) > c (-1)"],
    ),
    (
        "comparisons of one worker make a ranking, those of another worker another",
        FormatName.SUMMARIZE,
        [summary("a", "b"), summary("b", "a", worker="w2"), summary("b", "c")],
        [f"{TLDR}: a > b > c", f"{TLDR}: b > a"],
    ),
    (
        "workers without a name may be several; a choice out of a column of floats",
        FormatName.SUMMARIZE,
        [summary("a", "b", worker=None), {**summary("b", "c", worker=None), "choice": 1.0}],
        [f"{TLDR}: a > b", f"{TLDR}: b > c"],
    ),
    (
        "news",
        FormatName.SUMMARIZE,
        [summary("a", "b", post={"id": "c", "article": "Rain fell.", "post": None})],
        ["Article:\n\nRain fell.\n\nTL;DR:: a > b"],
    ),
    (
        "battles of one judge",
        FormatName.ARENA,
        [
            battle("a", "b", "model_a"),
            battle("c", "b", "tie (bothbad)"),
            battle("d", "a", "model_b"),
            battle("d", "b", "model_b", judge="j2"),
        ],
        [
            "P: a > b = c",
            "P: a > d",
            "P: b > d",
        ],  # d and b are not compared by j1, so a > b = c and a > d stay apart
    ),
    (
        "LMArena: content in parts, and a tie by another name",
        FormatName.ARENA,
        [
            {
                **battle("a", "b", winner),
                "conversation_a": [
                    {"role": USER, "content": parts("P")},
                    {"role": ASSISTANT, "content": parts("a ", " one")},
                ],
                "conversation_b": [
                    {"role": USER, "content": parts("P")},
                    {"role": ASSISTANT, "content": parts("b")},
                ],
            }
            for winner in ("model_b", "both_bad")
        ],
        ["P: b > a  one", "P: a  one = b"],  # one judge who contradicts himself
    ),
    (
        "Kaggle: a text a turn, of which the last alone may differ",
        FormatName.ARENA,
        [
            battle_55k(["P"], ["a"], ["b"], "model_b"),
            battle_55k(["P", "Q"], ["x", "a"], ["x", "b"]),
            battle_55k(["P"], ["a"], ["b"], "tie"),
        ],
        ["P: b > a", "u P | a x | u Q: a > b", "P: a = b"],
    ),
    (
        "HelpSteer2: the strength is a margin, and its sign says who is better",
        FormatName.HELPSTEER_PREFERENCE,
        [
            {
                "prompt": prompt,
                "response_1": "a",
                "response_2": "b",
                "preference_strength": strength,
                "split": "train",
            }
            for prompt, strength in (
                ("P", -3),
                ("P", 1),
                ("Q\n<extra_id_1>Assistant\nx\n<extra_id_1>User\nR", 0),
            )
        ],
        ["P: a (3) > b (0)", "P: b (1) > a (0)", "u Q | a x | u R: a = b"],
    ),
    (
        "HelpSteer3: the same with messages",
        FormatName.HELPSTEER_PREFERENCE,
        [
            {
                "domain": "code",
                "context": turns("P", "x", "Q"),
                "response1": "a",
                "response2": "b",
                "overall_preference": 2,
            }
        ],
        ["u P | a x | u Q: b (2) > a (0)"],
    ),
    (
        "MT-bench: both turns in every row, one of them judged",
        FormatName.ARENA,
        [
            {
                **battle("", "", "model_a"),
                "conversation_a": turns("P", "a", "Q", "x"),
                "conversation_b": turns("P", "b", "Q", "y"),
            },
            {
                **battle("", "", "model_b"),
                "conversation_a": turns("P", "x", "Q", "a"),
                "conversation_b": turns("P", "x", "Q", "b"),
                "turn": 2.0,
            },
        ],
        ["P: a > b", "u P | a x | u Q: b > a"],
    ),
    (
        "Argilla 1, JSON: a row an annotator, drafts left out",
        FormatName.ARGILLA,
        [
            {
                "fields": ARGILLA_FIELDS,
                "responses": [
                    {
                        "user_id": user,
                        "status": status,
                        "values": {
                            "why": {"value": "Because."},
                            "preference": {
                                "value": [
                                    {"value": f"reply-{i}", "rank": rank}
                                    for i, rank in enumerate(ranks, start=1)
                                ]
                            },
                        },
                    }
                    for user, status, ranks in (
                        ("u1", "submitted", (2, 1, 2)),
                        ("u2", "draft", (1, 2, 3)),
                        ("u3", "submitted", (1, 2, 3)),
                    )
                ],
            }
        ],
        ["P: two > one = three", "P: one > two > three"],
    ),
    (
        "Argilla 1, Hub: lists of ranks and values",
        FormatName.ARGILLA,
        [
            {
                **ARGILLA_FIELDS,
                "preference": [
                    {
                        "user_id": "u1",
                        "value": {"rank": [2, 1], "value": ["reply-1", "reply-3"]},
                        "status": "submitted",
                    }
                ],
                "preference-suggestion": {"rank": [1], "value": ["reply-2"]},
                "external_id": "17",
                "metadata": "{}",
            }
        ],
        ["P: three > one"],
    ),
    (
        "Argilla 2, nested: options in order",
        FormatName.ARGILLA,
        [
            {
                "id": "1",
                "fields": ARGILLA_FIELDS,
                "responses": {
                    "rank": [{"value": ["Reply 3", "Reply 1", "Reply 2"], "user_id": "u"}]
                },
            }
        ],
        ["P: three > one > two"],
    ),
    (
        "Argilla 2, flat",
        FormatName.ARGILLA,
        [
            {
                "id": "1",
                "status": "completed",
                **ARGILLA_FIELDS,
                "rank.responses": [["reply-2", "reply-1"], ["reply-1", "reply-2"]],
                "rank.responses.users": ["u1", "u2"],
                "rank.responses.status": ["submitted", "discarded"],
            }
        ],
        ["P: two > one"],
    ),
    (
        "Label Studio: a row an annotation, cancelled ones left out",
        FormatName.LABEL_STUDIO,
        [
            studio(
                ranker({"rank": ["y", "x", "z"]}),
                ranker(["z", "y"]),
                ranker({"rank": ["x", "y"]}, was_cancelled=True),
            )
        ],
        ["P: why > ex > zed", "P: zed > why"],
    ),
]


@pytest.mark.parametrize(
    ("format_name", "rows", "expected"),
    [case[1:] for case in CASES],
    ids=[f"{c[1].value}: {c[0]}" for c in CASES],
)
def test_rows_of_each_format_mean_their_rankings(
    tmp_path: Path, format_name: FormatName, rows: list[Any], expected: list[str]
) -> None:
    rankings, tally = converted(tmp_path, rows, keep_tied=True)
    assert rankings == expected
    assert tally.format is format_name


def test_every_format_has_a_case() -> None:
    assert {case[1] for case in CASES} == set(FormatName) == set(FORMATS)
    assert detect({"text": "a"}) is None


@st.composite
def _spoilt(draw: Any) -> tuple[FormatName, Any]:
    """A row of some format with one value, at any depth, replaced or taken away."""
    _, name, rows, _ = draw(st.sampled_from(CASES))
    row = json.loads(json.dumps(draw(st.sampled_from(rows))))
    place: Any = None
    key: Any = None
    value: Any = row
    while isinstance(value, dict | list) and value and (place is None or draw(st.booleans())):
        place, key = (
            value,
            draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value)))),
        )
        value = place[key]
    if draw(st.booleans()):
        del place[key]
    else:
        place[key] = draw(ANYTHING)
    return name, row


ANYTHING = st.recursive(
    st.sampled_from(
        [
            None,
            True,
            0,
            -1,
            1.0,
            2,
            1.5,
            float("nan"),
            float("inf"),
            10**400,
            "",
            "a",
            "1",
            "x" * 50,
            "\ud800",
            "reply-1",
            "submitted",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["role", "content", "rank", "value", "text", "id", "user_id"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)


@settings(max_examples=300)
@given(_spoilt())
def test_a_spoilt_row_is_a_problem_or_counted_or_still_a_ranking_and_never_a_crash(
    spoilt: tuple[FormatName, Any],
) -> None:
    name, row = spoilt
    with TemporaryDirectory() as directory:
        rankings, tally = converted(Path(directory), [row, row], format=name, skip_bad=True)
    assert tally.num_rows == 2
    assert (
        rankings or tally.left
    )  # `convert` has passed each line through the check of `kwise train`


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        (
            [{"chosen": f"{HH} a", "rejected": f"{HH} a"}],
            {("row", "chosen and rejected are the same"): 1},
        ),
        (
            [
                {
                    "chosen": "\n\nHuman: P\n\nAssistant: a\n\nHuman: Q\n\nAssistant: b",
                    "rejected": "\n\nHuman: P\n\nAssistant: c",
                }
            ],
            {
                (
                    "row",
                    "the two conversations part before the last turn, and a response is one turn",
                ): 1
            },
        ),
        ([{"instruction": "P", "completions": []}], {("ranking", "fewer than two responses"): 1}),
        (
            [battle("a", "b", "tie")],
            {("ranking", "all responses are tied (--keep-tied writes them)"): 1},
        ),
        ([battle("a", "a", "model_a")], {("row", "both responses are the same"): 1}),
        (
            [battle("a", "b", "both_bad")],
            {("ranking", "all responses are tied (--keep-tied writes them)"): 1},
        ),
        (
            [battle_55k(["P", "Q"], ["x", "a"], ["y", "b"])],
            {
                (
                    "row",
                    "the two conversations part before the last turn, and a response is one turn",
                ): 1
            },
        ),
        ([battle_55k(["P"], [None], ["b"])], {("row", "a turn of it has no text"): 1}),
        (
            [battle_55k(["P"], ["a\ud83d"], ["b"])],
            {("row", "a turn of it has half of a surrogate pair"): 1},
        ),
        ([battle_55k(["P"], ["a"], ["a"])], {("row", "both responses are the same"): 1}),
        (
            [
                {
                    "chosen": turns("P", "x", "Q")[:2] + turns("-", "a")[1:],
                    "rejected": turns("P", "x") + turns("-", "b")[1:],
                }
            ],
            {("ranking", "the prompt ends with the assistant's turn"): 1},
        ),
        (
            [studio(ranker({"rank": ["x"]}), {"result": []})],
            {
                ("ranking", "fewer than two responses"): 1,
                ("annotation", "question not answered"): 1,
            },
        ),
        ([studio()], {("row", "no annotator's ranking"): 1}),
    ],
)
def test_what_cannot_be_a_ranking_is_counted_with_its_reason(
    tmp_path: Path, rows: list[Any], left: dict[tuple[str, str], int]
) -> None:
    rankings, tally = converted(tmp_path, rows)
    assert rankings == []
    assert tally.left == left


def test_a_text_with_two_ranks_leaves_the_ranking_and_the_rest_stays(tmp_path: Path) -> None:
    """Which of the two ranks the text has nobody knows; the others' order does not depend on it."""
    answers = [{"answer": text, "rank": rank} for rank, text in enumerate("abca", start=1)]
    rankings, tally = converted(
        tmp_path, [{"prompt": "\n\nHuman: P\n\nAssistant:", "answers": answers}]
    )
    assert rankings == ["P: b > c"]
    assert tally.left == {("response", "one text stands in a ranking with different ranks"): 2}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"chosen": f"{HH} a", "rejected": "b"},
            "chosen: has no beginning in common with rejected",
        ),  # read as TRL's texts
        (
            {"chosen": "\n\nHuman: P\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: a"},
            "chosen: has no turn in common",
        ),
        (
            {"question": "P", "chosen": "It is", "rejected": "It is no"},
            "row: has no 'prompt', but 'question'; if that is the prompt",
        ),
        ({"prompt": "P", "chosen": "a", "rejected": None}, "row: has no 'rejected'"),
        (
            {"prompt": "P", "chosen": "a", "rejected": turns("b")},
            "rejected: is not of the kind of chosen",
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
            "chosen: neither begins with the prompt",
        ),
        (
            {
                "prompt": turns("Q", "x", "P"),
                "chosen": turns("P", "a"),
                "rejected": turns("P", "b"),
            },
            "chosen: neither begins with the prompt",
        ),
        (
            {
                "prompt": "P",
                "chosen": "a",
                "rejected": "b",
                "score_chosen": "x",
                "score_rejected": 1,
            },
            "score_chosen: is a text that is no number",
        ),
        (
            {"chosen": [{**turns("P")[0], "tool_calls": [1]}], "rejected": turns("P", "b")},
            "chosen[0]: has tool_calls, which kwise cannot train on",
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
            {"prompt": "x", "answers": [{"answer": "a", "rank": 1}]},
            "prompt: does not begin with 'Human:'",
        ),
        (
            {"prompt": "\n\nHuman: x", "answers": [{"answer": "a", "rank": 0}]},
            "answers[0].rank: must be a whole number",
        ),
        ({**summary("a", "b"), "choice": 2}, "choice: must be 0 or 1"),
        ({**summary("a", "b"), "info": {"post": "x"}}, "info: has no 'subreddit'"),
        (battle("a", "b", "model_c"), "winner: must be one of"),
        ({**battle("a", "b", "model_a"), "turn": 0}, "turn: must be a whole number from 1 on"),
        (
            {**battle("a", "b", "model_a"), "turn": 2},
            "turn: is 2, and a conversation has only 2 messages",
        ),
        (
            {**battle_55k(["P"], ["a"], ["b"]), "winner_tie": 1},
            "winner_model_a: winner_model_b and winner_tie: one of",
        ),
        (
            battle_55k(["P", "Q"], ["a", "b"], ["a"]),
            "response_b: has 1 turns for the 2 of the prompt",
        ),
        (battle_55k(["P"], ["a"], [3]), "response_b[0]: must be a text, not a number"),
        (battle_55k([], [], []), "prompt: must not be empty"),
        (
            {**battle_55k(["P"], ["a"], ["b"]), "prompt": "P"},
            "prompt: not JSON: Expecting value at column 1",
        ),
        (
            {"prompt": "P", "response_1": "a", "response_2": "b", "preference_strength": -100},
            "preference_strength: must be a whole number from -3 to 3",
        ),
        (
            {"prompt": "P", "response_1": "a", "response_2": "b", "preference_strength": 0.5},
            "preference_strength: must be a whole number from -3 to 3",
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
            "annotations[0].result.value.ranker: is in buckets (_ alone)",
        ),
        (
            {
                "fields": {"a": "1", "b": "2", "c": "3", "d": "4"},
                "responses": {"q": [{"value": ["a", "b"]}]},
            },
            "fields: the prompt may be c, d; say which with --prompt-column",
        ),
        (
            {
                **ARGILLA_FIELDS,
                "q.responses": [["reply-1", "reply-2"], ["reply-2"]],
                "q.responses.status": ["draft"],
            },
            "q.responses.status: has 1 for 2 answers",
        ),
        (
            {
                "fields": ARGILLA_FIELDS,
                "responses": {"q": [{"value": ["reply-1"]}], "r": [{"value": ["reply-1"]}]},
            },
            "row: has the rankings q, r; say which with --question",
        ),
        (
            {
                "prompt": "P",
                "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2, "why": "x"}],
            },
            "responses[1]: unknown key 'why'",
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
    good = CASES[0][2][0]
    _, tally = converted(tmp_path, [row, good], skip_bad=True, format=detect(row))
    assert tally.first_bad.startswith(f"{tmp_path / 'rows.jsonl'}:1: {problem}")


def test_options_decide_what_rows_leave_open(tmp_path: Path) -> None:
    pair = {"system": "Be brief.", "question": "Q", "chosen": "The one.", "rejected": "The other."}
    assert converted(tmp_path, [pair], prompt_column="question")[0] == [
        "s Be brief. | u Q: The one. > The other."
    ]
    rows = [
        {"prompt": "P", "response": text, "helpfulness": 1, "correctness": score}
        for text, score in (("a", 1), ("b", 2))
    ]
    assert converted(tmp_path, rows, score_column="correctness")[0] == ["P: b (2) > a (1)"]
    of_messages = {**pair, "chosen": turns("Q", "a"), "rejected": turns("Q", "b")}
    assert converted(tmp_path, [of_messages], prompt_column="question")[0] == [
        "s Be brief. | u Q: a > b"
    ]
    buckets = studio(ranker({"bad": ["x"], "good": ["z", "y"], "_": []}))
    assert converted(tmp_path, [buckets], buckets=("good", "bad"))[0] == ["P: why = zed > ex"]
    rankings, tally = converted(
        tmp_path, [studio(ranker({"a": ["x"], "b": ["y"], "_": ["z"]}))], buckets=("b", "a")
    )
    assert rankings == ["P: why > ex"] and tally.left == {
        ("response", "in no bucket of --buckets"): 1
    }
    open_row = {
        "fields": {"a": "1", "b": "2", "c": "3", "d": "4"},
        "responses": {q: [{"value": order}] for q, order in (("q", ["a", "b"]), ("r", ["b", "a"]))},
    }
    assert converted(tmp_path, [open_row], prompt_column="d", question="r")[0] == ["4: 2 > 1"]


def rated(**completion: Any) -> list[dict[str, Any]]:
    """A row of UltraFeedback, whose ratings are nested texts: one is of 4, one of 5, and one has none."""
    ratings = (("a", "4"), ("b", "5"), ("c", "N/A"))
    told = [
        {"response": r, **completion, "annotations": {"helpfulness": {"Rating": rating}}}
        for r, rating in ratings
    ]
    return [{"instruction": "P", "completions": told}]


def test_a_score_may_lie_in_nested_objects(tmp_path: Path) -> None:
    rankings, tally = converted(tmp_path, rated(), score_column="annotations.helpfulness.Rating")
    assert rankings == ["P: b (5) > a (4)"] and tally.left == {("response", "no score"): 1}


@pytest.mark.parametrize(
    ("column", "completion", "problem"),
    [
        ("annotations.honesty.Rating", {}, "completions[0].annotations: has no 'honesty'"),
        ("annotation.helpfulness.Rating", {}, "completions[0]: has no 'annotation'"),
        (
            "response.Rating",
            {},
            "completions[0].response: must be an object that has 'Rating', not a string",
        ),
        (
            "annotations.helpfulness",
            {},
            "completions[0].annotations.helpfulness: must be a number, not an object",
        ),
        (
            "annotations.helpfulness.Rating",
            {"annotations.helpfulness.Rating": "x"},
            "completions[0].annotations.helpfulness.Rating",
        ),
    ],
)
def test_a_path_to_a_score_is_refused_where_it_ends(
    tmp_path: Path, column: str, completion: dict[str, Any], problem: str
) -> None:
    """A key that has the dots itself comes before the path: the last case, whose text is no number."""
    _, tally = converted(
        tmp_path, [*rated(**completion), *rated()], score_column=column, skip_bad=True
    )
    assert tally.first_bad.startswith(f"{tmp_path / 'rows.jsonl'}:1: {problem}")


def test_plain_texts_that_had_to_be_split_are_counted(tmp_path: Path) -> None:
    pair = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    explicit = {"prompt": "The sky is", "chosen": " blue.", "rejected": " black."}
    _, tally = converted(tmp_path, [pair, {**pair, "margin": -1}, explicit])
    split = "prompt taken from what chosen and rejected have in common"
    unlike = "scores do not put chosen above rejected: the label is kept, the scores are not"
    assert tally.notes == {split: 1, f"{split}; {unlike}": 1}


HELPFUL, HARMLESS = (
    {"result": [{**ranker({q: ["x", "y"]})["result"][0], "from_name": q}]}
    for q in ("helpful", "harmless")
)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            [answered("helpful"), answered("harmless")],
            "--question would be 'harmless' here, but 'helpful' in rows before",
        ),
        (
            [studio(HELPFUL), studio(HARMLESS)],
            "--question would be 'harmless' here, but 'helpful' in rows before",
        ),
        (
            [answered("q", prompt=None, system="S"), answered("q", system="S")],
            "--prompt-column would be 'prompt' here, but 'system' in rows before",
        ),
    ],
)
def test_a_guess_holds_for_the_whole_input(tmp_path: Path, rows: list[Any], problem: str) -> None:
    """Each row was guessed alone, so that two questions came out as one set and nothing was said."""
    rankings, tally = converted(tmp_path, rows, skip_bad=True)
    assert len(rankings) == 1
    assert tally.first_bad == f"{tmp_path / 'rows.jsonl'}:2: row: {problem}; say which"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([answered("helpful"), answered("harmless")], "row"),
        ([studio(HELPFUL, HARMLESS)], "annotation"),
    ],
)
def test_a_row_without_an_answer_to_the_chosen_question_is_left_out(
    tmp_path: Path, rows: list[Any], what: str
) -> None:
    """It ended the conversion."""
    rankings, tally = converted(tmp_path, rows, question="helpful")
    assert len(rankings) == 1 and tally.left == {(what, "question not answered"): 1}


@pytest.mark.parametrize(
    "rows", [[answered("helpful"), answered("harmless")], [studio(HELPFUL, HARMLESS)]]
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_question_that_no_row_answers_is_an_error_that_names_those_there_are(
    tmp_path: Path, rows: list[Any], skip_bad: bool
) -> None:
    """All rows were left out, and the error was that there are no rankings."""
    with pytest.raises(RankingsError) as raised:
        converted(tmp_path, rows, question="helpfull", skip_bad=skip_bad)
    problem = (
        "--question: no row has an answer to 'helpfull'; there are answers to helpful, harmless"
    )
    assert str(raised.value) == f"{tmp_path / 'rows.jsonl'}:1: {problem}"


def test_a_question_with_drafts_alone_is_no_mistyped_one(tmp_path: Path) -> None:
    drafts = {
        **ARGILLA_FIELDS,
        "rank.responses": [["reply-1", "reply-2"]],
        "rank.responses.status": ["draft"],
    }
    rows = [drafts, {**ARGILLA_FIELDS, "other.responses": [["reply-1", "reply-2"]]}]
    assert converted(tmp_path, rows, question="rank")[0] == []
    assert converted(tmp_path, [drafts])[0] == []


def test_fields_that_are_not_written_are_counted(tmp_path: Path) -> None:
    _, tally = converted(tmp_path, [answered("q", system="S"), answered("q")])
    assert tally.notes == {
        "fields that are neither the prompt nor ranked are not written: system": 1
    }


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (Merge.NONE, ["P: a > b", "P: b > c", "P: c > a"]),
        (Merge.ANNOTATOR, ["P: a > b > c", "P: c > a"]),
        (Merge.PROMPT, ["P: a > b", "P: b > c", "P: c > a"]),
    ],
)
def test_merge_says_whose_comparisons_are_one_ranking(
    tmp_path: Path, merge: Merge, expected: list[str]
) -> None:
    rows = [
        battle("a", "b", "model_a"),
        battle("b", "c", "model_a"),
        battle("c", "a", "model_a", judge="j2"),
    ]
    rankings, tally = converted(tmp_path, rows, merge=merge)
    assert rankings == expected
    assert sum(tally.notes.values()) == (
        3 if merge is Merge.PROMPT else 0
    )  # the three contradict each other


def test_pairs_of_one_question_are_merged_on_demand_only(tmp_path: Path) -> None:
    rows = [{"question": "P", "response_j": j, "response_k": k} for j, k in ("ab", "bc", "ac")]
    assert len(converted(tmp_path, rows)[0]) == 3
    assert converted(tmp_path, rows, merge=Merge.PROMPT)[0] == ["P: a > b > c"]


def test_a_prompts_only_comparison_keeps_its_scores_whatever_is_merged(tmp_path: Path) -> None:
    """They were left out as "merged with others"."""
    pair = {"prompt": "P", "chosen": "a", "rejected": "b", "margin": 0.5}
    rankings, tally = converted(tmp_path, [pair], merge=Merge.PROMPT)
    assert rankings == ["P: a (0.5) > b (0)"] and not tally.notes


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [
        (0, False, 0),
        (0, True, 1),
        (1, False, 1),
        (2, False, 2),
        (7, False, 3),
        (1000, True, 11),
        (-1, False, -1),
        (-5, True, -1),
    ],
)
def test_votes_are_scored_as_in_the_paper(votes: int, accepted: bool, score: int) -> None:
    assert vote_score(votes, accepted) == score
