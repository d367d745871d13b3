"""Account for what a checkpoint's config.json states beyond sizes and names of layers.

Each statement that could change a reward is used, told, or a reason to refuse the checkpoint.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PretrainedConfig

from kwise.errors import ConfigError
from kwise.train.checkpoint.members import (
    MEANS_KEY,
    MEMBERS_KEY,
    is_finite_number,
    member_means,
    num_members,
)
from kwise.train.checkpoint.pooling import HEADER_KEY, stated_header
from kwise.train.checkpoint.transformers_versions import REMOVED, ROTARY_KEYS
from kwise.types import MIN_STD, TokenIds

# Classes whose weights are a start for a reward model, by the end of their names.
_LANGUAGE_MODELS = (
    "Model",
    "ForCausalLM",
    "ForMaskedLM",
    "ForPreTraining",
    "ForConditionalGeneration",
    "ForImageTextToText",
    "ForNextSentencePrediction",
    "ModelWithLMHead",
)
_REWARD_MODEL = "ForSequenceClassification"

# Keys that say nothing about the function that the model computes.
_BOOKKEEPING = {
    "architectures",
    "auto_map",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "model_type",
    "num_labels",
    "partial_rotary_factor",  # transformers 5 moves this key and two others to rope_parameters
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "sentence_transformers",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",  # training sets it, also for models without a cache
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """The statements of a config about rewards.

    Attributes:
        num_labels: Outputs of the head; None if nothing is stated.
        num_members: Members of an ensemble that the head's outputs are, see members.py; 1 for an
            ordinary reward model.
        member_means: The mean of each member, zeros if not stated; () for an ordinary reward model.
        response_header: The token ids after which a response begins, see pooling.py; None without
            mean pooling.
        reward_mean: The mean of the rewards, as OpenRLHF writes it, for each member; None if it is
            not stated.
        reward_std: Their standard deviation likewise.
        notes: Sentences about what is not used.
    """

    num_labels: int | None
    num_members: int
    member_means: tuple[float, ...]
    response_header: TokenIds | None
    reward_mean: tuple[float, ...] | None
    reward_std: tuple[float, ...] | None
    notes: tuple[str, ...]


def account_for_statements(
    place: str, stated: Mapping[str, Any], config: PretrainedConfig, loads: str, *, to_train: bool
) -> Statements:
    """Return what the content of a config.json states about rewards.

    Args:
        place: What the user calls the checkpoint; errors begin with it.
        stated: The content of config.json.
        config: The config that transformers makes of it.
        loads: The class with which transformers loads it.
        to_train: The checkpoint is where training starts, so its rewards need not be right.

    Raises:
        ConfigError: The checkpoint is of a class with another head, or computes rewards by code of
            its own, or its weights are quantised in a way that kwise does not read; `mean` or `std`
            is not a number that rewards can be scaled with; or what is stated about members or
            about mean pooling cannot be read.
    """
    _check_quantisation(place, stated.get("quantization_config"))
    notes = _check_class(place, stated, config, loads, to_train=to_train)
    known = _known_keys(config)
    members = num_members(place, stated)
    mean, std = (
        None if key in known else _numbers(place, stated, key, members) for key in ("mean", "std")
    )
    if std is not None and not min(std) >= MIN_STD:
        raise ConfigError(f"{place}: config.json has std {min(std)}; it must be at least {MIN_STD}")
    if activation := _activation(stated):
        notes.append(
            f"config.json: sentence_transformers applies {activation} to the model's output; a "
            "reward is the output without it"
        )
    unread = sorted(
        key
        for key, value in stated.items()
        if value not in (None, REMOVED.get(key))
        and not key.startswith("_")
        and key not in {*known, *_BOOKKEEPING, "mean", "std", MEMBERS_KEY, MEANS_KEY, HEADER_KEY}
    )
    if unread:
        notes.append(f"config.json: {type(config).__name__} does not know {', '.join(unread)}")
    return Statements(
        num_labels=_num_labels(stated),
        num_members=members,
        member_means=member_means(place, stated),
        response_header=stated_header(place, stated),
        reward_mean=mean,
        reward_std=std,
        notes=tuple(notes),
    )


def _check_class(
    place: str, stated: Mapping[str, Any], config: PretrainedConfig, loads: str, *, to_train: bool
) -> list[str]:
    """Return notes on the class of the checkpoint and its code.

    Raises:
        ConfigError: Rewards of the class that the config names may differ from those of `loads`.
    """
    own = next(iter(stated.get("architectures") or ()), loads)
    code = [entry for entry in _code(stated) if entry.rpartition(".")[2] == own]
    known = hasattr(transformers, own)
    if own != loads and code and (not known or own.endswith(_REWARD_MODEL)):
        raise ConfigError(
            f"{place}: config.json names code of its own, {code[0]}, which kwise does not run, and "
            f"transformers' {loads} may give other rewards; if it does not, set architectures to "
            f'["{loads}"]'
        )
    if own != loads and known and not own.endswith(_LANGUAGE_MODELS):
        raise ConfigError(
            f"{place} is a {own}, whose head is not that of a reward model; expected is a {loads}"
        )
    if own != loads and not to_train and not known:
        raise ConfigError(
            f"{place}: config.json names the class {own}, which transformers does not have, and "
            f"{loads} may give other rewards; if it does not, set architectures to "
            f'["{loads}"]'
        )
    reward_code = (stated.get("auto_map") or {}).get("AutoModelForSequenceClassification")
    if reward_code and not to_train:
        raise ConfigError(
            f"{place}: config.json names code of its own for rewards, {reward_code}, which kwise "
            f"does not run, and transformers' {loads} may give other rewards; if it does not, "
            "remove auto_map"
        )
    notes = []
    other_family = known and getattr(transformers, own).config_class is not type(config)
    if _code(stated):
        notes.append(
            f"config.json names code of its own (auto_map: {_code(stated)[-1]}), which is not run; "
            f"the model is transformers' {loads}"
        )
    elif own != loads and (not known or not to_train or other_family):
        notes.append(f"config.json names the class {own}; the model is transformers' {loads}")
    return notes


def _code(stated: Mapping[str, Any]) -> list[str]:
    """Return the classes in `auto_map`, each as "module.Class"."""
    auto_map = stated.get("auto_map") or {}
    return [entry for entry in auto_map.values() if isinstance(entry, str)]


def _check_quantisation(place: str, quantisation: Any) -> None:
    """Raise ConfigError unless weights are unquantised or in the four bits of bitsandbytes."""
    if not quantisation:
        return
    method = quantisation.get("quant_method", "an unknown method")
    in_four_bits = quantisation.get("load_in_4bit") or quantisation.get("_load_in_4bit")
    if method != "bitsandbytes" or not in_four_bits:
        bits = " in eight bits" if method == "bitsandbytes" else ""
        raise ConfigError(
            f"{place}: its weights are quantised with {method}{bits}; kwise reads unquantised "
            "weights and the four bits of bitsandbytes: save the checkpoint in 16 or 32 bits"
        )


def _num_labels(stated: Mapping[str, Any]) -> int | None:
    labels = stated.get("id2label")
    number = len(labels) if isinstance(labels, dict) else stated.get("num_labels")
    return number if isinstance(number, int) else None


def _numbers(
    place: str, stated: Mapping[str, Any], key: str, num_members: int
) -> tuple[float, ...] | None:
    """Return a number for each member; None if there are none. One number stands for all."""
    value = stated.get(key)
    if value is None:
        return None
    numbers = value if isinstance(value, list) and num_members > 1 else [value] * num_members
    if len(numbers) != num_members or not all(map(is_finite_number, numbers)):
        several = f", or a list of {num_members}, one for each member" if num_members > 1 else ""
        raise ConfigError(
            f"{place}: config.json has {key} {value!r}; it must be a finite number{several}"
        )
    return tuple(map(float, numbers))


def _activation(stated: Mapping[str, Any]) -> str | None:
    """Return the name of the function that a cross-encoder applies to its output, if it has one."""
    options = stated.get("sentence_transformers")
    name = options.get("activation_fn") if isinstance(options, dict) else None
    name = name or stated.get("sbert_ce_default_activation_function")
    if not isinstance(name, str) or name.endswith("Identity"):
        return None
    return name.rpartition(".")[2]


def _known_keys(config: PretrainedConfig) -> set[str]:
    """Return the keys that the class of a config knows."""
    kinds = [kind for kind in type(config).__mro__ if issubclass(kind, PretrainedConfig)]
    parameters = {name for kind in kinds for name in inspect.signature(kind).parameters} | set(
        getattr(config, "attribute_map", {})
    )
    try:
        attributes = set(type(config)().to_dict())
    except Exception:  # noqa: BLE001 - some classes need arguments; then their parameters must do
        attributes = set()
    known = parameters | attributes | {"sbert_ce_default_activation_function"}
    return known | ROTARY_KEYS if known & {"rope_theta", "rope_parameters"} else known
