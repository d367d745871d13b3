"""Keys by which a row or a message says more than its prompt, its responses and their labels.

Whoever drops such a key trains on, or scores, another conversation than the one that people
judged. So a reader uses the key or refuses the row; only a key without a meaning here may be left
out with a note. Names are compared by their letters and digits, in lower case.
"""

from enum import Enum
from typing import Any


class Meaning(Enum):
    """The meaning of a key in a conversation, as the end of a sentence "it has …"."""

    SYSTEM = "a system message"
    HISTORY = "earlier turns"
    PROMPT = "a part of the prompt"
    TOOLS = "tools or calls of tools"
    MEDIA = "images, audio or video"
    DOCUMENTS = "a text that the answer refers to"
    TEMPLATE = "arguments of the chat template"
    REASONING = "reasoning beside the answer"
    REFUSAL = "a refusal beside the answer"
    SPEAKER = "the name of a speaker"


_MEDIA = """image images image_url image_urls image_path video videos audio audios input_audio
    picture pictures"""
_TOOLS = """tools tool functions function tool_calls tool_call function_call function_calls
    available_tools tool_choice tool_definitions"""
_REASONING = "reasoning_content reasoning thinking thinking_content thoughts"

_OF_ROWS = {
    Meaning.SYSTEM: """system system_prompt system_message system_instruction system_content
        system_msg sys_prompt""",
    Meaning.HISTORY: """history chat_history conversation_history dialogue_history dialog_history
        previous_turns previous_messages prior_turns""",
    Meaning.PROMPT: """prompt prompts instruction instructions question query input inputs
        user_prompt user_message problem choices prefill messages conversation conversations dialog
        dialogue trajectory""",
    Meaning.TOOLS: _TOOLS,
    Meaning.MEDIA: _MEDIA,
    Meaning.DOCUMENTS: """documents document docs context contexts passage passages knowledge
        retrieved_documents evidence attachments""",
    Meaning.TEMPLATE: """chat_template_kwargs chat_template chat_template_args template_kwargs
        enable_thinking add_generation_prompt continue_final_message""",
    Meaning.REASONING: _REASONING,
    Meaning.REFUSAL: "refusal",
}
_OF_MESSAGES = {
    Meaning.TOOLS: _TOOLS,
    Meaning.MEDIA: _MEDIA,
    Meaning.DOCUMENTS: "documents document context attachments files",
    Meaning.REASONING: _REASONING,
    Meaning.REFUSAL: "refusal",
    Meaning.SPEAKER: "name",
}


def row_meaning(key: str) -> Meaning | None:
    """Return what a key of a row or of a response adds to the conversation, or None."""
    return _ROW_KEYS.get(letters_of(key))


def message_meaning(key: str) -> Meaning | None:
    """Return what a key of a message, other than role and content, adds to it, or None."""
    return _MESSAGE_KEYS.get(letters_of(key))


def says_nothing(value: Any) -> bool:
    """Return whether `value` is null, an empty text, or a list or object of such values."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
        elif item is not None and not (isinstance(item, str) and not item.strip()):
            return False
    return True


def letters_of(key: str) -> str:
    """Return the letters and digits of a name, in lower case, to compare it with others."""
    return "".join(letter for letter in key.lower() if letter.isalnum())


def _by_key(table: dict[Meaning, str]) -> dict[str, Meaning]:
    return {letters_of(key): meaning for meaning, keys in table.items() for key in keys.split()}


_ROW_KEYS = _by_key(_OF_ROWS)
_MESSAGE_KEYS = _by_key(_OF_MESSAGES)
