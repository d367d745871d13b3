"""Find the response header of a chat template: the tokens after which a response begins.

See kwise/engine/model/pooling.py for its use. A header is found in one short conversation, and
checked in others: where a template writes it before one response only, or with words of the prompt,
the last header of a conversation is not the last response's, and a mean would go over the wrong
tokens.
"""

import string
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from transformers import PreTrainedTokenizerBase

from kwise.engine.model.pooling import response_start
from kwise.errors import ConfigError
from kwise.train.checkpoint.pooling import HEADER_KEY
from kwise.train.model.tokenizer import text_token_ids
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import Conversation, Message, TokenIds

# Tokenizers may join the first characters of a response with the last ones of the template: a line
# feed with a line feed, or a colon with an asterisk.
_RESPONSES = (
    *("Yes.", "no", "42", "\n\nWell", " (a)", "\tx", "ä", "¿Qué?", "«", "—", "「", "好", "🙂"),
    *(f"{mark}{word}" for mark in string.punctuation for word in ("", mark, "a", "1")),
)


def _messages(*turns: str) -> Conversation:
    """Return a conversation; each turn is "role: content"."""
    parts = [turn.partition(": ") for turn in turns]
    return tuple(Message(role=role, content=content) for role, _, content in parts)


_PROMPT = _messages("user: Well?")
# A template may refuse some of these, because they have several turns or a system message.
_OTHER_PROMPTS = (
    _messages("user: Name a few colours"),
    _messages("system: Be brief.", "user: Which?"),
    _messages("user: Red?", "assistant: Blue.", "user: Why?"),
    _messages("system: Be brief.", "user: Red?", "assistant: Blue.", "user: Why?"),
)


def response_header(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Return the token ids that precede every response, from the last special token on.

    They end before a token that depends on the response. They begin with a special token, so that
    no ordinary text contains them. In some templates they precede other messages as well, for
    instance `<|end_header_id|>` in that of Llama 3. The last place counts, so this does no harm.

    Args:
        tokenizer: has the chat template.

    Raises:
        ConfigError: the template refuses a short conversation, writes no special token before a
            response, does not write the same tokens before every last response, or writes them
            after the beginning of a response, too.
    """
    try:
        opened = text_token_ids(tokenizer, render(tokenizer, _PROMPT, opens_answer=True))
        conversations = _answered(tokenizer, _PROMPT, _RESPONSES)
    except TemplateRefusal as refusal:
        raise ConfigError(
            f"--pooling mean: the chat template refuses a short conversation: {refusal}"
        ) from None
    shared = commonprefix([opened, *conversations])
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {token_id for token_id, token in added.items() if token.special}
    start = max((i for i, token_id in enumerate(shared) if token_id in special), default=None)
    header = () if start is None else tuple(shared[start:])
    if (
        not header
        or any(response_start(ids, header) != len(shared) for ids in conversations)
        or not writes_header(tokenizer, header)
    ):
        raise ConfigError(
            "--pooling mean: the chat template does not show where a response begins; it must "
            "write a special token between a prompt and a response, the same tokens from there on "
            "in every conversation, and not the same tokens after it"
        )
    return header


def pooling_notes(tokenizer: PreTrainedTokenizerBase, header: TokenIds | None) -> list[str]:
    """Return a sentence for the user about how the reward is read, with mean pooling."""
    if header is None:
        return []
    text = tokenizer.decode(list(header))
    return [f"the reward is the mean over the response's tokens, those after {text!r}"]


def writes_header(tokenizer: PreTrainedTokenizerBase, header: TokenIds) -> bool:
    """Return whether the chat template writes the header before the last response.

    It is measured on a few conversations; those that the template refuses say nothing.
    """
    for prompt in (_PROMPT, *_OTHER_PROMPTS):
        try:
            conversations = _answered(tokenizer, prompt, _RESPONSES[:3])
        except TemplateRefusal:
            continue
        if not all(follows_header(tokenizer, prompt, ids, header) for ids in conversations):
            return False
    return True


def check_header(place: str, tokenizer: PreTrainedTokenizerBase, header: TokenIds) -> None:
    """Raise ConfigError if the chat template does not write the header before the last response.

    Conversations would be read whole, which the model was not trained for.

    Args:
        place: what the user calls the checkpoint; the error begins with it.
        header: what the checkpoint's config.json states.
    """
    if not writes_header(tokenizer, header):
        raise ConfigError(
            f"{place}: the chat template does not write {tokenizer.decode(list(header))!r}, after "
            f"which the model reads its reward ({HEADER_KEY} in config.json); use the template "
            "that the model was trained with"
        )


def follows_header(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Conversation,
    input_ids: Sequence[int],
    header: TokenIds,
) -> bool:
    """Return whether the last header of a conversation is behind its prompt's last message.

    If not, it is that of an earlier turn, and mean pooling would read the prompt.

    Args:
        prompt: the messages before the response.
        input_ids: the conversation's tokens, those of the response included.
    """
    start = response_start(input_ids, header)
    if start == 0:
        return False
    try:
        closed = text_token_ids(tokenizer, render(tokenizer, prompt))
    except TemplateRefusal:
        return True  # nothing to compare with
    # Templates may write the header with the user's message, and a line feed or a colon after it.
    between = tokenizer.decode(input_ids[start : len(commonprefix([closed, [*input_ids]]))])
    return not any(character.isalnum() for character in between)


def _answered(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, responses: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of the conversations of a prompt and each of the responses.

    Raises:
        TemplateRefusal: the template refuses one of them.
    """
    return [
        text_token_ids(tokenizer, render(tokenizer, (*prompt, answer)))
        for answer in (Message(role="assistant", content=response) for response in responses)
    ]
