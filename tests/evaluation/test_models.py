"""A checkpoint, its artifact and its server have the same rewards and figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwise.evaluation.kind import ModelKind, kind_of
from kwise.evaluation.result import Evaluation
from kwise.train.data.read import read_rankings
from kwise.train.report.evaluation import evaluate
from tests.exports import export_quietly
from tests.servers import Server

Evaluated = Callable[..., tuple[int, Evaluation]]


def close(a: Evaluation, b: Evaluation) -> bool:
    """Return whether all rewards are within the tolerance of an export."""
    pairs = zip(a.rankings, b.rankings, strict=True)
    return all(one.rewards == pytest.approx(other.rewards, abs=1e-4) for one, other in pairs)


def test_checkpoint_artifact_and_server_agree(
    tiny_checkpoint: Path,
    tiny_artifact: Path,
    tiny_server: Server,
    examples: Path,
    evaluated: Evaluated,
) -> None:
    models = {"checkpoint": tiny_checkpoint, "artifact": tiny_artifact}
    results = {
        kind: evaluated(model, examples)
        for kind, model in {**models, "server": tiny_server.address}.items()
    }
    assert [code for code, _ in results.values()] == [0, 0, 0]
    checkpoint = results["checkpoint"][1]
    for kind, (_, result) in results.items():
        assert result.model.kind == kind
        assert close(result, checkpoint)
        # Random weights leave no margins as small as the tolerance in this data.
        for figure in ("accuracy", "by_rank_gap", "by_length", "best_of_n", "kendall_tau", "ndcg"):
            assert getattr(result.figures, figure) == getattr(checkpoint.figures, figure)
        nll = result.figures.calibration.nll.value
        assert nll == pytest.approx(checkpoint.figures.calibration.nll.value, abs=1e-4)
    fingerprints = {kind: result.model.fingerprint for kind, (_, result) in results.items()}
    assert fingerprints["artifact"] == fingerprints["server"] != fingerprints["checkpoint"]


def test_rewards_are_those_of_plain_transformers(
    tiny_checkpoint: Path,
    examples: Path,
    evaluated: Evaluated,
    plain_rewards: Callable[..., list[float]],
) -> None:
    _, result = evaluated(tiny_checkpoint, examples, "--limit", "3")
    for ranking, one in zip(read_rankings(examples), result.rankings, strict=False):
        messages = [{"role": m.role, "content": m.content} for m in ranking.prompt]
        expected = plain_rewards(tiny_checkpoint, messages, list(ranking.responses))
        assert one.rewards == pytest.approx(expected, abs=1e-4)


def test_accuracy_is_the_one_that_training_reports(
    tiny_checkpoint: Path, examples: Path, evaluated: Evaluated
) -> None:
    _, result = evaluated(tiny_checkpoint, examples)
    rewards = iter([one.rewards for one in result.rankings])
    report = evaluate(lambda _: next(rewards), read_rankings(examples))
    assert result.figures.accuracy.accuracy.value == pytest.approx(report.accuracy)
    slices = {part.name: part for part in report.slices}
    for part in (*result.figures.by_rank_gap, *result.figures.by_size):
        assert part.num_pairs == slices[part.name].num_pairs
        assert part.accuracy.value == pytest.approx(slices[part.name].accuracy)


def test_the_reward_of_a_model_with_members_is_their_mean(
    members_checkpoint: Path, examples: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    artifact = export_quietly(members_checkpoint, tmp_path / "artifact")
    results = [
        evaluated(model, examples, "--limit", "3", "--overlong", "skip")[1]
        for model in (members_checkpoint, artifact)
    ]
    assert close(*results)
    assert results[0].data == results[1].data
    assert results[0].figures.num_rankings > 0


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
def test_a_ranking_that_is_too_long_is_named_and_left_out(
    kind: str, mixed: Path, evaluated: Evaluated, request: pytest.FixtureRequest, capsys: Any
) -> None:
    model = request.getfixturevalue(f"tiny_{kind}")
    code, result = evaluated(model, mixed, "--max-tokens", "200")
    printed = capsys.readouterr()
    assert code == 1
    (left_out,) = result.data.left_out
    assert left_out.origin == f"{mixed}:2" and left_out.is_overlong
    assert left_out.reason.startswith("responses[1]: ") and "200" in left_out.reason
    assert f"left out {mixed}:2: {left_out.reason}" in printed.err
    assert "1 ranking could not be scored and is in no figure" in printed.out
    assert (result.data.num_read, result.data.num_tied, result.figures.num_rankings) == (4, 1, 2)
    assert evaluated(model, mixed, "--max-tokens", "200", "--overlong", "skip")[0] == 0


def test_the_kind_of_a_model(tiny_checkpoint: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    assert kind_of(str(tiny_checkpoint)) is ModelKind.CHECKPOINT
    assert kind_of(str(tiny_artifact)) is ModelKind.ARTIFACT
    assert kind_of("owner/name") is ModelKind.CHECKPOINT
    assert kind_of("localhost:50051") is kind_of("unix:/run/kwise") is ModelKind.SERVER
    (tmp_path / "a:1").mkdir()
    assert kind_of(str(tmp_path / "a:1")) is ModelKind.CHECKPOINT
