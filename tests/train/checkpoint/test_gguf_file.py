"""A GGUF file whose rewards would be those of another model is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.model.checkpoint import load_checkpoint

HEADS, GROUPS, LAYERS = 4, 2, 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
Change = Callable[[Any], object]


@pytest.fixture
def model() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        num_labels=1,
    )
    return LlamaForSequenceClassification(config).eval()


def write(model: Any, path: Path, change: Change = lambda writer: None) -> str:
    """Write the backbone as llama.cpp's converter does, with a change, and return the path."""
    config, weights = model.config, model.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    change(writer)
    writer.add_tensor("token_embd.weight", weights["embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["norm.weight"].numpy())
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            weight = weights[f"layers.{layer}.{ours}.weight"].numpy()
            heads = {"attn_q": HEADS, "attn_k": GROUPS}.get(theirs)
            if heads:  # llama.cpp has the two halves of a head's rows in turns
                halves = weight.reshape(heads, 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def rope_scaling(kind: gguf.RopeScalingType, factor: float) -> Change:
    def change(writer: Any) -> None:
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)

    return change


def tensor(name: str, value: float, *shape: int) -> Change:
    return lambda writer: writer.add_tensor(name, np.full(shape, value, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda writer: None,
        rope_scaling(gguf.RopeScalingType.NONE, 4.0),
        rope_scaling(gguf.RopeScalingType.LINEAR, 1.0),
        tensor("rope_freqs.weight", 1.0, 8),
        tensor("output.weight", 0.5, 40, 64),
        lambda writer: writer.add_sliding_window(128),
        lambda writer: writer.add_key_length(16),
    ],
    ids=["plain", "no-scaling", "factor-1", "frequencies-1", "lm-head", "wide-window", "head-size"],
)
def test_a_file_that_is_read_whole_gives_the_states_of_its_weights(
    change: Change, model: Any, tmp_path: Path
) -> None:
    path = write(model, tmp_path / "model.gguf", change)
    loaded = load_checkpoint("--model", path, to_train=True).model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state
        torch.testing.assert_close(loaded.model(ids).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (rope_scaling(gguf.RopeScalingType.LINEAR, 4.0), r"llama\.rope\.scaling\.type linear"),
        (rope_scaling(gguf.RopeScalingType.YARN, 4.0), r"llama\.rope\.scaling\.type yarn"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), r"rope\.scale_linear 2"),
        (tensor("rope_freqs.weight", 8.0, 8), r"does not read rope_freqs\.weight"),
        (lambda w: w.add_sliding_window(32), r"sliding_window 32 \(it uses 0\)"),
        (lambda w: w.add_attn_logit_softcapping(50.0), r"softcapping 50 \(it uses 0\)"),
        (lambda w: w.add_embedding_scale(12.0), r"embedding_scale 12 \(it uses 1\)"),
        (lambda w: w.add_causal_attention(False), r"attention\.causal 0 \(it uses 1\)"),
        (tensor("blk.1.attn_q.bias", 1.0, 64), r"blk\.1\.attn_q\.bias beside them"),
        (tensor("blk.2.attn_norm.weight", 1.0, 64), r"blk\.2\.attn_norm\.weight beside them"),
    ],
)
def test_what_transformers_does_not_read_is_refused(
    change: Change, problem: str, model: Any, tmp_path: Path
) -> None:
    path = write(model, tmp_path / "model.gguf", change)
    with pytest.raises(ConfigError, match=problem):
        load_checkpoint("--model", path, to_train=True)
