"""The model card says what the report says, and is a card that hubs read."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from kwise.train.data.read import read_rankings
from kwise.train.options.objectives import OBJECTIVES, ObjectiveName
from kwise.train.rankings.hash import rankings_sha256
from kwise.train.report.model_card import model_card
from kwise.train.report.provenance import git_revision
from tests.training_runs import IGNORED_WARNINGS

pytestmark = IGNORED_WARNINGS


def test_the_card_names_data_options_losses_and_accuracy_by_slice(trained: Any, data: Path) -> None:
    report, output = trained
    card = ModelCard.load(output / "README.md")
    assert card.data.pipeline_tag == "text-classification" and "reward-model" in card.data.tags
    assert card.data.license is None, "the licence is the user's to give"
    assert card.data.eval_results[0].metric_value == round(report.after.accuracy, 4)
    for text in (
        "| file | `rankings.jsonl` |",
        f"| sha256 of the rankings | `{rankings_sha256(read_rankings(data))}` |",
        "| rankings | 30 of K = 5 |",
        "| trained on | 26 rankings, 260 pairs |",
        f"| loss of pairs | {report.after.num_pairs} | {report.before.loss:.4f} "
        f"| {report.after.loss:.4f} |",
        f"| 52 | {report.losses[-1].loss:.4f} |",
        "| layout | trie |",
        "| `learning_rate` | `0.001` |",
        f"| transformers | {report.versions['transformers']} |",
        f"| git revision | {report.git_revision} |",
    ):
        assert text in card.text, text
    assert str(data.parent) not in card.text and str(output) not in card.text
    assert "README.md" in report.files


@pytest.mark.parametrize(
    ("changed", "meaning"),
    [
        ({}, "the higher reward, with probability σ of the difference."),
        ({"objective": "regression"}, "The reward estimates the score that people would give."),
        ({"objective": "sigmoid"}, "the size of the difference is not a probability."),
        ({"margin": "ranks"}, "the size of the difference is not a probability."),
        ({"label_smoothing": 0.1}, "the size of the difference is not a probability."),
        ({"ties": "davidson", "margin": "ranks"}, "the difference is not a probability."),
        ({"objective": "plackett-luce"}, "choosing the best of those that are left"),
        ({"ties": "davidson"}, "the probabilities of Davidson's model"),
        ({"ties": "rao-kupper"}, "the probabilities of Rao and Kupper's model"),
    ],
)
def test_what_a_reward_means_depends_on_the_objective(
    trained: Any, changed: dict[str, Any], meaning: str
) -> None:
    """Every card said that σ of a difference is a probability."""
    report, _ = trained
    text = model_card(replace(report, config=report.config | changed)).text
    assert meaning in text and ("σ" in text) == (not changed)


def test_the_card_says_that_layers_are_left_out(trained: Any) -> None:
    report, _ = trained
    card = model_card(replace(report, config=report.config | {"layers": 2}))
    assert f"The first 2 layers of `{report.config['model']}` with a linear layer" in card.text
    assert "The first" not in model_card(report).text


@pytest.mark.parametrize("name", ObjectiveName)
def test_the_card_names_the_source_of_the_objective(trained: Any, name: ObjectiveName) -> None:
    report, _ = trained
    card = model_card(replace(report, config=report.config | {"objective": name.value}))
    assert f"The objective is `{name.value}` ({OBJECTIVES[name].source})." in card.text


def test_slices_part_the_pairs_by_size_and_by_distance_of_ranks(trained: Any) -> None:
    report, _ = trained
    pairs = {part.name: part.num_pairs for part in report.after.slices}
    # Five ranks give 4 pairs of neighbours, 3 pairs two apart and 3 others; 4 rankings.
    assert pairs == {
        "K = 5": 40,
        "ranks 1 apart": 16,
        "ranks 2 apart": 12,
        "ranks 3 or more apart": 12,
    }
    for evaluation in (report.before, report.after):
        parts = {part.name: part.num_pairs * part.accuracy for part in evaluation.slices}
        apart = sum(right for name, right in parts.items() if name.startswith("ranks"))
        assert apart == pytest.approx(parts["K = 5"]) == pytest.approx(40 * evaluation.accuracy)


def test_the_revision_is_that_of_the_working_directory_and_tells_of_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_revision() is None
    (tmp_path / "file").write_text("one")
    identity = ["-c", "user.name=kwise", "-c", "user.email=kwise@example.org"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    revision = git_revision()
    assert revision is not None and len(revision) == 40
    (tmp_path / "file").write_text("two")
    assert git_revision() == f"{revision}-dirty"
