"""Each format: small rows, written for this test, and the rankings that they become."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.train.data.convert.json_line import json_line, row_of
from kwise.train.data.convert.usable import usable_part
from kwise.train.data.formats.stack_exchange import vote_score
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.rows.items import ComparedPair, RankedResponses, ReadOptions, RowProblem
from kwise.train.data.rows.read_row import read_row
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import parse_ranking
from tests.train.data.format_rows import (
    ARGILLA_FIELDS,
    ASSISTANT,
    HH,
    TLDR,
    USER,
    battle,
    battle_55k,
    converted,
    pairwise,
    parts,
    ranker,
    scored,
    studio,
    summary,
    turns,
)

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
        ["P: b > a"],
    ),
    (
        "ranks in one row and scores in another, with nulls as in Parquet",
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
        "the common beginning is the prompt",
        FormatName.HH_RLHF,
        [{"chosen": f"{HH} Because. ", "rejected": f"{HH} No\n\nreason."}],
        ["u Hi | a Hello. | u Why?: Because. > No\n\nreason."],
    ),
    (
        "explicit prompt, strings",
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
        "implicit prompt, strings",
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
        "ultrafeedback binarized: a string, and conversations that begin with it; scores",
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
        "a system message on one side only",
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
        "completions that repeat the prompt",
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
        "messages by columns, as in Arrow",
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
        "Alpaca: instruction and input, and a history",
        FormatName.TRL,
        [
            {"instruction": "P", "input": "Q", "chosen": "a", "rejected": "b"},
            {
                "instruction": "P",
                "input": "",
                "history": [["Q", "x"], ["R", "y"]],
                "chosen": "a",
                "rejected": "b",
            },
        ],
        ["P\n\nQ: a > b", "u Q | a x | u R | a y | u P: a > b"],
    ),
    (
        "ShareGPT: from and value",
        FormatName.TRL,
        [
            {
                "conversations": [{"from": "human", "value": "P"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            }
        ],
        ["P: a > b"],
    ),
    (
        "ms-swift: the chosen answer ends the conversation",
        FormatName.TRL,
        [
            {"messages": turns("P", "x", "Q", "a"), "rejected_response": "b"},
            {"messages": turns("P", "x", "Q", "a"), "rejected_messages": turns("P", "x", "Q", "b")},
        ],
        ["u P | a x | u Q: a > b"] * 2,
    ),
    (
        "OpenAI's fine-tuning",
        FormatName.TRL,
        [
            {
                "input": {"messages": turns("P"), "tools": [], "parallel_tool_calls": True},
                "preferred_output": [{"role": ASSISTANT, "content": "a"}],
                "non_preferred_output": [{"role": ASSISTANT, "content": "b"}],
            }
        ],
        ["P: a > b"],
    ),
    (
        "descendants of UltraFeedback: other names of the columns",
        FormatName.TRL,
        [
            {
                "instruction": "P",
                "chosen_response": "a",
                "rejected_response": "b",
                "chosen_avg_rating": 5,
                "rejected_avg_rating": 3.5,
            },
            {
                "prompt": "P",
                "chosen": "a",
                "rejected": "b",
                "rating_chosen": 9,
                "rating_rejected": 2,
            },
            {"prompt": "P", "chosen": "a", "rejected": "b", "chosen-score": 9, "rejected-score": 2},
        ],
        ["P: a (5) > b (3.5)", "P: a (9) > b (2)", "P: a (9) > b (2)"],
    ),
    (
        "implicit prompts in scripts without spaces",
        FormatName.TRL,
        [
            {"chosen": "天空是蓝色的。", "rejected": "天空是绿色的。"},
            {"chosen": "空はあおいです", "rejected": "空はみどりです"},
            {"chosen": "하늘은 파랗다", "rejected": "하늘은 푸르다"},
        ],
        [
            "天空是: 蓝色的。 > 绿色的。",
            "空は: あおいです > みどりです",
            "하늘은:  파랗다 >  푸르다",
        ],
    ),
    (
        "a margin",
        FormatName.TRL,
        [{"prompt": "P", "chosen": "a", "rejected": "b", "margin": 0.5}],
        ["P: a (0.5) > b (0)"],
    ),
    (
        "overall_score as a number, as a string and missing",
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
        "rows of one prompt in different places",
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
        "the comparisons of each worker make a ranking",
        FormatName.SUMMARIZE,
        [summary("a", "b"), summary("b", "a", worker="w2"), summary("b", "c")],
        [f"{TLDR}: a > b > c", f"{TLDR}: b > a"],
    ),
    (
        "unnamed workers may be several; a choice from a column of floats",
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
        "LMArena: content in parts, and a tie under another name",
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
        "Kaggle: one text per turn, of which only the last may differ",
        FormatName.ARENA,
        [
            battle_55k(["P"], ["a"], ["b"], "model_b"),
            battle_55k(["P", "Q"], ["x", "a"], ["x", "b"]),
            battle_55k(["P"], ["a"], ["b"], "tie"),
        ],
        ["P: b > a", "u P | a x | u Q: a > b", "P: a = b"],
    ),
    (
        "HelpSteer2: the strength is a margin, and its sign says which is better",
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
        "Argilla 1, JSON: a ranking per annotator, drafts skipped",
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
        "Label Studio, Pairwise: the tags are named like the fields, or sorted as they are",
        FormatName.LABEL_STUDIO,
        [
            pairwise("left", "answer1,answer2", answer1="a", answer2="b"),
            pairwise("right", "answer1,answer2", answer2="b", answer1="a"),
            pairwise("right", "txt-1,txt-2", textA="a", textB="b"),
        ],
        ["P: a > b", "P: b > a", "P: b > a"],
    ),
    (
        "texts in order, and lists of tied ones",
        FormatName.RANKING,
        [
            {"prompt": "P", "ranking": ["a", "b", "c"]},
            {"instruction": "P", "input": "Q", "ranking": ["a", ["b", "c"]]},
        ],
        ["P: a > b > c", "P\n\nQ: a > b = c"],
    ),
    (
        "labels inside the responses, or beside them",
        FormatName.COMPLETIONS,
        [
            {"prompt": "P", "completions": [scored("a", 1), scored("b", "2.5"), scored("c", None)]},
            {
                "prompt": "P",
                "responses": [{"content": "a", "rank": 2.0}, {"content": "b", "rank": 1}],
            },
            {"instruction": "P", "generations": ["a", "b"], "ratings": [1, 4]},
            {"prompt": "P", "completions": ["a", "b", "c"], "ranks": [2, 1, None]},
        ],
        ["P: b (2.5) > a (1)", "P: b > a", "P: b (4) > a (1)", "P: b > a"],
    ),
    (
        "several chosen or rejected texts",
        FormatName.REWARD_BENCH_2,
        [
            {"id": "1", "prompt": "P", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1},
            {"prompt": "P", "chosen": "a", "rejected": ["b", "c"]},
        ],
        ["P: a > b = c", "P: a > b = c"],
    ),
    (
        "Label Studio: a ranking per annotation, cancelled ones skipped",
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
def test_rows_of_each_format_become_the_expected_rankings(
    tmp_path: Path, format_name: FormatName, rows: list[Any], expected: list[str]
) -> None:
    rankings, report = converted(tmp_path, rows, keep_tied=True)
    assert rankings == expected
    assert report.format is format_name


def test_every_format_has_a_case() -> None:
    assert {case[1] for case in CASES} == set(FormatName) == set(FORMATS)
    assert detect({"text": "a"}) is None


@st.composite
def _damaged_rows(draw: Any) -> tuple[FormatName, Any]:
    """Draw a row of some format with one value, at any depth, replaced or removed."""
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


OPTIONS = (
    ReadOptions(),
    ReadOptions(score_column="a.b"),
    ReadOptions(prompt_column="prompt"),
    ReadOptions(question="rank", buckets=("rank",)),
)


@settings(max_examples=200)
@given(damaged=_damaged_rows(), options=st.sampled_from(OPTIONS))
def test_a_damaged_row_is_refused_or_still_a_ranking_and_never_a_crash(
    damaged: tuple[FormatName, Any], options: ReadOptions
) -> None:
    read_as_training_does(*damaged, options)


ODD: tuple[Any, ...] = (
    None,
    True,
    -1.5,
    10**400,
    "",
    "\ud800",
    [],
    {},
    [None],
    [{"role": 1}],
    {"a": [1], "b": [1, 2]},
    "<|im_start|>assistant\n<|im_end|>",
    "Human: Q\n\nAssistant: a",
    '[{"role": "user"}]',
)


@pytest.mark.parametrize("case", CASES, ids=[f"{c[1].value}: {c[0]}" for c in CASES])
def test_an_odd_value_anywhere_is_refused_or_read_and_never_a_crash(case: tuple[Any, ...]) -> None:
    _, name, rows, _ = case
    for place, key in places(rows[0]):
        good = place[key]
        for odd in ODD:
            place[key] = odd
            read_as_training_does(name, rows[0], ReadOptions())
        place[key] = good


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (object or list, key or index) of each value at any depth."""
    keys = value if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def read_as_training_does(name: FormatName, row: Any, options: ReadOptions) -> None:
    detect(row)
    with contextlib.suppress(RowProblem):
        for item in read_row(FORMATS[name].read, row, options).items:
            ranked = item.as_ranking() if isinstance(item, ComparedPair) else item
            if not isinstance(ranked, RankedResponses):
                continue
            usable = usable_part(ranked, Counter(), keep_tied=True)
            with contextlib.suppress(RankingsError):
                parse_ranking(json_line(row_of(usable)), origin="x:1") if usable else None


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
def test_votes_give_the_scores_of_the_paper(votes: int, accepted: bool, score: int) -> None:
    assert vote_score(votes, accepted) == score
