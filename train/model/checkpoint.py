"""Load a checkpoint as a reward model, and account for all that is in it.

Training and export read their checkpoints through this one function, so they refuse the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from kwise.errors import ConfigError
from kwise.train.checkpoint.gguf_file import check_gguf
from kwise.train.checkpoint.ids import num_rows, set_pad_token_id, text_config, usable_id
from kwise.train.checkpoint.members import MEMBERS_KEY, num_members, state_members
from kwise.train.checkpoint.statements import Statements, account_for_statements
from kwise.train.checkpoint.stored import (
    StoredTensors,
    module_weights,
    separate_heads,
    unread_weights,
)
from kwise.train.checkpoint.tensors import (
    account_for_tensors,
    check_finite,
    check_names,
    new_layers_notes,
)
from kwise.train.checkpoint.transformers_versions import read_config
from kwise.train.checkpoint.types import check_types
from kwise.train.model.adapter_source import AdapterSource, find_adapter, merge_into
from kwise.train.model.four_bit import (
    dequantise,
    disable_weight_packing,
    has_four_bits,
    restore_new_layers,
)
from kwise.train.model.head import head_name
from kwise.train.model.pretrained import reading, source_of

_PLAINLY = {
    "return_dict": True,
    "torchscript": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}
"""The defaults of what config.json may state about how a model computes and what it returns."""
_ATTENTION = (None, "eager", "sdpa")
"""Implementations of attention that need no other package and run on every device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """A sequence-classification model whose labels are rewards, and what its checkpoint says.

    Attributes:
        model: In float32. Its padding token is None if the config's is not the id of a token.
        new_layers: Layers that the checkpoint does not have, and that start at random.
        statements: What config.json states about rewards.
        notes: Sentences for the user about what the checkpoint has and the model does not use.
    """

    model: PreTrainedModel
    new_layers: tuple[str, ...]
    statements: Statements
    notes: tuple[str, ...]


