"""`kwise data split`, `dedupe` and `merge`."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main


def ranking(prompt: str, *texts: str, **more: Any) -> dict[str, Any]:
    """Return a ranking of `texts`, the best first."""
    items = [{"text": text, "rank": rank} for rank, text in enumerate(texts, start=1)]
    return {"prompt": prompt, "responses": items, **more}


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_split_puts_no_prompt_on_both_sides(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ranking(f"Prompt {i % 20}", "a", str(i), id=i) for i in range(60)]
    rows += [ranking(f" prompt  {i} ", "a", "b", id=60 + i) for i in range(20)]
    path = written(folder / "in.jsonl", *rows)
    command = ["data", "split", path, "--validation-fraction", "0.3", "--seed", "7"]
    assert main(command) == 0
    train, validation = read(folder / "train.jsonl"), read(folder / "validation.jsonl")
    assert len(validation) == 24 and len({row["prompt"] for row in validation}) == 12
    assert sorted(row["id"] for row in (*train, *validation)) == list(range(80))
    assert [row["id"] for row in train] == sorted(row["id"] for row in train)
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: 80 rankings of 20 prompts",
        "train.jsonl: 56 rankings of 14 prompts",
        "validation.jsonl: 24 rankings of 6 prompts, none of which is in train.jsonl (white space "
        "and case are ignored)",
    ]
    assert main(["data", "stats", "train.jsonl", "--against", "validation.jsonl"]) == 0
    assert "prompts in both       0" in capsys.readouterr().out
    assert main(command) == 2
    assert "--train train.jsonl exists" in capsys.readouterr().err
    # The split depends on the seed, and not on the order of the file.
    written(folder / "in.jsonl", *reversed(rows))
    assert main([*command, "--overwrite"]) == 0
    assert {row["id"] for row in read(folder / "train.jsonl")} == {row["id"] for row in train}
    assert main([*command[:-1], "8", "--overwrite"]) == 0
    assert {row["id"] for row in read(folder / "train.jsonl")} != {row["id"] for row in train}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--train", "-"], 2, "--train must be a file"),
        (["--train", "x", "--validation", "./x"], 2, "--train and --validation are the same file"),
        (["--validation-fraction", "0"], 2, "must be greater than 0"),
        ([], 1, "needs at least 2 distinct prompts; there is 1"),
    ],
)
def test_a_split_that_cannot_be_made_writes_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    path = written(folder / "in.jsonl", ranking("P", "a", "b"), ranking("p", "b", "a"))
    assert main(["data", "split", path, *options]) == code
    assert message in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["in.jsonl"]


def test_dedupe_removes_what_repeats_an_earlier_ranking(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ranking("P", "a", "b", id=1)
    in_other_order = {**first, "responses": first["responses"][::-1], "id": 2}
    rows = [
        first,
        in_other_order,
        ranking("P", "b", "a", id=3),  # other ranks
        ranking("P", "a", "b", id=4),
        ranking("P", "a", "c", id=5),
        ranking("Q", "a", "b", id=6),
    ]
    path = written(folder / "in.jsonl", *rows)
    assert main(["data", "dedupe", path, "--output", "out.jsonl"]) == 0
    assert [row["id"] for row in read(folder / "out.jsonl")] == [1, 3, 5, 6]
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == f"{path}: 6 rankings read, 2 repeated ones removed, 4 written"
    assert printed[1].startswith("note: 1 x the same prompt and responses as an earlier ranking")
    assert main(["data", "dedupe", path, "--output", "few.jsonl", "--ignore-labels"]) == 0
    assert [row["id"] for row in read(folder / "few.jsonl")] == [1, 5, 6]


def test_dedupe_keeps_equal_orders_of_different_scores(folder: Path) -> None:
    def scored(high: float) -> dict[str, Any]:
        return {
            "prompt": "P",
            "responses": [{"text": "a", "score": high}, {"text": "b", "score": 0}],
        }

    path = written(folder / "in.jsonl", scored(1), scored(2), scored(1.0), ranking("P", "a", "b"))
    assert main(["data", "dedupe", path, "--output", "out.jsonl"]) == 0
    assert read(folder / "out.jsonl") == [scored(1), scored(2), ranking("P", "a", "b")]


def test_merge_keeps_the_rankings_of_a_prompt_separate(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = written(folder / "one.jsonl", ranking("P", "a", "b", id=1), ranking("Q", "a", "b"))
    (folder / "two.csv").write_text("prompt,chosen,rejected\nP,b,a\n")
    assert main(["data", "merge", one, "two.csv", "--output", "out.jsonl"]) == 0
    assert read(folder / "out.jsonl") == [*read(folder / "one.jsonl"), ranking("P", "b", "a")]
    assert capsys.readouterr().err.splitlines() == [
        f"{one}: 2 rankings",
        "two.csv: converted from the format trl: 1 rows read, 1 rankings kept, left out: nothing",
        "two.csv: 1 rankings",
        "3 rankings of 2 prompts written; 1 prompts are in several files",
        "note: rankings of one prompt stay separate, one for each annotator (--combine makes one "
        "of those that agree)",
    ]


def test_merge_says_that_rankings_repeat_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder / "in.jsonl", ranking("P", "a", "b"), ranking("Q", "a", "b"))
    assert main(["data", "merge", path, path, "--output", "out.jsonl"]) == 0
    assert "note: 2 rankings repeat another one (kwise data dedupe" in capsys.readouterr().err
    assert main(["data", "merge", path, path, "--combine", "--output", "one.jsonl"]) == 0
    assert read(folder / "one.jsonl") == read(folder / "in.jsonl")


def test_merge_combines_the_rankings_that_agree_and_counts_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = {"prompt": "S", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 0}]}
    one = [
        ranking("P", "a", "b", "c", id=1),
        ranking("contradict", "a", "b"),
        ranking("apart", "a", "b"),
        ranking("open", "a", "b"),
        scored,
        ranking("single", "a", "b", id=2),
    ]
    two = [
        ranking("P", "c", "d"),
        ranking("contradict", "b", "a"),
        ranking("apart", "c", "d"),
        ranking("open", "a", "c"),
        scored,
    ]
    paths = written(folder / "one.jsonl", *one), written(folder / "two.jsonl", *two)
    assert main(["data", "merge", *paths, "--combine", "--output", "out.jsonl"]) == 0
    rows = [row for pair in zip(one[1:5], two[1:5], strict=True) for row in pair]
    assert read(folder / "out.jsonl") == [ranking("P", "a", "b", "c", "d"), *rows, one[5]]
    printed = capsys.readouterr().err
    assert "combined: 2 rankings into 1\n" in printed
    for why in (
        "contradict each other",
        "have no response in common",
        "do not say which of some responses is better",
        "have scores, which a common order would lose",
    ):
        assert f"not combined: 1 prompts, whose rankings {why}\n" in printed
    assert "note: 1 x a combined ranking's id, source, annotator and metadata" in printed


def test_a_bad_row_in_one_file_leaves_no_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = written(folder / "one.jsonl", ranking("P", "a", "b"))
    two = written(folder / "two.jsonl", ranking("P", "a", "b"), {"prompt": "P", "responses": []})
    for arguments in (["merge", one, two], ["dedupe", two], ["split", two]):
        assert main(["data", *arguments]) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and f"{two}:2: responses: has 0" in printed.err
    assert main(["data", "merge", one, "none.jsonl"]) == 2
    assert len([*folder.iterdir()]) == 2
