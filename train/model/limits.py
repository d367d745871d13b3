"""The longest conversation that a model can read, for training and export alike."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.train.checkpoint.ids import text_config

# transformers writes 10^30 for a tokenizer without a limit. Real limits are far below this.
_NO_LIMIT = 10**9


def model_max_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> int | None:
    """Return the length of the longest conversation in tokens.

    The model's positions and its tokenizer, if given, limit it.

    None if neither states a limit (ALiBi, recurrent models).
    """
    stated = [
        getattr(text_config(model.config), "max_position_embeddings", None),
        None if tokenizer is None else tokenizer.model_max_length,
        *(table.num_embeddings - table.padding_idx - 1 for table in _padded_positions(model)),
    ]
    return min(
        (int(limit) for limit in stated if limit is not None and 0 < limit < _NO_LIMIT),
        default=None,
    )


def counts_from_padding(model: PreTrainedModel) -> bool:
    """Return whether the model counts its positions from the id of its padding token.

    Another padding token would change every position once the model is saved and loaded again.
    """
    return any(True for _ in _padded_positions(model))


def _padded_positions(model: PreTrainedModel) -> Iterator[Any]:
    """Yield each padded table of position embeddings.

    RoBERTa and models like it give the first token the position `padding_idx` + 1: 512 of 514 rows
    are for tokens.
    """
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and "position" in name
            and module.padding_idx is not None
        ):
            yield module
