"""Ids from configs and tokenizers are used only if they are those of tokens with a row."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import usable_id
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.reward_model import load_reward_model
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import parse_ranking
from kwise.train.step.batch import tokenize_rankings
from kwise.types import Message
from tests.edited_checkpoints import copy_checkpoint
from tests.tiny_models import GROUPED, SMALL, byte_tokenizer, tiny_model


@pytest.mark.parametrize(
    ("token_id", "usable"),
    [(5, 5), (0, 0), (98, 98), (99, None), (-1, None), (None, None), ([5], None), (True, None)],
)
def test_only_the_id_of_a_token_is_usable(token_id: Any, usable: int | None) -> None:
    assert usable_id(token_id, 99) == usable


@pytest.fixture(scope="module")
def llama_with_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(
        "Llama", GROUPED, byte_tokenizer(None), tmp_path_factory.mktemp("m") / "m", pad_token_id=5
    )


@pytest.mark.parametrize("stated", [-1, None, 262])
def test_training_chooses_a_padding_token_that_the_model_has(
    llama_with_bytes: Path, tmp_path: Path, stated: int | None
) -> None:
    """-1 raised an OverflowError; nothing could load a checkpoint trained with 262 of 262 rows."""
    path = copy_checkpoint(llama_with_bytes, tmp_path / "copy", pad_token_id=stated)
    loaded = load_reward_model(str(path))
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id == 5


def test_a_padding_token_of_the_tokenizer_without_a_row_is_not_chosen(
    llama_with_bytes: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(llama_with_bytes, tmp_path / "copy", pad_token_id=None)
    tokenizer = byte_tokenizer(None)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(path)
    loaded = load_reward_model(str(path))
    assert tokenizer.pad_token_id == 262 and loaded.model.config.pad_token_id == 5
    loaded.save(tmp_path / "saved")
    transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_a_chat_template_that_writes_a_token_without_a_row_is_refused(
    llama_with_bytes: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(llama_with_bytes, tmp_path / "copy")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.chat_template += "<|new|>"
    tokenizer.save_pretrained(path)
    with pytest.raises(ConfigError, match=r"token 262 \('<\|new\|>'\) is outside the model's 262"):
        load_reward_model(str(path))


def test_a_response_with_a_token_without_a_row_is_named(llama_with_bytes: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    line = (
        b'{"prompt": "Q", "responses": [{"text": "no", "rank": 1}, '
        b'{"text": "yes <|tool|>", "rank": 2}]}'
    )
    with pytest.raises(RankingsError) as raised:
        tokenize_rankings(
            [parse_ranking(line, origin="r.jsonl:1")],
            tokenizer,
            max_tokens=None,
            skip_overlong=False,
            num_rows=262,
        )
    assert str(raised.value) == (
        "r.jsonl:1: responses[1]: token 262 ('<|tool|>') is outside the model's 262"
    )


@pytest.mark.parametrize(("stated", "chosen"), [(1, 1), (-1, None)])
def test_a_model_that_counts_positions_from_its_padding_token_keeps_it(
    tmp_path: Path, stated: int, chosen: int | None
) -> None:
    """Saved with another padding token it would come back with other positions."""
    options = {**SMALL, "max_position_embeddings": 130}
    path = tiny_model("Roberta", options, byte_tokenizer(), tmp_path / "m", pad_token_id=stated)
    if chosen is None:
        with pytest.raises(
            ConfigError, match=r"from its padding token, and config\.json has no pad_token_id"
        ):
            load_reward_model(str(path))
        return
    assert load_reward_model(str(path)).model.config.pad_token_id == chosen


def test_ids_in_a_nested_text_config_are_read_and_set(tmp_path: Path) -> None:
    """Gemma 3 read its rewards at text_config's padding token, and training padded with another."""
    tokenizer = byte_tokenizer()
    text = {
        **GROUPED,
        "vocab_size": 300,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        num_labels=1,
        boi_token_index=290,
        eoi_token_index=291,
        image_token_index=292,
    )
    transformers.Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_reward_model(str(tmp_path))
    assert loaded.model.config.text_config.pad_token_id == loaded.tokenizer.pad_token_id == 5
    assert loaded.max_tokens == GROUPED["max_position_embeddings"]
    conversations = [
        (Message(role="user", content="Q"), Message(role="assistant", content=text))
        for text in ("sky", "no " * 30)
    ]
    alone = [loaded.rewards([conversation])[0] for conversation in conversations]
    assert loaded.rewards(conversations) == pytest.approx(alone, abs=1e-5)


def test_a_model_without_a_row_for_each_token_is_refused(tmp_path: Path) -> None:
    """CANINE hashes characters, so nothing says which token ids it can read."""
    config = transformers.CanineConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_hash_buckets=99,
        num_labels=1,
    )
    transformers.CanineForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no table of token embeddings"):
        load_checkpoint("--model", str(tmp_path), to_train=True)
