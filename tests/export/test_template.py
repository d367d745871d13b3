"""What `kwise train` takes as a chat template, `kwise export` takes and the engine serves."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.session import GraphSession
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError, InvalidRequest
from kwise.export.config import ExportConfig
from kwise.export.exporter import export
from kwise.train.options.config import TrainConfig
from kwise.train.run.training import train
from kwise.types import Group, Message
from tests.exports import export_quietly
from tests.training_runs import IGNORED_WARNINGS, options

pytestmark = IGNORED_WARNINGS
SINGLE = (
    "{% if messages|length != 2 %}{{ raise_exception('one question, one answer') }}{% endif %}"
    "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }} = {{ messages[1].content }}\n"
)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose template takes one question and one answer, and printed a date."""
    path = tmp_path_factory.mktemp("template")
    data = path / "rankings.jsonl"
    responses = [{"text": "yes", "rank": 1}, {"text": "no", "rank": 2}]
    rankings = [{"prompt": f"Question {number}?", "responses": responses} for number in range(4)]
    data.write_text("".join(json.dumps(ranking) + "\n" for ranking in rankings))
    (path / "single.jinja").write_text(SINGLE)
    lines: list[str] = []
    config = options(
        data, tiny_checkpoint, path / "out", chat_template=path / "single.jinja", epochs=1.0
    )
    train(TrainConfig(**config, template_date="2025-03-01"), lines.append)
    assert any("more than one turn: one question, one answer" in line for line in lines)
    return path / "out"


def test_an_artifact_serves_the_questions_and_the_date_that_its_template_takes(
    checkpoint: Path, plain_rewards: Any, tmp_path: Path
) -> None:
    artifact = read_artifact(export_quietly(checkpoint, tmp_path / "artifact"))
    assert artifact.chat_template is not None and "01 Mar 2025" in artifact.chat_template
    template = artifact.manifest.provenance["chat_template"]
    assert template["date"] == "2025-03-01" and "single.jinja" in template["origin_in_training"]
    encoder, session = new_encoder(artifact, EngineConfig()), GraphSession(artifact)
    question = Message(role="user", content="Q")
    (encoded,) = encoder.encode(Group(prompt=(question,), responses=("yes",)))
    assert isinstance(encoded, EncodedSequence)
    expected = plain_rewards(checkpoint, [{"role": "user", "content": "Q"}], ["yes"])
    assert float(session.run([encoded]).rewards[0]) == pytest.approx(expected[0], abs=1e-4)
    turns = (question, Message(role="assistant", content="a"), question)
    with pytest.raises(InvalidRequest, match=r"^prompt\.messages: .*one question, one answer"):
        encoder.encode(Group(prompt=turns, responses=("b",)))


def test_a_template_that_the_checkpoint_was_not_trained_with_is_noted(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The export goes on to the limit of tokens, which is refused."""
    other = tmp_path / "other.jinja"
    other.write_text(SINGLE)
    settings: dict[str, Any] = {"checkpoint": str(checkpoint), "artifact": str(tmp_path / "a")}
    notes: list[str] = []
    with pytest.raises(ConfigError, match="--max-tokens"):
        export(ExportConfig(**settings, max_tokens=2**30), notes.append)
    assert not any("was not trained with" in note for note in notes)
    with pytest.raises(ConfigError, match="--max-tokens"):
        export(
            ExportConfig(
                **settings,
                max_tokens=2**30,
                chat_template=str(other),
                template_date="2025-03-02",
            ),
            notes.append,
        )
    assert any(
        f"{checkpoint} was not trained with the chat template {other}" in note for note in notes
    )
    report = json.loads((checkpoint / "training_report.json").read_text())
    assert report["template_date"] == "2025-03-01"
