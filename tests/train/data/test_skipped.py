"""Parts of rows that cannot be used are skipped, and the report counts them with a reason."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.data.format_rows import HH, battle, battle_55k, converted, ranker, studio, turns


@pytest.mark.parametrize(
    ("rows", "skipped"),
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
                    "the conversations differ before the last turn, and a response is one turn",
                ): 1
            },
        ),
        ([{"instruction": "P", "completions": []}], {("ranking", "fewer than two responses"): 1}),
        (
            [battle("a", "b", "tie")],
            {
                (
                    "ranking",
                    "all responses are tied (--keep-tied keeps them, and --ties in kwise train)",
                ): 1
            },
        ),
        ([battle("a", "a", "model_a")], {("row", "both responses are the same"): 1}),
        (
            [battle("a", "b", "both_bad")],
            {
                (
                    "ranking",
                    "all responses are tied (--keep-tied keeps them, and --ties in kwise train)",
                ): 1
            },
        ),
        (
            [battle_55k(["P", "Q"], ["x", "a"], ["y", "b"])],
            {
                (
                    "row",
                    "the conversations differ before the last turn, and a response is one turn",
                ): 1
            },
        ),
        ([battle_55k(["P"], [None], ["b"])], {("row", "a turn has no text"): 1}),
        (
            [battle_55k(["P"], ["a\ud83d"], ["b"])],
            {("row", "a turn has half of a surrogate pair"): 1},
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
def test_skipped_parts_are_counted_with_their_reason(
    tmp_path: Path, rows: list[Any], skipped: dict[tuple[str, str], int]
) -> None:
    rankings, report = converted(tmp_path, rows)
    assert rankings == []
    assert report.skipped == skipped


def test_a_text_with_two_ranks_is_skipped_and_the_other_responses_are_kept(tmp_path: Path) -> None:
    """The order of the other responses does not depend on it."""
    answers = [{"answer": text, "rank": rank} for rank, text in enumerate("abca", start=1)]
    rankings, report = converted(
        tmp_path, [{"prompt": "\n\nHuman: P\n\nAssistant:", "answers": answers}]
    )
    assert rankings == ["P: b > c"]
    assert report.skipped == {("response", "the same text has different ranks in one ranking"): 2}
