"""The model card says what the report says, and is a card that hubs read."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from training_runs import IGNORED_WARNINGS

from kwise.train.provenance import git_revision, sha256_of

pytestmark = IGNORED_WARNINGS


def test_the_card_names_data_options_losses_and_accuracy_by_slice(trained: Any, data: Path) -> None:
    report, output = trained
    card = ModelCard.load(output / "README.md")
    assert card.data.pipeline_tag == "text-classification" and "reward-model" in card.data.tags
    assert card.data.license is None, "the licence is the user's to give"
    assert card.data.eval_results[0].metric_value == round(report.after.accuracy, 4)
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    for text in (
        "| file | `rankings.jsonl` |",
        f"| sha256 | `{digest}` |",
        "| rankings | 30 of K = 5 |",
        "| trained on | 26 rankings, 260 pairs |",
        f"| loss |  | {report.before.loss:.4f} | {report.after.loss:.4f} |",
        f"| 52 | {report.losses[-1].loss:.4f} |",
        "| `learning_rate` | `0.001` |",
        f"| transformers | {report.versions['transformers']} |",
        f"| git revision | {report.git_revision} |",
    ):
        assert text in card.text, text
    assert str(data.parent) not in card.text and str(output) not in card.text
    assert "README.md" in report.files


def test_slices_part_the_pairs_by_size_and_by_distance_of_ranks(trained: Any) -> None:
    report, _ = trained
    pairs = {part.name: part.num_pairs for part in report.after.slices}
    # Of five ranks four pairs are neighbours, three are two apart, and three more; four rankings are held out.
    assert pairs == {"K = 5": 40, "ranks 1 apart": 16, "ranks 2 apart": 12, "ranks 3 or more apart": 12}
    for evaluation in (report.before, report.after):
        parts = {part.name: part.num_pairs * part.accuracy for part in evaluation.slices}
        apart = sum(right for name, right in parts.items() if name.startswith("ranks"))
        assert apart == pytest.approx(parts["K = 5"]) == pytest.approx(40 * evaluation.accuracy)


def test_the_revision_is_that_of_the_working_directory_and_tells_of_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_revision() is None and sha256_of("-") is None
    (tmp_path / "file").write_text("one")
    identity = ["-c", "user.name=kwise", "-c", "user.email=kwise@example.org"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    revision = git_revision()
    assert revision is not None and len(revision) == 40
    (tmp_path / "file").write_text("two")
    assert git_revision() == f"{revision}-dirty"
