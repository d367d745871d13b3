"""Read a checkpoint, and refuse one whose artifact could not be right.

The check of parity would not notice what is refused here: it compares conversations of up to a few
thousand tokens, on the weights as they are.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import num_rows, text_config, usable_id
from kwise.train.checkpoint.statements import Statements
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.head import backbone, head_name
from kwise.train.model.limits import model_max_tokens
from kwise.train.model.tokenizer import read_fast_tokenizer
from kwise.train.template.chat_template import ChatTemplate, choose_template

# Types of rotary embeddings whose frequencies are the same at every length.
_STATIC_ROPE = {"default", "linear", "yarn", "llama3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint to export.

    Attributes:
        name: Its directory or hub name, as on the command line.
        model: In fp32 and evaluation mode. An adapter is merged into it.
        template: The chat template, which the tokenizer has too.
        causal: Later tokens do not change earlier hidden states.
        shares_prefixes: The trie layout can hold the model, see `supports_trie`.
        statements: What config.json states about rewards.
        notes: Sentences about what the checkpoint has and the artifact does not use.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    causal: bool
    shares_prefixes: bool
    statements: Statements
    notes: tuple[str, ...]

    @property
    def num_members(self) -> int:
        """The number of rewards that the model gives per conversation; 1 without members."""
        return self.statements.num_members

    @property
    def num_rows(self) -> int:
        """The number of rows of the embeddings: token ids are below it."""
        return num_rows(self.model)

    @property
    def pad_token_id(self) -> int | None:
        """The padding token with which the model reads its reward; None if it has none."""
        return usable_id(text_config(self.model.config).pad_token_id, self.num_rows)


def read_checkpoint(name: str, chat_template: str, template_date: str = "") -> Checkpoint:
    """Read a checkpoint from a directory or the hub.

    Args:
        name: The directory or hub name.
        chat_template: A file with the chat template to use, or the name of one of the checkpoint's
            templates; "" for the checkpoint's own.
        template_date: The date to print where the template prints today's, "YYYY-MM-DD"; "" refuses
            such a template.

    Raises:
        ConfigError: The checkpoint cannot be read, or is refused by `load_checkpoint`; it has no
            fast tokenizer; or the chat template is missing or cannot be used, see
            `choose_template`.
        OSError: The file `chat_template` cannot be read.
    """
    loaded = load_checkpoint("CHECKPOINT", name, to_train=False)
    model = loaded.model
    tokenizer = read_fast_tokenizer("CHECKPOINT", name)
    template = choose_template(
        tokenizer,
        model=name,
        file=Path(chat_template) if chat_template else None,
        date=template_date,
        today_by_default=False,
        plain=None,
    )
    model.eval()
    causal = is_causal(model)
    if template.text is None and causal:
        raise ConfigError(
            f"{name} has no chat template: give the one that it was trained with as "
            "--chat-template FILE"
        )
    return Checkpoint(
        name=name,
        model=model,
        tokenizer=tokenizer,
        template=template,
        causal=causal,
        shares_prefixes=supports_trie(model),
        statements=loaded.statements,
        notes=loaded.notes,
    )


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether a later token leaves earlier hidden states unchanged.

    It never does in a model with an encoder and a decoder, which reads the whole text first.

    This is measured on eight tokens, so it needs no list of architectures. The last token is
    exchanged for the one whose embedding is the least like its own, because unused rows of the
    embeddings may be alike.
    """
    if model.config.is_encoder_decoder:
        return False
    embeddings = model.get_input_embeddings().weight
    input_ids = torch.arange(3, 11)[None] % len(embeddings)
    changed = input_ids.clone()
    with torch.inference_mode():
        input_ids[0, -1] = embeddings.norm(dim=1).argmax()
        changed[0, -1] = torch.cdist(embeddings[input_ids[0, -1:]], embeddings).argmax()
        states, states_changed = (
            backbone(model)(input_ids=ids).last_hidden_state for ids in (input_ids, changed)
        )
    return bool(torch.allclose(states[:, :-1], states_changed[:, :-1], atol=1e-5))


