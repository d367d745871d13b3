"""Options of `kwise data convert`: columns, questions, buckets and merging."""

from pathlib import Path
from typing import Any

import pytest

from kwise.errors import ConfigError
from kwise.train.data.convert.options import Merge
from kwise.train.data.formats.table import FormatName
from kwise.train.rankings.errors import RankingsError
from tests.train.data.format_rows import (
    ARGILLA_FIELDS,
    answered,
    battle,
    converted,
    ranker,
    studio,
    turns,
)


def test_options_decide_what_rows_do_not_say(tmp_path: Path) -> None:
    pair = {"system": "Be brief.", "question": "Q", "chosen": "The one.", "rejected": "The other."}
    assert converted(tmp_path, [pair], prompt_column="question")[0] == [
        "s Be brief. | u Q: The one. > The other."
    ]
    rows = [
        {"prompt": "P", "response": text, "helpfulness": 1, "correctness": score}
        for text, score in (("a", 1), ("b", 2))
    ]
    assert converted(tmp_path, rows, score_column="correctness")[0] == ["P: b (2) > a (1)"]
    with_messages = {**pair, "chosen": turns("Q", "a"), "rejected": turns("Q", "b")}
    assert converted(tmp_path, [with_messages], prompt_column="question")[0] == [
        "s Be brief. | u Q: a > b"
    ]
    buckets = studio(ranker({"bad": ["x"], "good": ["z", "y"], "_": []}))
    assert converted(tmp_path, [buckets], buckets=("good", "bad"))[0] == ["P: why = zed > ex"]
    rankings, report = converted(
        tmp_path, [studio(ranker({"a": ["x"], "b": ["y"], "_": ["z"]}))], buckets=("b", "a")
    )
    assert rankings == ["P: why > ex"] and report.skipped == {
        ("response", "in no bucket of --buckets"): 1
    }
    ambiguous_row = {
        "fields": {"a": "1", "b": "2", "c": "3", "d": "4"},
        "responses": {q: [{"value": order}] for q, order in (("q", ["a", "b"]), ("r", ["b", "a"]))},
    }
    assert converted(tmp_path, [ambiguous_row], prompt_column="d", question="r")[0] == ["4: 2 > 1"]


def nested_ratings(**completion: Any) -> list[dict[str, Any]]:
    """Return a row of UltraFeedback with nested ratings, as strings: 4, 5 and a missing one."""
    ratings = (("a", "4"), ("b", "5"), ("c", "N/A"))
    completions = [
        {"response": r, **completion, "annotations": {"helpfulness": {"Rating": rating}}}
        for r, rating in ratings
    ]
    return [{"instruction": "P", "completions": completions}]


def test_a_score_may_be_in_nested_objects(tmp_path: Path) -> None:
    rankings, report = converted(
        tmp_path, nested_ratings(), score_column="annotations.helpfulness.Rating"
    )
    assert rankings == ["P: b (5) > a (4)"] and report.skipped == {("response", "no score"): 1}


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
def test_a_wrong_path_to_a_score_is_reported_where_it_ends(
    tmp_path: Path, column: str, completion: dict[str, Any], problem: str
) -> None:
    """In the last case a key with dots takes precedence over the path, and is not a number."""
    _, report = converted(
        tmp_path,
        [*nested_ratings(**completion), *nested_ratings()],
        score_column=column,
        skip_bad=True,
    )
    assert report.first_unreadable.startswith(f"{tmp_path / 'rows.jsonl'}:1: {problem}")


def test_implicit_prompts_of_plain_texts_are_counted(tmp_path: Path) -> None:
    pair = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    explicit = {"prompt": "The sky is", "chosen": " blue.", "rejected": " black."}
    _, report = converted(tmp_path, [pair, {**pair, "margin": -1}, explicit])
    implicit = "prompt taken from what chosen and rejected have in common"
    dropped = "scores do not put chosen above rejected: the label is kept, the scores are not"
    assert report.notes == {implicit: 1, f"{implicit}; {dropped}": 1}


HELPFUL, HARMLESS = (
    {"result": [{**ranker({q: ["x", "y"]})["result"][0], "from_name": q}]}
    for q in ("helpful", "harmless")
)


@pytest.mark.parametrize(
    ("rows", "option", "first", "other"),
    [
        ([answered("helpful"), answered("harmless")], "--question", "harmless", "helpful"),
        ([studio(HELPFUL), studio(HARMLESS)], "--question", "harmless", "helpful"),
        (
            [answered("q", prompt=None, note="N"), answered("q", note="N")],
            "--prompt-column",
            "prompt",
            "note",
        ),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_all_rows_must_agree_on_a_guess(
    tmp_path: Path, rows: list[Any], option: str, first: str, other: str, skip_bad: bool
) -> None:
    """Else the answers to two questions would be mixed. An odd first row decides nothing."""
    with pytest.raises(RankingsError) as raised:
        converted(tmp_path, [*rows, rows[1]], skip_bad=skip_bad)
    path = tmp_path / "rows.jsonl"
    assert str(raised.value) == (
        f"{option}: the rows differ: {first!r} in 2 rows (first {path}:2), "
        f"{other!r} in 1 rows (first {path}:1); choose with kwise data convert {option}"
    )


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([answered("helpful"), answered("harmless")], "row"),
        ([studio(HELPFUL, HARMLESS)], "annotation"),
    ],
)
def test_a_row_without_an_answer_to_the_chosen_question_is_skipped(
    tmp_path: Path, rows: list[Any], what: str
) -> None:
    rankings, report = converted(tmp_path, rows, question="helpful")
    assert len(rankings) == 1 and report.skipped == {(what, "question not answered"): 1}


