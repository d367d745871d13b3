"""Checkpoints whose artifact would be wrong where parity cannot see it are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from kwise.engine.artifact.read import read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError, InvalidRequest
from kwise.export.checkpoint import is_causal, rope_limit
from kwise.export.config import ExportConfig, Layout
from kwise.export.parity import allowed_difference
from kwise.export.parity_cases import reference_cases
from kwise.types import Group, Message
from tests.edited_checkpoints import copy_checkpoint
from tests.exports import export_quietly
from tests.tiny_models import GROUPED, SMALL, byte_tokenizer, tiny_model

LIMIT = 384
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
PHI3 = {
    **GROUPED,
    "max_position_embeddings": 4 * LIMIT,
    "original_max_position_embeddings": LIMIT,
    "rope_scaling": LONGROPE,
}
STATIC: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


def llama(kind: str, tokenizer: Any, path: Path, **scaling: Any) -> Path:
    options = {
        **GROUPED,
        "max_position_embeddings": LIMIT,
        "rope_scaling": {"rope_type": kind, **scaling},
    }
    return tiny_model("Llama", options, tokenizer, path)


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_right_up_to_the_limit(checkpoint: Path, artifact: Path, limit: int) -> None:
    """Token ids, so that lengths are exact: short, and as long as the artifact takes."""
    verified = read_artifact(artifact)
    assert verified.manifest.max_tokens == limit
    session, encoder = GraphSession(verified), new_encoder(verified, EngineConfig())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    whole = np.random.default_rng(0).integers(100, 40_000, limit)
    served, expected = [], []
    for length in (3, limit // 2, limit - 1, limit):
        (encoded,) = encoder.encode(Group(prompt=tuple(whole[:length].tolist()), responses=((),)))
        assert isinstance(encoded, EncodedSequence)
        served.append(float(session.run([encoded]).rewards[0]))
        with torch.inference_mode():
            expected.append(float(model(torch.from_numpy(whole[:length])[None]).logits))
    np.testing.assert_allclose(served, expected, rtol=0, atol=allowed_difference(1e-4, expected))


@pytest.mark.parametrize("kind", STATIC)
def test_rotary_embeddings_that_are_the_same_at_every_length_are_right_up_to_the_models_limit(
    kind: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    checkpoint = llama(kind, smollm2_tokenizer, tmp_path / "checkpoint", **STATIC[kind])
    assert_right_up_to_the_limit(
        checkpoint, export_quietly(checkpoint, tmp_path / "artifact"), LIMIT
    )


@pytest.mark.parametrize("layout", [Layout.TRIE, Layout.PADDED])
def test_dynamic_rotary_embeddings_are_right_up_to_the_length_of_pretraining(
    layout: Layout, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    checkpoint = llama("dynamic", smollm2_tokenizer, tmp_path / "checkpoint", factor=4.0)
    assert_right_up_to_the_limit(
        checkpoint, export_quietly(checkpoint, tmp_path / "artifact", layout=layout), LIMIT
    )


def test_longrope_is_served_up_to_the_length_of_pretraining_where_its_factors_change(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """The graph has the short factors, which are wrong beyond LIMIT, where parity does not look."""
    checkpoint = tiny_model("Phi3", PHI3, smollm2_tokenizer, tmp_path / "checkpoint")
    assert_right_up_to_the_limit(
        checkpoint, export_quietly(checkpoint, tmp_path / "artifact"), LIMIT
    )
    with pytest.raises(
        ConfigError,
        match=rf"--max-tokens is {LIMIT + 1}; it must be at most {LIMIT}, because beyond it",
    ):
        export_quietly(checkpoint, tmp_path / "longer", max_tokens=LIMIT + 1)


def test_an_unknown_scaling_of_rotary_embeddings_is_refused() -> None:
    model = torch.nn.Module()
    model.rotary = torch.nn.Module()
    model.rotary.rope_type = "by-the-moon"
    with pytest.raises(ConfigError, match="'by-the-moon'; known are default, dynamic"):
        rope_limit(model)


def test_padded_batches_of_a_causal_model_without_a_padding_token_are_refused(
    tiny_checkpoint: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """transformers reads the very last token, which in a padded batch would be padding."""
    checkpoint = tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path / "checkpoint")
    edit_config(checkpoint, pad_token_id=None)
    with pytest.raises(
        ConfigError, match="a causal model without a pad_token_id; use --layout trie"
    ):
        export_quietly(checkpoint, tmp_path / "artifact", layout=Layout.PADDED)
    manifest = read_artifact(export_quietly(checkpoint, tmp_path / "artifact")).manifest
    assert (manifest.layout, manifest.pad_token_id) == ("trie", None)


@pytest.fixture(scope="module")
def odd_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound reward model whose config says "none" as -1, has no labels, and scales rewards."""
    directory = tmp_path_factory.mktemp("odd")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})  # without a row
    return copy_checkpoint(
        tiny_model("Llama", {**GROUPED, "vocab_size": 262}, tokenizer, directory / "source"),
        directory / "copy",
        without=("id2label", "label2id"),
        pad_token_id=-1,
        mean=1.5,
        std=2.0,
    )


