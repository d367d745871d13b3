"""Find the response header of a chat template: the tokens after which a response begins.

A template that comes with a header, from a checkpoint or a command line, is checked for it.

See kwise/engine/pooling.py for its use.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from kwise.engine.pooling import response_start
from kwise.errors import ConfigError
from kwise.train.checkpoint.pooling import HEADER_KEY
from kwise.train.model.tokenizer import text_token_ids, token_ids
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import Message, TokenIds

# Tokenizers may join the first characters of a response with the last ones of the template: a line
# feed with a line feed, for instance.
_RESPONSES = ("Yes.", "no", "42", "\n\nWell", " (a)", ") so", "ä")
# Where the last special token before a response is the one that begins a text, the prompt follows
# it, and no other conversation has the same tokens.
_PROMPTS = ("Well?", "Name a colour.")


def response_header(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Return the token ids that precede every response, from the last special token on.

    They end before a token that depends on the response. They begin with a special token, so that
    no ordinary text contains them. In some templates they precede other messages as well, for
    instance `<|end_header_id|>` in that of Llama 3. The last place counts, so this does no harm.

    Args:
        tokenizer: has the chat template.

    Raises:
        ConfigError: the template refuses a short conversation, writes no special token between a
            prompt and a response, or writes the same tokens after the beginning of a response.
    """
    headers = {_header_after(tokenizer, prompt) for prompt in _PROMPTS}
    header = headers.pop()
    if headers or header is None:
        raise ConfigError(
            "--pooling mean: the chat template does not show where a response begins; it must "
            "write a special token between a prompt and a response, and not the same tokens after "
            "it"
        )
    return header


def check_header(place: str, tokenizer: PreTrainedTokenizerBase, header: TokenIds) -> None:
    """Raise ConfigError if the chat template does not write the response header.

    Every conversation would be read whole, which the model was not trained for.

    Args:
        place: what the user calls the checkpoint; the error begins with it.
    """
    turns = (Message(role="user", content=_PROMPTS[0]), Message(role="assistant", content="Yes."))
    if response_start(token_ids(tokenizer, turns), header) == 0:
        raise ConfigError(
            f"{place}: the chat template does not write {tokenizer.decode(list(header))!r}, after "
            f"which the model reads its reward ({HEADER_KEY} in config.json); use the template "
            "that the model was trained with"
        )


def _header_after(tokenizer: PreTrainedTokenizerBase, prompt: str) -> TokenIds | None:
    """Return the response header after a prompt; None if it does not show where responses begin.

    Raises:
        ConfigError: the template refuses a conversation.
    """
    turns = (Message(role="user", content=prompt),)
    try:
        opened = text_token_ids(tokenizer, render(tokenizer, turns, opens_answer=True))
        conversations = [
            text_token_ids(
                tokenizer, render(tokenizer, (*turns, Message(role="assistant", content=response)))
            )
            for response in _RESPONSES
        ]
    except TemplateRefusal as refusal:
        raise ConfigError(
            f"--pooling mean: the chat template refuses a short conversation: {refusal}"
        ) from None
    shared = _common_prefix([opened, *conversations])
    added = tokenizer.added_tokens_decoder
    special = {token_id for token_id, token in added.items() if token.special}
    start = max((i for i, token_id in enumerate(shared) if token_id in special), default=None)
    if start is None:
        return None
    header = tuple(shared[start:])
    is_clear = all(response_start(ids, header) == len(shared) for ids in conversations)
    return header if is_clear else None


def _common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens with which all sequences begin."""
    shortest = min(sequences, key=len)
    length = next(
        (i for i, ids in enumerate(zip(*sequences, strict=False)) if len(set(ids)) > 1),
        len(shortest),
    )
    return list(shortest[:length])