def load_checkpoint(
    option: str,
    name: str,
    *,
    to_train: bool,
    num_heads: int | None = None,
    quantised: Mapping[str, Any] | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint in float32. An adapter is merged into its base model.

    Args:
        option: What the command line calls the checkpoint, for instance "--model".
        name: A Hugging Face directory, a hub name, or a `.gguf` file, whose weights are
            dequantised.
        to_train: Training starts from the checkpoint, so the head may be missing.
        num_heads: The outputs that the head must have, as --heads says; None for those that
            config.json states.
        quantised: The arguments that load the weights in four bits, see `four_bit_options`.
            Without them, weights that are stored in four bits are dequantised.

    Raises:
        ConfigError: The checkpoint cannot be read, or is refused by `account_for_statements` or
            `account_for_tensors`, its head has another number of outputs, or is in a file of its
            own; or it is an adapter that
            cannot be merged, see `find_adapter` and `merge_into`.
    """
    adapter = find_adapter(option, name)
    if adapter is None:
        loaded = _load_whole(
            option, name, to_train=to_train, num_heads=num_heads, quantised=quantised
        )
    else:
        loaded = _load_merged(
            option, adapter, to_train=to_train, num_heads=num_heads, quantised=quantised
        )
    return replace(loaded, notes=(*loaded.notes, *new_layers_notes(loaded.new_layers)))


def _load_merged(
    option: str,
    adapter: AdapterSource,
    *,
    to_train: bool,
    num_heads: int | None,
    quantised: Mapping[str, Any] | None,
) -> LoadedCheckpoint:
    """Load the base model of an adapter, which may lack the head, and merge the adapter into it."""
    if quantised:
        raise ConfigError(
            f"{adapter.subject(option)}, which cannot be merged into weights in four bits: merge "
            "it first"
        )
    place = f"{adapter.subject(option)}; its base model"
    base = find_adapter(place, adapter.base)
    loaded = (
        _load_whole(place, adapter.base, to_train=True, num_heads=num_heads, quantised=None)
        if base is None
        else _load_merged(place, base, to_train=True, num_heads=num_heads, quantised=None)
    )
    brought = merge_into(loaded.model, adapter, option)
    # Matrices of LoRA for a layer do not bring the layer.
    new_layers = tuple(layer for layer in loaded.new_layers if f"{layer}.weight" not in brought)
    if new_layers and not to_train:
        raise ConfigError(
            f"{adapter.subject(option)} and not a reward model: neither it nor its base model "
            f"{adapter.base} has weights for {', '.join(new_layers)}"
        )
    note = f"{adapter.name} is an adapter; it was merged into {adapter.base}"
    return replace(loaded, new_layers=new_layers, notes=(*loaded.notes, note))


def _load_whole(
    option: str,
    name: str,
    *,
    to_train: bool,
    num_heads: int | None,
    quantised: Mapping[str, Any] | None,
) -> LoadedCheckpoint:
    """Load a checkpoint that is not an adapter. Its notes do not mention new layers."""
    place = f"{option} {name}"
    with reading(option, name):
        stated, _ = PretrainedConfig.get_config_dict(**source_of(name))
        check_types(place, stated)
        stated_members = num_members(place, stated)
        members = stated_members if num_heads is None else num_heads
        config = read_config(**source_of(name), num_labels=members)
    if stated_members not in (1, members):
        raise ConfigError(
            f"{place} has {stated_members} heads ({MEMBERS_KEY} in config.json), and --heads is "
            f"{members}: give --heads {stated_members}"
        )
    statements = account_for_statements(
        place, stated, config, _class_of(place, config), to_train=to_train
    )
    if heads := separate_heads(name):
        raise ConfigError(
            f"{place}: the head in {heads[0]} is not read; put it into the file of weights, by the "
            "name that the head has in transformers"
        )
    notes = [*statements.notes, *_drop_pad_token_without_row(config), *_compute_plainly(config)]
    if modules := module_weights(name):
        if not to_train:
            raise ConfigError(
                f"{place}: modules.json puts layers on top of the model, {', '.join(modules)}, "
                "which are not read, so its rewards would lack them"
            )
        notes.append(f"the layers in {', '.join(modules)} (modules.json) are not read")
    with reading(option, name):
        stored, unread = StoredTensors(name), unread_weights(name)
    check_names(place, stored)
    state_members(config, members, statements.member_means)
    if unread:
        notes.append(f"other weights in the directory are not read: {', '.join(unread[:3])}")
    with reading(option, name):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            **source_of(name),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            # So that the error names both shapes. Four bits have other shapes than the layers.
            ignore_mismatched_sizes=not (quantised or stated.get("quantization_config")),
            **(quantised or {}),
        )
    if name.endswith(".gguf"):
        check_gguf(place, name, model, loading["missing_keys"])
    _check_embeddings(place, model)
    restore_new_layers(model)
    disable_weight_packing(model)
    # Only now, because the positions of RoBERTa and its relatives are counted from this id.
    if usable_id(text_config(model.config).pad_token_id, None) is None:
        set_pad_token_id(model.config, None)
    head = head_name(model)
    if members > stated_members and f"{head}.weight" in stored.shapes:
        raise ConfigError(
            f"{place} is a reward model with one head, and --heads is {members}: several heads "
            "start at random, so start from a language model, or give --heads 1"
        )
    account = account_for_tensors(place, model, loading, stored, head, head_may_be_new=to_train)
    if not quantised:
        if any(has_four_bits(layer) for layer in model.modules()):
            dequantise(model)
            notes.append("the weights are stored in four bits and were dequantised")
        # The config of a `.gguf` file keeps this entry, and a later from_pretrained would expect
        # quantised weights.
        elif hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    check_finite(place, model)
    # The number of members is stated, so that of labels says nothing more.
    if members == 1 and statements.num_labels not in (None, 1) and not account.new_layers:
        notes.append(
            f"config.json states {statements.num_labels} labels, and the head has one output"
        )
    return LoadedCheckpoint(
        model=model,
        new_layers=account.new_layers,
        statements=statements,
        notes=(*notes, *account.notes()),
    )


def _compute_plainly(config: PretrainedConfig) -> list[str]:
    """Reset what a config states about how the model computes; return a note on it.

    It changes no reward, and not every machine, graph or length of a batch goes with it.
    """
    reset = [name for name, value in _PLAINLY.items() if getattr(config, name, value) != value]
    for name in reset:
        setattr(config, name, _PLAINLY[name])
    if config._attn_implementation not in _ATTENTION:
        reset.append(f"_attn_implementation ({config._attn_implementation})")
        config._attn_implementation = None
    return [f"config.json: {', '.join(reset)}: not used, which changes no reward"] if reset else []


def _class_of(place: str, config: PretrainedConfig) -> str:
    """Return the name of the class with which transformers loads rewards of this config."""
    try:
        loads = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    except KeyError:
        raise ConfigError(
            f"{place}: transformers has no sequence classification for models of type "
            f"{config.model_type}, so there is no reward model of it"
        ) from None
    return str(loads.__name__)


def _check_embeddings(place: str, model: PreTrainedModel) -> None:
    """Raise ConfigError if the model has no table of embeddings, with a row for each token id."""
    try:
        num_rows(model)
    except AttributeError:
        raise ConfigError(
            f"{place}: {type(model).__name__} has no table of token embeddings, which kwise needs "
            "to know its token ids"
        ) from None


def _drop_pad_token_without_row(config: PretrainedConfig) -> list[str]:
    """Set a padding token beyond the embeddings to None, and return a note on it.

    Embeddings cannot be made with a padding token for which they have no row.
    """
    rows = getattr(text_config(config), "vocab_size", None)
    stated = getattr(text_config(config), "pad_token_id", None)
    if usable_id(stated, None) == usable_id(stated, rows):
        return []
    set_pad_token_id(config, None)
    return [f"config.json: pad_token_id {stated} has no row in the {rows} embeddings; not used"]
