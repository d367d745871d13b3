"""Render conversations with a tokenizer's chat template."""

from transformers import PreTrainedTokenizerBase

from kwise.errors import ConfigError
from kwise.libraries.errors import cause_of, is_foreign
from kwise.types import Conversation


class TemplateRefusal(ConfigError):
    """The chat template cannot render a conversation. The message says why, in one line."""


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, opens_answer: bool = False
) -> str:
    """Return the text of a conversation as the chat template renders it.

    Args:
        opens_answer: add what precedes the assistant's next message.

    Raises:
        TemplateRefusal: the template raises any error.
    """
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens_answer
            )
        )
    except Exception as error:  # a template may fail in any way, for instance divide by zero
        if not is_foreign(error):
            raise
        raise TemplateRefusal(cause_of(error)) from error


def template_variables(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens that a template may name, such as `bos_token`, and their text."""
    return {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