@pytest.fixture(scope="module")
def odd_artifact(odd_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_quietly(odd_checkpoint, tmp_path_factory.mktemp("odd") / "artifact")


def test_what_an_odd_config_states_reaches_the_manifest(odd_artifact: Path) -> None:
    """A server refused the artifact, because pad_token_id was -1."""
    manifest = read_artifact(odd_artifact).manifest
    assert manifest.pad_token_id is None
    assert (manifest.reward_mean, manifest.reward_std) == (1.5, 2.0)


def test_a_text_with_a_token_without_a_row_is_refused_by_the_encoder(odd_artifact: Path) -> None:
    """ONNX Runtime failed on the whole batch, and the client got INTERNAL."""
    encoder = new_encoder(read_artifact(odd_artifact), EngineConfig())
    prompt = (Message(role="user", content="Q"),)
    first, second = encoder.encode(Group(prompt=prompt, responses=("yes <|tool|>", "no")))
    assert isinstance(second, EncodedSequence) and isinstance(first, InvalidRequest)
    assert str(first) == (
        "responses[0].text: it spells out token 262, which is outside the model's vocabulary of 262"
    )
    with pytest.raises(InvalidRequest, match="prompt: it spells out token 262"):
        encoder.encode(
            Group(prompt=(Message(role="user", content="<|tool|> Q"),), responses=("a", "b"))
        )


def test_special_tokens_to_which_transformers_gives_no_reward_are_noted(
    odd_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were left out of the check of parity without a word, whatever was raised."""
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = load(odd_checkpoint, num_labels=1, pad_token_id=None).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(odd_checkpoint)
    notes: list[str] = []
    cases = reference_cases(model, tokenizer, 256, notes.append)
    texts = [case.response for case in cases if isinstance(case.response, str)]
    assert any("<|im_end|>" in text for text in texts)
    assert not any("<|tool|>" in text for text in texts)
    assert notes == [
        "parity is not checked with texts that contain <|tool|>, to which transformers gives no "
        "reward: IndexError: index out of range in self"
    ]

    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "forward", exhausted)
    with pytest.raises(MemoryError):
        reference_cases(model, tokenizer, 256, notes.append)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_no_manifest_can_hold_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"--reward-mean is {value}; it must be at "):
        ExportConfig(checkpoint="m", artifact="a", reward_mean=value)
    with pytest.raises(ConfigError, match=f"--reward-std is {value}; it must be "):
        ExportConfig(checkpoint="m", artifact="a", reward_std=value)


def test_a_pair_tokenizer_with_more_types_than_the_model_is_refused(tmp_path: Path) -> None:
    """transformers itself fails on such a pair, with an index out of range."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A </s> $B:1", special_tokens=[("</s>", 2)]
    )
    options = {**SMALL, "max_position_embeddings": 512, "type_vocab_size": 1}
    checkpoint = tiny_model("Bert", options, tokenizer, tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="type 1, and the model has 1 types"):
        export_quietly(checkpoint, tmp_path / "artifact")


def test_an_encoder_with_unused_rows_in_its_embeddings_is_not_taken_for_causal() -> None:
    """The measurement exchanged two tokens whose embeddings were both zero."""
    config = transformers.BertConfig(vocab_size=99, num_labels=1, intermediate_size=32, **TINY)
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()[:11] = 0
    assert not is_causal(model)


def test_a_model_without_a_limit_needs_one_on_the_command_line(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """Its tokenizer's 10^30 went into the manifest, and GetModel failed."""
    options = {"hidden_size": 64, "n_layer": 1, "n_head": 4}
    checkpoint = tiny_model("Bloom", options, smollm2_tokenizer, tmp_path / "checkpoint")
    tokenizer_config = checkpoint / "tokenizer_config.json"
    tokenizer_config.write_text(
        json.dumps({**json.loads(tokenizer_config.read_text()), "model_max_length": int(1e30)})
    )
    with pytest.raises(
        ConfigError, match="does not state its longest conversation: give a limit as --max-tokens"
    ):
        export_quietly(checkpoint, tmp_path / "artifact")


def test_roberta_reads_two_tokens_less_than_it_has_positions(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    checkpoint = tiny_model(
        "Roberta",
        {**SMALL, "max_position_embeddings": 130},
        smollm2_tokenizer,
        tmp_path / "checkpoint",
        pad_token_id=1,
    )
    assert_right_up_to_the_limit(checkpoint, export_quietly(checkpoint, tmp_path / "artifact"), 128)


@pytest.mark.parametrize("max_tokens", [1, 16])
def test_a_limit_that_no_conversation_fits_into_is_refused_with_the_least_that_does(
    tiny_checkpoint: Path, tmp_path: Path, max_tokens: int
) -> None:
    """It ended in a traceback."""
    with pytest.raises(
        ConfigError, match=f"limit of {max_tokens} leaves nothing to check parity with"
    ) as raised:
        export_quietly(tiny_checkpoint, tmp_path / "artifact", max_tokens=max_tokens)
    least = int(str(raised.value).split("at least ")[1].split(",")[0])
    manifest = read_artifact(
        export_quietly(tiny_checkpoint, tmp_path / "artifact", max_tokens=least)
    ).manifest
    assert (
        manifest.max_tokens
        == manifest.error_bounds[Precision.FP32].report["longest_tokens"]
        == least
    )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], None])