@pytest.mark.parametrize(
    "rows", [[answered("helpful"), answered("harmless")], [studio(HELPFUL, HARMLESS)]]
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_question_that_no_row_answers_is_an_error_that_names_the_answered_ones(
    tmp_path: Path, rows: list[Any], skip_bad: bool
) -> None:
    with pytest.raises(RankingsError) as raised:
        converted(tmp_path, rows, question="helpfull", skip_bad=skip_bad)
    problem = "--question: no row answers 'helpfull'; answered questions: helpful, harmless"
    assert str(raised.value) == f"{tmp_path / 'rows.jsonl'}:1: {problem}"


def test_a_question_that_has_only_drafts_is_not_reported_as_misspelt(tmp_path: Path) -> None:
    drafts = {
        **ARGILLA_FIELDS,
        "rank.responses": [["reply-1", "reply-2"]],
        "rank.responses.status": ["draft"],
    }
    rows = [drafts, {**ARGILLA_FIELDS, "other.responses": [["reply-1", "reply-2"]]}]
    assert converted(tmp_path, rows, question="rank")[0] == []
    assert converted(tmp_path, [drafts])[0] == []


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (Merge.NONE, ["P: a > b", "P: b > c", "P: c > a"]),
        (Merge.ANNOTATOR, ["P: a > b > c", "P: c > a"]),
        (Merge.PROMPT, ["P: a > b", "P: b > c", "P: c > a"]),
    ],
)
def test_merge_decides_which_comparisons_become_one_ranking(
    tmp_path: Path, merge: Merge, expected: list[str]
) -> None:
    rows = [
        battle("a", "b", "model_a"),
        battle("b", "c", "model_a"),
        battle("c", "a", "model_a", judge="j2"),
    ]
    rankings, report = converted(tmp_path, rows, merge=merge)
    assert rankings == expected
    assert sum(report.notes.values()) == (
        3 if merge is Merge.PROMPT else 0
    )  # the three contradict each other


def test_pairs_of_one_question_are_merged_only_on_demand(tmp_path: Path) -> None:
    rows = [{"question": "P", "response_j": j, "response_k": k} for j, k in ("ab", "bc", "ac")]
    assert len(converted(tmp_path, rows)[0]) == 3
    assert converted(tmp_path, rows, merge=Merge.PROMPT)[0] == ["P: a > b > c"]


def test_the_only_comparison_of_a_prompt_keeps_its_scores(tmp_path: Path) -> None:
    pair = {"prompt": "P", "chosen": "a", "rejected": "b", "margin": 0.5}
    rankings, report = converted(tmp_path, [pair], merge=Merge.PROMPT)
    assert rankings == ["P: a (0.5) > b (0)"] and not report.notes


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        (
            [("P", "ab"), ("Q", "ab"), ("q ", "ba")],
            "merged nothing; not merged: 3 prompts with one comparison, 1 prompts differ from "
            "another in white space or case only",
        ),
        (
            [("P", "ab"), ("P", "ab"), ("Q", "ab"), ("Q", "ba"), ("R", "ab"), ("R", "ac")],
            "merged nothing; not merged: 1 prompts with comparisons of the same two responses, "
            "1 prompts with comparisons that contradict each other, 1 prompts with comparisons "
            "that do not determine one order",
        ),
        (
            [("P", "ab"), ("P", "bc"), ("Q", "ab")],
            "merged the comparisons of 1 prompts; not merged: 1 prompts with one comparison",
        ),
        ([("P", "ab"), ("P", "bc")], "merged the comparisons of 1 prompts; not merged: none"),
    ],
)
def test_merge_says_what_was_not_merged_and_why(
    tmp_path: Path, pairs: list[tuple[str, str]], line: str
) -> None:
    rows = [{"prompt": p, "chosen": texts[0], "rejected": texts[1]} for p, texts in pairs]
    _, report = converted(tmp_path, rows, merge=Merge.PROMPT)
    assert report.merging == f"--merge prompt {line}"
    assert f"note: {report.merging}" in report.lines()
    assert not converted(tmp_path, rows)[1].merging


def test_merge_by_annotator_counts_what_names_none(tmp_path: Path) -> None:
    rows = [{**battle(pair[0], pair[1], "model_a"), "judge": None} for pair in ("ab", "bc")]
    _, report = converted(tmp_path, rows, merge=Merge.ANNOTATOR)
    assert report.merging == (
        "--merge annotator merged nothing; not merged: 2 comparisons without an annotator"
    )


@pytest.mark.parametrize("column", ["rank", "annotations.Rank", "human_ranking", "place"])
def test_ranks_are_not_read_as_scores(tmp_path: Path, column: str) -> None:
    """The best response would get the lowest score."""
    rows = [{"prompt": "P", "response": text, "rank": n} for n, text in enumerate("ab", 1)]
    with pytest.raises(ConfigError, match=f"--score-column {column} names ranks, which the format"):
        converted(tmp_path, rows, format=FormatName.HELPSTEER2, score_column=column)


@pytest.mark.parametrize("column", ["rank", "ranks", "human_ranking"])
def test_completions_have_ranks_by_either_name(tmp_path: Path, column: str) -> None:
    inside = [{"text": text, column: n} for n, text in enumerate("ab", 1)]
    rows = [
        {"prompt": "P", "completions": inside},
        {"prompt": "P", "completions": ["a", "b"], column: [1, 2]},
    ]
    given = {"format": FormatName.COMPLETIONS, "score_column": column}
    assert converted(tmp_path, rows, **given)[0] == ["P: a > b", "P: a > b"]
