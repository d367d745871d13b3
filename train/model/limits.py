"""The longest conversation that a model can read, for training and export alike."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# transformers writes 10^30 for a tokenizer without a limit. Real limits are far below this.
_NO_LIMIT = 10**9


def model_max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the length of the longest conversation in tokens.

    The model's positions and its tokenizer limit it.

    None if neither states a limit (ALiBi, recurrent models).
    """
    stated = [
        getattr(model.config, "max_position_embeddings", None),
        tokenizer.model_max_length,
        *_position_rows(model),
    ]
    return min(
        (int(limit) for limit in stated if limit is not None and 0 < limit < _NO_LIMIT),
        default=None,
    )


def _position_rows(model: PreTrainedModel) -> Iterator[int]:
    """Yield the number of tokens for which each padded table of position embeddings has rows.

    RoBERTa and models like it give the first token the position `padding_idx` + 1: 512 of 514 rows
    are for tokens.
    """
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and "position" in name
            and module.padding_idx is not None
        ):
            yield module.num_embeddings - module.padding_idx - 1
