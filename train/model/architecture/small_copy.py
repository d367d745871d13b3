"""A small copy of a model: the same class and settings, with a few random weights.

Whether a reward depends on more than its own conversation (batch composition, length, earlier
conversations) follows from the architecture and its settings, not from the weights. So it can be
measured on a copy that takes milliseconds, at lengths at which the model itself takes minutes. The
copy keeps what decides the computation: rotary embeddings and their thresholds, windows, types of
layers, vocabulary, special tokens. It has fewer layers (one of each type, and at least two), fewer
heads and experts, and it is narrow.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kwise.train.model.architecture.layer_lists import lists_per_layer

_HEADS, _HEAD_SIZE = 4, 16
_WIDTH = _HEADS * _HEAD_SIZE
_MIN_LAYERS = 2
# Wide enough that another token, position or mask changes the reward.
_STD = 0.2


def _named(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


_SIZES: Mapping[str, Any] = {
    **_named(_WIDTH, "hidden_size", "embedding_size", "word_embed_proj_dim", "pooler_hidden_size"),
    **_named(_WIDTH, "input_embedding_size", "output_embedding_size", "d_embed", "d_latents"),
    **_named(96, "intermediate_size", "d_ff", "d_inner", "ffn_dim", "dff", "hidden_dim"),
    **_named(96, "encoder_ffn_dim", "decoder_ffn_dim", "feed_forward_size", "ffn_hidden_size"),
    **_named(96, "moe_intermediate_size", "shared_expert_intermediate_size"),
    **_named(_HEADS, "num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"),
    **_named(_HEAD_SIZE, "head_dim", "d_kv", "d_head", "attention_head_size", "kv_channels"),
    **_named(_HEAD_SIZE, "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank"),
    **_named(8, "qk_rope_head_dim", "rotary_dim"),
    "qk_head_dim": _HEAD_SIZE + 8,
    "cross_attention_hidden_size": _WIDTH,
    # So many that a short conversation does not reach them all: a graph may need them all.
    **_named(16, "num_local_experts", "num_experts", "n_routed_experts"),
    **_named(2, "num_experts_per_tok", "moe_topk"),
    **_named(1, "n_group", "topk_group", "first_k_dense_replace"),
    # Mamba, Zamba, Jamba, Qwen3-Next: recurrent layers beside those of attention.
    **_named(2 * _WIDTH, "attention_hidden_size"),
    **_named(2 * _HEAD_SIZE, "attention_head_dim"),
    **_named(2, "attn_layer_period", "expert_layer_period", "num_mem_blocks"),
    **_named(1, "attn_layer_offset", "expert_layer_offset"),
    **_named(4, "mamba_dt_rank", "adapter_rank"),
    **_named(8, "mamba_d_state", "n_mamba_heads"),
    **_named(_HEAD_SIZE, "mamba_headdim", "linear_key_head_dim", "linear_value_head_dim"),
    **_named(2, "linear_num_key_heads"),
    **_named(4, "linear_num_value_heads"),
    "global_attn_every_n_layers": 2,  # ModernBERT
    "axial_pos_embds_dim": [16, 48],  # Reformer
    **_named(16, "pronunciation_embed_dim", "shape_embed_dim"),  # RoCBert
    **_named(12, "coordinate_size"),  # LayoutLMv3: 4 of these and 2 of those make the width
    **_named(8, "shape_size", "entity_vocab_size"),
    **_named(_WIDTH, "entity_emb_size"),  # LUKE
}
"""Sizes of the copy by their name in a config. Names that a config does not have are not set."""

_NEEDED = ("head_dim", "num_experts_per_tok")
"""Sizes that some classes need although their config's default is None."""

_LAYER_COUNTS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")

_BY_TYPE: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {"head_dim": 8},
    "deepseek_v3": {"head_dim": 8},
    "lilt": {"hidden_size": 96},
    "zamba": {"n_mamba_heads": 2, "layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "modernbert-decoder": {"layer_types": ["full_attention", "sliding_attention"]},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "transfo-xl": {"cutoffs": [], "tie_projs": [False], "div_val": 1},
    "perceiver": {"num_latents": 8, "d_model": _WIDTH, "num_self_attends_per_block": 2},
}
"""Sizes of single types of models, which go before `_SIZES`."""


