"""Account for the tensors and the settings of a GGUF file.

transformers translates a GGUF file into a config and weights. It drops tensors that its config has
no place for, such as biases, and settings that it does not know, such as scaled rotary embeddings.
The rewards are then those of another model, so such a file is refused.

The settings are those of llama.cpp's converters (gguf-py, `gguf/constants.py`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gguf
from transformers import PretrainedConfig, PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.checkpoint.tensors import named

_EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "rms_norm_eps", "norm_eps")
_SCALES = ("attention.scale", "embedding_scale", "residual_scale", "expert_weights_scale")
"""Settings that are 1 in a model whose config does not have them."""

_SETTINGS = {
    "attention.causal": ("is_causal",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attention.key_length": ("head_dim", "d_kv"),
    "attention.layer_norm_epsilon": _EPSILONS,
    "attention.layer_norm_rms_epsilon": _EPSILONS,
    "attention.sliding_window": ("sliding_window",),
    "attention.value_length": ("head_dim", "d_kv"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_weights_norm": ("norm_topk_prob",),
    "rope.dimension_count": ("head_dim",),
    "rope.freq_base": ("rope_theta",),
    "use_parallel_residual": ("use_parallel_residual",),
    **dict.fromkeys(_SCALES, ()),
}
"""Settings that change a reward, and the names that configs have for them."""

_NEUTRAL = {"attention.causal": True, **dict.fromkeys(_SCALES, 1.0)}
"""Values that change nothing where the config has no such setting; else 0."""

_LM_HEAD = ("output.",)
_FREQUENCIES = ("rope_freqs", "rope_factors_long", "rope_factors_short")


def check_gguf(place: str, path: str, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Raise ConfigError if the file has what the model lacks and could change a reward.

    Args:
        place: what the user calls the file; errors begin with it.
        path: the file.
        model: what transformers has made of it.
        missing: the weights of the model that the file does not have.
    """
    reader = gguf.GGUFReader(path)
    problems = [*_scaled_rope(reader, model.config), *_other_settings(reader, model.config)]
    if problems:
        raise ConfigError(
            f"{place}: transformers does not read {named(problems)} of a .gguf file, which changes "
            "rewards; give the checkpoint in the format of Hugging Face"
        )
    _check_tensors(place, reader, model, missing)


def _check_tensors(
    place: str, reader: gguf.GGUFReader, model: PreTrainedModel, missing: Sequence[str]
) -> None:
    """Raise ConfigError if the file has more numbers than the model has taken from it.

    transformers reshapes, splits and joins tensors, but none gets more or fewer numbers by that.
    """
    tensors = [t for t in reader.tensors if not t.name.startswith((*_LM_HEAD, *_FREQUENCIES))]
    in_file = sum(int(tensor.n_elements) for tensor in tensors)
    in_model = sum(p.numel() for name, p in model.named_parameters() if name not in missing)
    if in_file != in_model:
        unused = _without_parameter(reader, [tensor.name for tensor in tensors], model)
        raise ConfigError(
            f"{place}: {type(model).__name__} has {in_model:,} parameters from {in_file:,} numbers "
            f"of the file{f', which has {named(unused)} beside them' if unused else ''}; give the "
            "checkpoint in the format of Hugging Face"
        )


def _without_parameter(
    reader: gguf.GGUFReader, names: Iterable[str], model: PreTrainedModel
) -> list[str]:
    """Return the tensors to which gguf-py gives no name of a parameter of this model."""
    architecture = _value(reader, "general.architecture")
    kind = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        return []
    name_map = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    known = set()
    for parameter, _ in model.named_parameters():
        stem, _, suffix = parameter.rpartition(".")
        known.add(f"{name_map.get_name(stem)}.{suffix}")
    return [name for name in names if name not in known]


def _scaled_rope(reader: gguf.GGUFReader, config: PretrainedConfig) -> Iterator[str]:
    """Yield what says that rotary embeddings are scaled, if those of the config are not."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if parameters and parameters.get("rope_type", "default") != "default":
        return
    for tensor in reader.tensors:
        if tensor.name.startswith(_FREQUENCIES) and not (tensor.data == 1).all():
            yield tensor.name
    architecture = _value(reader, "general.architecture")
    kind = _value(reader, f"{architecture}.rope.scaling.type")
    factor = _value(reader, f"{architecture}.rope.scaling.factor")
    linear = _value(reader, f"{architecture}.rope.scale_linear")  # its name in old files
    if kind not in (None, "none") and factor != 1:
        yield f"{architecture}.rope.scaling.type {kind}"
    if linear not in (None, 1):
        yield f"{architecture}.rope.scale_linear {linear:g}"


def _other_settings(reader: gguf.GGUFReader, config: PretrainedConfig) -> Iterator[str]:
    """Yield the settings of the file that have other values in the config."""
    architecture = _value(reader, "general.architecture")
    for setting, names in _SETTINGS.items():
        stated = _value(reader, f"{architecture}.{setting}")
        if stated is None:
            continue
        used = _of_config(config, names)
        if used is None:
            used = _NEUTRAL.get(setting, 0)
        if setting == "rope.dimension_count":
            share = _of_config(config, ("partial_rotary_factor", "rotary_pct"))
            used = int(used * (1 if share is None else share))
        if setting == "attention.sliding_window" and stated >= config.max_position_embeddings:
            continue
        if not math.isclose(float(stated), float(used), rel_tol=1e-4):
            yield f"{architecture}.{setting} {stated:g} (it uses {used:g})"


def _of_config(config: PretrainedConfig, names: Sequence[str]) -> Any:
    """Return the first of these values that the config has; None if it has none."""
    rope = getattr(config, "rope_parameters", None) or {}
    for name in names:
        value = getattr(config, name, None)
        value = rope.get(name) if value is None else value
        if value is None and name == "head_dim" and getattr(config, "num_attention_heads", None):
            value = config.hidden_size // config.num_attention_heads
        if value is not None:
            return value
    return None


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    """Return a setting of the file; None if it does not have it, or has one for each layer."""
    field = reader.get_field(key)
    value = None if field is None else field.contents()
    return None if isinstance(value, list) else value
