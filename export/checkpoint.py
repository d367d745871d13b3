"""A checkpoint that is fit to be exported: read, and refused where its artifact could not be right.

What is refused here is what parity would not see: it compares conversations up to a few thousand tokens, on the weights as
they are.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kwise.errors import ConfigError
from kwise.train.model.limits import model_max_tokens
from kwise.train.model.pretrained import reading

# Frequencies of rotary embeddings that are the same at every length, so that tracing may fix them.
_STATIC_ROPE = {"default", "linear", "yarn", "llama3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """name: as the command line has it. model: fp32, in evaluation mode; what is true of it is measured once."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: bool
    shares_prefixes: bool


def read_checkpoint(name: str, chat_template: str) -> Checkpoint:
    """The checkpoint in a directory or on the hub, with the chat template in the file `chat_template` if not "".

    Raises:
        ConfigError: it cannot be read, or has not one label, or lacks weights, or has no fast tokenizer, or a dated template.
        OSError: there is no such chat template.
    """
    with reading("CHECKPOINT", name):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    if model.config.num_labels != 1:
        raise ConfigError(f"{name} has {model.config.num_labels} labels; a reward model has one")
    if loading["missing_keys"]:
        raise ConfigError(
            f"{name} is no reward model: it lacks {', '.join(sorted(loading['missing_keys']))}"
        )
    if not tokenizer.is_fast:
        raise ConfigError(f"{name} has no fast tokenizer (tokenizer.json), which the engine needs")
    if chat_template:
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    model.eval()
    checkpoint = Checkpoint(
        name=name,
        model=model,
        tokenizer=tokenizer,
        causal=is_causal(model),
        shares_prefixes=supports_trie(model),
    )
    _check_template(checkpoint)
    return checkpoint


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a later token leaves earlier hidden states as they are: measured, not looked up by name."""
    input_ids = torch.arange(3, 11)[None] % model.get_input_embeddings().num_embeddings
    changed = input_ids.clone()
    changed[0, -1] = 1
    with torch.inference_mode():
        states, states_changed = (
            model.base_model(input_ids=ids).last_hidden_state for ids in (input_ids, changed)
        )
    return bool(torch.allclose(states[:, :-1], states_changed[:, :-1], atol=1e-5))


def supports_trie(model: PreTrainedModel) -> bool:
    """Whether the model is causal, sends its attention through `AttentionInterface`, takes positions and has a plain head."""
    forward = inspect.signature(model.base_model.forward).parameters
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and "position_ids" in forward
        and isinstance(getattr(model, "score", None), torch.nn.Module)
        and not model.config.is_encoder_decoder
        and is_causal(model)
    )


def _check_template(checkpoint: Checkpoint) -> None:
    template = checkpoint.tokenizer.chat_template
    if template is None and checkpoint.causal:
        raise ConfigError(
            f"{checkpoint.name} has no chat template: give the one it was trained with as --chat-template FILE"
        )
    if "strftime_now" in (template or ""):
        raise ConfigError(
            "the chat template prints today's date (strftime_now), so rewards would change overnight: "
            "give a template with a fixed date as --chat-template FILE"
        )


def check_padding(checkpoint: Checkpoint) -> None:
    """Raises ConfigError where padded batches of a causal model cannot give transformers' rewards.

    transformers reads a causal model's reward at the last token that is not `config.pad_token_id`, and without one at the
    very last token, which in a padded batch is padding. Any id chosen here would be skipped where a conversation ends with it.
    """
    if not checkpoint.causal or checkpoint.model.config.pad_token_id is not None:
        return
    way_out = (
        "use --layout trie, which pads nothing"
        if checkpoint.shares_prefixes
        else "name one in its config.json that no conversation ends with"
    )
    raise ConfigError(
        f"--layout padded: {checkpoint.name} is a causal model without a pad_token_id; {way_out}"
    )


def longest_conversation(checkpoint: Checkpoint, asked: int) -> int:
    """The artifact's limit in tokens: `asked`, or the model's own where that is 0.

    Raises:
        ConfigError: `asked` is over the limit; or it is 0 and the model states none; or rotary embeddings change with length
            in a way that is not known here.
    """
    limit, reason = (
        model_max_tokens(checkpoint.model, checkpoint.tokenizer),
        "the model's own limit",
    )
    fixed = rope_limit(checkpoint.model)
    if fixed is not None and (limit is None or fixed < limit):
        limit, reason = (
            fixed,
            "for beyond it the model's rotary embeddings change, and the graph's are fixed",
        )
    if limit is not None and asked > limit:
        raise ConfigError(f"--max-tokens is {asked}; it must be at most {limit}, {reason}")
    if not asked and limit is None:
        raise ConfigError(
            f"{checkpoint.name} states no longest conversation: give one as --max-tokens"
        )
    return asked or limit or 0


def rope_limit(model: PreTrainedModel) -> int | None:
    """Up to how many tokens the rotary embeddings are those of a short text; None for as many as there are.

    transformers' `dynamic_rope_update` changes frequencies by the longest position of a call: "dynamic" beyond the length
    of pretraining, "longrope" likewise. The graph keeps what it was traced with, those of short texts.

    Raises:
        ConfigError: a kind of scaling that is not known to be the same at every length.
    """
    limits = []
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if not isinstance(kind, str) or kind in _STATIC_ROPE:
            continue
        if kind == "longrope":
            config = module.config
            limits.append(
                getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
        elif kind == "dynamic":
            limits.append(module.original_max_seq_len)
        else:
            known = ", ".join(sorted({*_STATIC_ROPE, "dynamic", "longrope"}))
            raise ConfigError(
                f"{type(model).__name__} scales its rotary embeddings by {kind!r}; known are {known}"
            )
    return min(limits, default=None)
