"""Read checkpoints that another major version of transformers wrote, with the same rewards.

transformers 4.57 does not know how transformers 5 writes some things, and transformers 5 reads some
tokenizers in its own way. Both give other rewards without a word:

- Version 5 writes all figures of rotary embeddings as `rope_parameters`. Version 4 does not read
  them and uses its defaults (-0.80 for a reward of 2.35).
- Version 5 builds the tokenizers of many classes (GPT2Tokenizer, Qwen2Tokenizer) anew from the
  vocabulary, with the rules of the class in place of those in `tokenizer.json`.
- Version 5 writes a class of tokenizers and a list of tokens that version 4 refuses.
"""

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import text_config


def _major(version: str) -> int:
    return int(version.split(".")[0])


IS_TRANSFORMERS_5 = _major(transformers.__version__) >= 5
# The names of version 4 for what version 5 has in `rope_parameters`.
_THETA = ("rope_theta", "rotary_emb_base")
_PARTIAL = ("partial_rotary_factor", "rotary_pct")
_LOCAL_THETA = ("rope_local_base_freq", "local_rope_theta")
_SCALING = ("rope_scaling",)
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
# Types of models for which the versions compute different rewards.
_DIFFERENT = {"doge"}
# Types of models for which version 4 uses the global figures in all layers.
_GLOBAL_ONLY = {"modernbert-decoder"}
REMOVED = {"position_embedding_type": "absolute"}
"""Values that version 4 writes into configs. Version 5 assumes them and does not read them."""
ROTARY_KEYS = {
    "rope_parameters",
    "global_rope_theta",
    *_THETA,
    *_PARTIAL,
    *_LOCAL_THETA,
    *_SCALING,
}
"""Keys of config.json that one version or the other reads as figures of rotary embeddings."""


def read_config(**arguments: Any) -> PretrainedConfig:
    """Return a checkpoint's config, with the figures that another version of transformers wrote.

    Args:
        arguments: those of `AutoConfig.from_pretrained`.

    Raises:
        ConfigError: the installed transformers 4 has no words for the config's rotary embeddings,
            or both versions compute different rewards for models of this type.
    """
    config = AutoConfig.from_pretrained(**arguments)
    place = str(arguments["pretrained_model_name_or_path"])
    written = str(getattr(config, "transformers_version", None) or transformers.__version__)
    if config.model_type in _DIFFERENT and (_major(written) >= 5) != IS_TRANSFORMERS_5:
        raise ConfigError(
            f"{place} is of type {config.model_type}, for which transformers {written}, which "
            f"wrote it, and {transformers.__version__} compute different rewards; use the former"
        )
    for part in () if IS_TRANSFORMERS_5 else (config, text_config(config)):
        parameters = getattr(part, "rope_parameters", None)
        if isinstance(parameters, Mapping):
            for name, value in _rope_values(place, part, parameters).items():
                setattr(part, name, value)
    return config


def _rope_values(
    place: str, config: PretrainedConfig, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return version 4's names and values of version 5's `rope_parameters`."""
    everywhere = dict(parameters)
    local: dict[str, Any] = {}
    if _GLOBAL in parameters or _LOCAL in parameters:  # one set of figures for each kind of layer
        everywhere, local = (dict(parameters.get(kind) or {}) for kind in (_GLOBAL, _LOCAL))
    if config.model_type in _GLOBAL_ONLY and local == everywhere:
        local = {}
    renamed = [
        (_THETA, everywhere.pop("rope_theta", None)),
        (_PARTIAL, everywhere.pop("partial_rotary_factor", None)),
        (() if config.model_type in _GLOBAL_ONLY else _LOCAL_THETA, local.pop("rope_theta", None)),
        (_SCALING, None if everywhere.get("rope_type", "default") == "default" else everywhere),
        ((), None if local.get("rope_type", "default") == "default" else local),
    ]
    values: dict[str, Any] = {}
    for names, value in renamed:
        known = [name for name in names if hasattr(config, name)]
        if value is not None and not known:
            raise ConfigError(
                f"{place}: config.json has rope_parameters of transformers 5, which transformers "
                f"{transformers.__version__} cannot read in a model of type {config.model_type}; "
                "install transformers 5, see docs/training.md"
            )
        if value is not None:
            values.update(dict.fromkeys(known, value))
    return values


def read_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face directory or a hub name, as `tokenizer.json` has it.

    A tokenizer without this file is the one that `AutoTokenizer` returns.
    """
    return _read_with_5(model) if IS_TRANSFORMERS_5 else _read_with_4(model)


def _read_with_5(model: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(model)
    if type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    try:
        cached_file(model, "tokenizer.json")
    except OSError:
        return tokenizer
    # What the class adds to the file: default special tokens, and the names of a model's inputs.
    return PreTrainedTokenizerFast.from_pretrained(
        model, model_input_names=tokenizer.model_input_names, **tokenizer.special_tokens_map
    )


def _read_with_4(model: str) -> PreTrainedTokenizerBase:
    written = get_tokenizer_config(model)
    options: dict[str, Any] = {}
    if isinstance(written.get("extra_special_tokens"), list):
        options["additional_special_tokens"] = written["extra_special_tokens"]
        options["extra_special_tokens"] = {}
    if written.get("tokenizer_class") == "TokenizersBackend":
        return PreTrainedTokenizerFast.from_pretrained(model, **options)
    return AutoTokenizer.from_pretrained(model, **options)


def writes_type_ids(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer gives its model the type ids of a pair of texts.

    `model_input_names` in `tokenizer_config.json` says so. Where it says nothing, the tokenizer's
    class decides in version 4. Version 5 has other classes, of which some write no type ids for
    models that have types (ALBERT); kwise always writes them there, which changes nothing for
    models without types.
    """
    if IS_TRANSFORMERS_5:
        stated = get_tokenizer_config(tokenizer.name_or_path).get("model_input_names")
        return stated is None or "token_type_ids" in stated
    return "token_type_ids" in tokenizer.model_input_names
