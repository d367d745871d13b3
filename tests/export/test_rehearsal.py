"""What `kwise export` refuses, `kwise train` says first, and an artifact's rewards are alone's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.session import GraphSession
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError
from kwise.export import architectures
from kwise.export.config import Layout
from kwise.train.options.config import TrainConfig
from kwise.train.run.training import train
from kwise.types import Group, Message
from tests.exports import export_quietly
from tests.training_runs import IGNORED_WARNINGS, options

pytestmark = IGNORED_WARNINGS
DOCS = Path(__file__).parents[2] / "docs" / "architectures"
MAJOR = transformers.__version__.partition(".")[0]


def checkpoint_of(model_type: str, directory: Path) -> Path:
    config_type, kind = architectures.architectures()[model_type]
    torch.manual_seed(0)
    config = config_type()
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0  # every real checkpoint states it
    architectures.small_checkpoint(kind, config, directory)
    return directory


def rankings(path: Path, num: int = 4) -> Path:
    responses = [{"text": "sky", "rank": 1}, {"text": "no </s> sky", "rank": 2}]
    rows = [{"prompt": f"Say sky {i}.", "responses": responses} for i in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("falcon", r"FalconForSequence\w+ cannot be exported: Optimum has no padded export of fal"),
        ("mixtral", r"MixtralForSequence\w+ cannot be exported: its trie graph (fails in|cannot)"),
        ("gpt_oss", r"GptOssForSequence\w+ cannot be exported: its trie graph cannot be made: Not"),
        ("xlnet", r"XLNetForSequence\w+ cannot be exported: Optimum has no padded export of xlnet"),
        ("t5", r"T5ForSequence\w+ cannot be exported: Optimum has no padded export of t5"),
    ],
)
def test_training_says_first_what_the_export_will_refuse(
    model_type: str, reason: str, tmp_path: Path
) -> None:
    model = checkpoint_of(model_type, tmp_path / "model")
    settings = options(rankings(tmp_path / "r.jsonl"), model, tmp_path / "o", save_every=0)
    del settings["export_check"]  # it is on by default
    with pytest.raises(ConfigError) as refused:
        train(TrainConfig(**settings), lambda _: None)
    line = str(refused.value)
    assert re.search(reason, line) and "\n" not in line and "--no-export-check" in line
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.unfinished").exists()
    with pytest.raises(ConfigError, match=reason):
        export_quietly(model, tmp_path / "artifact")


def test_a_model_that_cannot_be_exported_is_trained_if_the_user_says_so(tmp_path: Path) -> None:
    model = checkpoint_of("xlnet", tmp_path / "model")
    settings = options(
        rankings(tmp_path / "r.jsonl"), model, tmp_path / "o", save_every=0, epochs=1.0
    )
    report = train(TrainConfig(**settings), lambda _: None)
    assert report.layout == "separate" and report.layout_reason is not None
    assert "in a padded batch its rewards differ" in report.layout_reason


def rewards_of(artifact: Path, responses: tuple[str, ...], *, together: bool) -> list[float]:
    verified = read_artifact(artifact)
    encoder, session = new_encoder(verified, EngineConfig()), GraphSession(verified)
    prompt = (Message(role="user", content="Say sky."),)
    sequences = []
    for outcome in encoder.encode(Group(prompt=prompt, responses=responses)):
        assert isinstance(outcome, EncodedSequence)
        sequences.append(outcome)
    if together:
        return session.run(sequences).rewards.tolist()
    return [float(session.run([sequence]).rewards[0]) for sequence in sequences]


def test_an_end_of_sequence_token_in_a_response_changes_no_other_reward(tmp_path: Path) -> None:
    """BART's graph mixed up the rewards of a batch in which the numbers of </s> differed."""
    checkpoint = checkpoint_of("bart", tmp_path / "checkpoint")
    artifact = export_quietly(checkpoint, tmp_path / "artifact")
    assert read_artifact(artifact).manifest.layout == "separate"
    responses = ("sky", "the </s></s> end", "sky blue </s>", "<|pad|> and <s>")
    alone = rewards_of(artifact, responses, together=False)
    assert rewards_of(artifact, responses, together=True) == alone
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    for response, reward in zip(responses, alone, strict=True):
        messages = [
            {"role": "user", "content": "Say sky."},
            {"role": "assistant", "content": response},
        ]
        input_ids = torch.tensor([tokenizer(render(tokenizer, messages))["input_ids"]])
        with torch.no_grad():
            assert reward == pytest.approx(float(model(input_ids).logits[0, 0]), abs=1e-4)
    with pytest.raises(ConfigError, match=r"BartFor\w+ cannot be exported: its padded graph"):
        export_quietly(checkpoint, tmp_path / "other", layout=Layout.PADDED)


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def test_an_export_ends_where_the_graph_stops_to_give_the_rewards(tmp_path: Path) -> None:
    """BigBird's graph is traced with full attention, which the model leaves at 704 tokens."""
    checkpoint = checkpoint_of("big_bird", tmp_path / "checkpoint")
    artifact = export_quietly(checkpoint, tmp_path / "artifact")
    assert read_artifact(artifact).manifest.max_tokens == 704
    with pytest.raises(ConfigError, match=r"--max-tokens is 705; it must be at most 704, because"):
        export_quietly(checkpoint, tmp_path / "other", max_tokens=705)


@pytest.mark.parametrize("model_type", ["convbert", "bloom", "gemma3"])
def test_an_architecture_is_exported_with_parity_or_refused_before_training(
    model_type: str,
) -> None:
    (row,) = architectures.walk([model_type])
    assert not row.bug
    assert bool(row.artifact) != bool(row.reason)


def test_the_table_in_the_docs_names_every_architecture_of_this_transformers() -> None:
    table = (DOCS / f"transformers-{MAJOR}.md").read_text(encoding="utf-8")
    assert "BUG" not in table
    listed = set(re.findall(r"^\| ([\w-]+) \| \w+For", table, re.MULTILINE))
    assert listed == set(architectures.architectures())