def small_copies(model: PreTrainedModel) -> Callable[[], PreTrainedModel] | None:
    """Return a function that returns fresh small copies of the model, all with the same weights.

    They are in evaluation mode and without dropout. None if no such copy can be made.
    """
    try:
        first = small_model(type(model), model.config)
        # Drawing the embeddings of a whole vocabulary takes ten times as long as copying them.
        new_copy = partial(copy.deepcopy, first)
        new_copy()
    except Exception:  # noqa: BLE001 - a class may have any other demands on its sizes
        return None
    return new_copy


def small_model(
    kind: type[PreTrainedModel], config: PretrainedConfig, seed: int = 0
) -> PreTrainedModel:
    """Return a small model of the class and the settings; see `small_copies`.

    Raises what the class raises.
    """
    small = copy.deepcopy(config)
    if str(small._attn_implementation).startswith("kwise"):  # the model is prepared for a trie
        small._attn_implementation = None
    for part in (small, *config_parts(small)):
        _reduce(part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(small)
        _randomise(model)
    model.config.use_cache = False
    disable_dropout(model)
    return model.eval()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0.

    The K rewards of a ranking must come from one function.

    vwxyzjn/summarize_from_feedback_details (`configure_dropout`) and TRL's
    `RewardConfig.disable_dropout` do the same. The figures in the config stay.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention functions and LayerDrop read a float attribute instead: `attention_dropout`,
        # `layerdrop`.
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def config_parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield the configs inside a config, for instance those of the text and of the images."""
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield value
            yield from config_parts(value)


def _reduce(config: PretrainedConfig) -> None:
    """Set the sizes of one config."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    heads = getattr(config, "num_attention_heads", None)
    old_head_size = _head_size(config)
    _reduce_layers(config)
    for name, size in {**_SIZES, **_BY_TYPE.get(config.model_type, {})}.items():
        needed = name in _NEEDED and hasattr(config, name)
        if needed or getattr(config, name, None) is not None:
            _set(config, name, size)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if hasattr(config, name):
            groups = getattr(config, name)
            _set(config, name, _HEADS if groups in (heads, None) else min(groups, 2))
    if isinstance(blocks := getattr(config, "block_sizes", None), list):  # Funnel
        # The first layer of a block sees nothing of what the block pools.
        _set(config, "block_sizes", [2] * len(blocks))
    if old_head_size:
        # In transformers 5 the old name is another one for the same value.
        name = "rope_parameters" if hasattr(config, "rope_parameters") else "rope_scaling"
        if isinstance(rope := getattr(config, name, None), dict):
            _set(config, name, _resized(rope, _HEAD_SIZE / old_head_size))


def _reduce_layers(config: PretrainedConfig) -> None:
    """Keep one layer of each type, and at least two."""
    for name in _LAYER_COUNTS:
        if isinstance(number := getattr(config, name, None), int):
            lists = lists_per_layer(config, number)
            types = list(zip(*lists.values(), strict=True)) if name == "num_hidden_layers" else []
            layers = [index for index, kind in enumerate(types) if types.index(kind) == index]
            layers = layers if len(layers) >= _MIN_LAYERS else list(range(_MIN_LAYERS))
            if types and number >= _MIN_LAYERS:
                for key, value in lists.items():
                    _set(config, key, [value[index] for index in layers])
            _set(config, name, len(layers))


def _head_size(config: PretrainedConfig) -> int | None:
    """Return the size of a head of attention; None if the config has no heads."""
    size: int | None = getattr(config, "head_dim", None)
    if size is None:
        width, heads = (
            getattr(config, name, None) for name in ("hidden_size", "num_attention_heads")
        )
        size = width // heads if width and heads else None
    return size


def _resized(rope: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """Return the settings of rotary embeddings with lists of factors for heads of another size."""
    changed: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, Mapping):
            changed[name] = _resized(value, ratio)
        elif isinstance(value, list) and value:
            length = max(1, round(len(value) * ratio))
            changed[name] = [value[index * len(value) // length] for index in range(length)]
        else:
            changed[name] = value
    return changed


def _set(config: PretrainedConfig, name: str, value: Any) -> None:
    with contextlib.suppress(NotImplementedError, AttributeError):  # derived from other sizes
        setattr(config, name, copy.copy(value))


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, _STD)
