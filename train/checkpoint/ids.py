"""Token ids: the ids in a config, and ids for which the embeddings have no row.

A config may write "none" as null or as -1 (early Llama configs do). A token that was added to the
tokenizer after the model was made has an id, but no row. Both kinds of ids must not reach a model
or a manifest.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a config that describes the text model.

    Models that also read images (Gemma 3) keep the sizes and ids of their text model in a nested
    `text_config`. For all other models it is the config itself.
    """
    nested = getattr(config, "text_config", None)
    return config if nested is None else nested


def usable_id(token_id: Any, num_rows: int | None) -> int | None:
    """Return `token_id` if it is the id of a token, else None.

    Args:
        token_id: A value from a config or a tokenizer.
        num_rows: Rows of the embeddings; None if unknown, then no id is too large.
    """
    if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
        return None
    return token_id if num_rows is None or token_id < num_rows else None


def set_pad_token_id(config: PretrainedConfig, token_id: int | None) -> None:
    """Set the padding token of a model, in its config and in that of its text model."""
    config.pad_token_id = token_id
    text_config(config).pad_token_id = token_id


def id_without_row(
    token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, num_rows: int
) -> str | None:
    """Return a description of the first token id without a row; None if all ids have one.

    Args:
        token_ids: The tokens of a conversation.
        tokenizer: Gives the token's text.
        num_rows: Rows of the model's embeddings.
    """
    if max(token_ids, default=0) < num_rows:
        return None
    token_id = next(token_id for token_id in token_ids if token_id >= num_rows)
    token = tokenizer.convert_ids_to_tokens(token_id)
    return f"token {token_id} ({token!r}) is outside the model's {num_rows}"
