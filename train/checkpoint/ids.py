"""Token ids: the ids in a config, and ids for which the embeddings have no row.

A config may write "none" as null or as -1 (early Llama configs do). A token that was added to the
tokenizer after the model was made has an id, but no row. Both kinds of ids must not reach a model
or a manifest.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a config that describes the text model.

    Models that also read images (Gemma 3) keep the sizes and ids of their text model in a nested
    `text_config`. For all other models it is the config itself.
    """
    nested = getattr(config, "text_config", None)
    return nested if isinstance(nested, PretrainedConfig) else config


def num_rows(model: PreTrainedModel) -> int:
    """Return the number of rows of a model's token embeddings: the ids of tokens are below it.

    Raises:
        AttributeError: The model has no such table: it hashes characters (CANINE) or splits its
            vocabulary (Transformer-XL). `load_checkpoint` refuses it.
    """
    try:
        return len(model.get_input_embeddings().weight)
    except NotImplementedError:
        raise AttributeError("the model has no table of token embeddings") from None


def usable_id(token_id: Any, rows: int | None) -> int | None:
    """Return `token_id` if it is the id of a token, else None.

    Args:
        token_id: A value from a config or a tokenizer.
        rows: Rows of the embeddings; None if unknown, then no id is too large.
    """
    if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
        return None
    return token_id if rows is None or token_id < rows else None


def set_pad_token_id(config: PretrainedConfig, token_id: int | None) -> None:
    """Set the padding token of a model, in its config and in that of its text model."""
    config.pad_token_id = token_id
    text_config(config).pad_token_id = token_id


def id_without_row(
    token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, rows: int
) -> str | None:
    """Return a description of the first token id without a row; None if all ids have one.

    Args:
        token_ids: The tokens of a conversation.
        tokenizer: Gives the token's text.
        rows: Rows of the model's embeddings.
    """
    if max(token_ids, default=0) < rows:
        return None
    token_id = next(token_id for token_id in token_ids if token_id >= rows)
    token = tokenizer.convert_ids_to_tokens(token_id)
    return f"token {token_id} ({token!r}) is outside the model's {rows}"