def supports_trie(model: PreTrainedModel) -> bool:
    """Return whether the trie layout can hold the model.

    The model must be causal, send its attention through transformers' `AttentionInterface`, take
    positions, and have the head `score` on its last hidden states.
    """
    forward = inspect.signature(model.base_model.forward).parameters
    return (
        model.base_model is not model  # Gemma 3 with images does not name its backbone
        and bool(getattr(model, "_supports_attention_backend", False))
        and "position_ids" in forward
        and head_name(model) == "score"
        and is_causal(model)
    )


def check_padding(checkpoint: Checkpoint) -> None:
    """Raise ConfigError if padded batches of a causal model cannot give transformers' rewards.

    transformers reads the reward of a causal model at the last token that is not
    `config.pad_token_id`, and without such an id at the very last token, which in a padded batch is
    padding. An id chosen here would be skipped in every conversation that ends with it.
    """
    if not checkpoint.causal or checkpoint.pad_token_id is not None:
        return
    advice = (
        "use --layout trie, which pads nothing"
        if checkpoint.shares_prefixes
        else "set it in config.json to a token that no conversation ends with"
    )
    raise ConfigError(
        f"--layout padded: {checkpoint.name} is a causal model without a pad_token_id; {advice}"
    )


def longest_conversation(checkpoint: Checkpoint, max_tokens: int) -> int:
    """Return the artifact's limit in tokens: `max_tokens`, or the model's own limit if that is 0.

    Raises:
        ConfigError: `max_tokens` is above the limit; or it is 0 and the model states no limit; or
            the model's rotary embeddings may change with length.
    """
    limit, reason = (
        model_max_tokens(checkpoint.model, checkpoint.tokenizer),
        "the model's own limit",
    )
    constant = rope_limit(checkpoint.model)
    if constant is not None and (limit is None or constant < limit):
        limit = constant
        reason = "because beyond it the model's rotary embeddings change and the graph's do not"
    if limit is not None and max_tokens > limit:
        raise ConfigError(f"--max-tokens is {max_tokens}; it must be at most {limit}, {reason}")
    if not max_tokens and limit is None:
        raise ConfigError(
            f"{checkpoint.name} does not state its longest conversation: give a limit as "
            "--max-tokens"
        )
    return max_tokens or limit or 0


def rope_limit(model: PreTrainedModel) -> int | None:
    """Return up to how many tokens rotary embeddings do not depend on the length; None for any.

    For the types "dynamic" and "longrope", transformers' `dynamic_rope_update` changes frequencies
    by the longest position of a call if that is beyond the length of pretraining. The graph keeps
    the frequencies it was traced with, which are those of short conversations.

    Raises:
        ConfigError: The type of scaling is not known to be the same at every length.
    """
    limits = []
    for module in model.modules():
        for rope_type in _rope_types(module) - _STATIC_ROPE:
            if rope_type == "longrope":
                limits.append(_pretraining_length(module.config))
            elif rope_type == "dynamic":
                limits.append(module.original_max_seq_len)
            else:
                known = ", ".join(sorted({*_STATIC_ROPE, "dynamic", "longrope"}))
                raise ConfigError(
                    f"{type(model).__name__} scales its rotary embeddings by {rope_type!r}; known "
                    f"are {known}"
                )
    return min(limits, default=None)


def _rope_types(module: torch.nn.Module) -> set[str]:
    """Return the types of a module's rotary embeddings; empty if it has none.

    In transformers 5 each kind of layer may have its own.
    """
    stated = getattr(module, "rope_type", None)
    types = stated.values() if isinstance(stated, dict) else [stated]
    return {rope_type for rope_type in types if isinstance(rope_type, str)}


def _pretraining_length(config: PretrainedConfig) -> int:
    """Return the length up to which longrope uses its short factors.

    transformers 5 has it among the figures of the rotary embeddings.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    name = "original_max_position_embeddings"
    return getattr(config, name, None) or parameters.get(name) or config.max_position_embeddings
