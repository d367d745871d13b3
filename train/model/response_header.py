"""Find the response header of a chat template: the tokens after which a response begins.

See kwise/engine/pooling.py for its use.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kwise.engine.pooling import response_start
from kwise.errors import ConfigError
from kwise.train.model.tokenizer import text_token_ids
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import Message, TokenIds

# Tokenizers may join the first characters of a response with the last ones of the template: a line
# feed with a line feed, for instance.
_RESPONSES = ("Yes.", "no", "42", "\n\nWell", " (a)", "ä")


def response_header(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Return the token ids that precede every response, from the last special token on.

    They end before a token that depends on the response. They begin with a special token, so that
    no ordinary text contains them.

    Args:
        tokenizer: has the chat template.

    Raises:
        ConfigError: the template refuses a short conversation, writes no special token before a
            response, or writes the same tokens after the beginning of a response.
    """
    prompt = (Message(role="user", content="Well?"),)
    try:
        opened = text_token_ids(tokenizer, render(tokenizer, prompt, opens_answer=True))
        conversations = [
            text_token_ids(
                tokenizer,
                render(tokenizer, (*prompt, Message(role="assistant", content=response))),
            )
            for response in _RESPONSES
        ]
    except TemplateRefusal as refusal:
        raise ConfigError(
            f"--pooling mean: the chat template refuses a short conversation: {refusal}"
        ) from None
    shared = _common_prefix([opened, *conversations])
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {token_id for token_id, token in added.items() if token.special}
    start = max((i for i, token_id in enumerate(shared) if token_id in special), default=None)
    header = () if start is None else tuple(shared[start:])
    if not header or any(response_start(ids, header) != len(shared) for ids in conversations):
        raise ConfigError(
            "--pooling mean: the chat template does not show where a response begins; it must "
            "write a special token before a response, and not the same tokens after it"
        )
    return header


def _common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens with which all sequences begin."""
    shortest = min(sequences, key=len)
    length = next(
        (i for i, ids in enumerate(zip(*sequences, strict=False)) if len(set(ids)) > 1),
        len(shortest),
    )
    return list(shortest[:length])