def test_a_pair_of_texts_has_types_only_if_the_tokenizer_writes_them(
    names: list[str] | None, tmp_path: Path
) -> None:
    """A tokenizer says in `model_input_names` what it gives its model.

    Without `token_type_ids` all tokens have type 0. The second text had type 1 all the same, also
    in the rewards that parity compared with: 1.62 for 2.16.
    """
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    options = {**SMALL, "max_position_embeddings": LIMIT}
    checkpoint = tiny_model("Bert", options, tokenizer, tmp_path / "bert")
    path = checkpoint / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    stated.pop("model_input_names", None)
    path.write_text(json.dumps(stated if names is None else {**stated, "model_input_names": names}))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    inputs = tokenizer("Say sky.", "sky", return_token_type_ids=names is None, return_tensors="pt")
    with torch.inference_mode():
        expected = float(model(**inputs).logits[0, 0])

    artifact = read_artifact(export_quietly(checkpoint, tmp_path / "artifact"))
    group = Group(prompt=(Message(role="user", content="Say sky."),), responses=("sky",))
    (sequence,) = new_encoder(artifact, EngineConfig()).encode(group)
    assert isinstance(sequence, EncodedSequence)
    (reward,) = GraphSession(artifact, threads=1).run([sequence]).rewards
    assert float(reward) == pytest.approx(expected, abs=1e-4)
