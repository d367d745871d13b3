"""The command from end to end: files, the table, exit codes and refusals."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.evaluation.figures import figures_of
from kwise.evaluation.report.json import write_json
from kwise.evaluation.result import Evaluation
from kwise.train.data.read import read_rankings
from tests.edited_checkpoints import copy_checkpoint

Evaluated = Callable[..., tuple[int, Evaluation]]


def error_of(capsys: Any, *words: object) -> tuple[int, str]:
    """Run `kwise eval WORDS` and return the exit code and what is on standard error."""
    code = main(["eval", *map(str, words)])
    return code, capsys.readouterr().err.strip().removeprefix("kwise eval: ")


def test_the_file_holds_all_that_the_figures_follow_from_and_no_text(
    tiny_checkpoint: Path, examples: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    _, result = evaluated(tiny_checkpoint, examples, "--seed", "3")
    assert figures_of(result.rankings, result.settings) == result.figures
    assert result.settings.seed == 3 and result.options == {"seed": 3, "resamples": 100}
    content = json.dumps(json.loads((tmp_path / "result.json").read_text()), ensure_ascii=False)
    for ranking in read_rankings(examples):
        texts = [*ranking.responses, *(message.content for message in ranking.prompt)]
        # A shorter text may be a part of a number.
        assert [text for text in texts if len(text) > 10 and text in content] == []


def test_the_same_command_gives_the_same_figures(
    tiny_artifact: Path, examples: Path, evaluated: Evaluated
) -> None:
    first, second = (evaluated(tiny_artifact, examples)[1] for _ in range(2))
    assert replace(first, created_at="") == replace(second, created_at="")


def test_the_table_has_each_figure(
    tiny_checkpoint: Path, examples: Path, evaluated: Evaluated, capsys: Any
) -> None:
    _, result = evaluated(tiny_checkpoint, examples)
    printed = capsys.readouterr().out
    accuracy = result.figures.accuracy
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("all pairs")]
    assert row[2:4] == [f"{accuracy.num_pairs:,}", f"{accuracy.accuracy.value:.1%}"]
    for name in ("Kendall's tau-b", "NDCG", "ECE", "correlation with length", "best of n"):
        assert name in printed


def test_other_formats_are_converted(
    tiny_artifact: Path, evaluated: Evaluated, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"prompt": "Why?", "chosen": "Because of that.", "rejected": "No."}) + "\n"
    )
    code, result = evaluated(tiny_artifact, path)
    assert code == 0 and result.figures.num_pairs == 1
    assert "converted from the format" in capsys.readouterr().err


def test_a_result_is_not_replaced_by_chance(
    tiny_artifact: Path, examples: Path, tmp_path: Path, capsys: Any
) -> None:
    there = tmp_path / "there.json"
    there.write_text("mine")
    assert error_of(capsys, tiny_artifact, examples, "--json", there) == (
        2,
        f"--json {there}: exists; give --overwrite to replace it",
    )
    assert there.read_text() == "mine"
    missing = tmp_path / "folder" / "r.json"
    assert error_of(capsys, tiny_artifact, examples, "--json", missing) == (
        2,
        f"--json {missing}: the folder {missing.parent} does not exist",
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "MODEL is required"),
        (["m"], "DATA is required"),
        (["./nowhere", "DATA"], "MODEL ./nowhere: there is no such file or directory"),
        (["a:b:c", "DATA"], "MODEL: must be HOST:PORT"),
        (["MODEL", "nothing.jsonl"], "nothing.jsonl: No such file or directory"),
        (["MODEL", "DATA", "--served-model", "x"], "--served-model has an effect only on a server"),
        (["h:1", "DATA", "--device", "cuda"], "--device has an effect only on a checkpoint or an"),
        (["MODEL", "DATA", "--template-date", "2026-01-31"], "--template-date has an effect only"),
        (["MODEL", "DATA", "--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--compare", "a", "b", "--limit", "3"], "--limit has no effect with --compare"),
        (["MODEL", "DATA", "--compare", "a", "b"], "--compare takes the place of MODEL and DATA"),
    ],
)
def test_a_wrong_command_line_is_told(
    words: list[str], error: str, tiny_artifact: Path, examples: Path, capsys: Any
) -> None:
    named = {"MODEL": str(tiny_artifact), "DATA": str(examples)}
    code, message = error_of(capsys, *(named.get(word, word) for word in words))
    assert (code, message[: len(error)]) == (2, error)
    assert "\n" not in message


def test_bad_rows_are_told(tiny_artifact: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "p", "responses": [{"text": "a", "rank": 1}]}\n')
    code, message = error_of(capsys, tiny_artifact, path)
    assert code == 1
    assert message.splitlines() == [
        f"{path}:1: responses: has 1; a ranking needs at least 2",
        f"kwise eval: {path} cannot be used",
    ]


def test_data_without_a_pair_is_told(tiny_artifact: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "tied.jsonl"
    responses = [{"text": "a", "rank": 1}, {"text": "b", "rank": 1}]
    path.write_text(json.dumps({"prompt": "p", "responses": responses}) + "\n")
    code, message = error_of(capsys, tiny_artifact, path)
    assert (code, message.splitlines()[0]) == (
        1,
        "tied.jsonl: all 1 rankings are one tie, so they have no pair to evaluate on",
    )


def test_a_checkpoint_without_a_head_is_refused(
    tiny_checkpoint: Path, examples: Path, tmp_path: Path, capsys: Any
) -> None:
    headless = copy_checkpoint(
        tiny_checkpoint,
        tmp_path / "headless",
        change=lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("score.")},
    )
    code, message = error_of(capsys, headless, examples)
    missing = "is not a reward model: these weights are missing: score.weight"
    assert (code, message) == (2, f"MODEL {headless} {missing}")


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
def test_a_token_limit_above_that_of_the_model_is_refused(
    kind: str, mixed: Path, request: pytest.FixtureRequest, capsys: Any
) -> None:
    model = request.getfixturevalue(f"tiny_{kind}")
    code, message = error_of(capsys, model, mixed, "--max-tokens", "1000000")
    assert code == 2
    assert "--max-tokens is 1000000; it must be at most " in message
    assert message.endswith(", the model's own limit")


def test_no_ranking_that_can_be_scored_is_an_error(
    tiny_artifact: Path, mixed: Path, capsys: Any
) -> None:
    code, message = error_of(capsys, tiny_artifact, mixed, "--max-tokens", "2")
    assert code == 1
    assert "none of 3 rankings could be scored" in message


# --compare


@pytest.fixture
def results(
    tiny_artifact: Path, examples: Path, evaluated: Evaluated, tmp_path: Path
) -> tuple[Path, Path]:
    """A result, and the same with the rewards that the labels say."""
    _, result = evaluated(tiny_artifact, examples)
    perfect = replace(
        result,
        rankings=tuple(
            replace(one, rewards=tuple(float(-rank) for rank in one.ranks))
            for one in result.rankings
        ),
    )
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for one, path in zip((result, perfect), paths, strict=True):
        write_json(one, path)
    return paths


def test_a_comparison_says_which_model_is_better(results: tuple[Path, Path], capsys: Any) -> None:
    a, b = results
    output = a.parent / "comparison.json"
    assert main(["eval", "--compare", str(b), str(a), "--json", str(output)]) == 0
    conclusion, *table = capsys.readouterr().out.splitlines()
    assert ": A is better (difference +" in conclusion and "p = 0.001, paired" in conclusion
    assert len([line for line in table if line.startswith("pairwise accuracy")]) == 1
    written = json.loads(output.read_text())
    assert written["conclusion"] == conclusion
    assert written["differences"][0]["a"] == 1.0


def test_a_comparison_with_itself_shows_no_difference(
    results: tuple[Path, Path], capsys: Any
) -> None:
    assert main(["eval", "--compare", str(results[0]), str(results[0])]) == 0
    conclusion = capsys.readouterr().out.splitlines()[0]
    assert "the data do not show that they differ (difference +0.0 points" in conclusion
    assert "p = 1," in conclusion


def test_a_file_that_is_not_a_result_is_refused(results: tuple[Path, Path], capsys: Any) -> None:
    a, b = results
    for content, problem in (
        ("no JSON", "is not a result of kwise eval: JSON is malformed"),
        ("{}", "is not a result of kwise eval: Object missing required field `schema_version`"),
        ('{"schema_version": 99}', "has schema version 99, and this version of kwise reads 1"),
        (
            '{"schema_version": 1, "differences": []}',
            "is a comparison of two results; give a result of one model",
        ),
        ('{"schema_version": 1}', "is not a result of kwise eval: Object missing required field"),
    ):
        b.write_text(content)
        code, message = error_of(capsys, "--compare", a, b)
        assert code == 2 and message.startswith(f"{b}: {problem}")
    code, message = error_of(capsys, "--compare", a, b.with_name("none.json"))
    assert (code, message) == (2, f"{b.with_name('none.json')}: No such file or directory")


def test_a_result_whose_rankings_lack_rewards_is_refused(
    results: tuple[Path, Path], capsys: Any
) -> None:
    a, b = results
    result = json.loads(b.read_text())
    ranking = result["rankings"][0]
    ranking["rewards"].pop()
    b.write_text(json.dumps(result))
    code, message = error_of(capsys, "--compare", a, b)
    assert code == 2
    assert message.startswith(
        f"{b}: is not a result of kwise eval: the ranking {ranking['origin']}"
    )


def test_a_page_without_matplotlib_is_refused_before_the_evaluation(
    tiny_artifact: Path, examples: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = tmp_path / "page.html"
    code = main(["eval", str(tiny_artifact), str(examples), "--html", str(page)])
    printed = capsys.readouterr()
    assert code == 1 and printed.out == "" and not page.exists()
    assert "needs the package matplotlib" in printed.err


def test_the_files_are_written_before_the_table(
    tiny_artifact: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed pipe must not cost the result of hours."""
    path = tmp_path / "result.json"

    class ClosedPipe(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with contextlib.suppress(BrokenPipeError, SystemExit):
        main(["eval", str(tiny_artifact), str(examples), "--json", str(path), "--limit", "2"])
    assert path.exists()


def test_the_backend_of_a_notebook_does_not_keep_a_page_from_being_written(
    tiny_artifact: Path, examples: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "kwise", "eval", str(tiny_artifact), str(examples)]
    environment = {**os.environ, "MPLBACKEND": "module://no_such_module.backend"}
    subprocess.run([*command, "--html", str(page)], env=environment, check=True, timeout=300)
    assert page.is_file()
