"""The tokens that a conversation counts for at admission, before it is tokenised."""

from collections.abc import Iterable

from kwise.types import Group, Message, TemplatedText

# English has about four characters a token.
_CHARACTERS_PER_TOKEN = 4


def estimated_tokens(group: Group, indices: Iterable[int], max_tokens: int) -> list[int]:
    """Estimate the tokens of each conversation from lengths alone.

    Conversations in token ids that exceed the limit cost nothing, because they are refused.
    """
    if isinstance(group.prompt, TemplatedText):
        prompt_length, is_text = len(group.prompt.text), True
    elif isinstance(group.prompt[0], Message):
        prompt_length, is_text = sum(len(message.content) for message in group.prompt), True
    else:
        prompt_length, is_text = len(group.prompt), False
    lengths = [prompt_length + len(group.responses[index]) for index in indices]
    if is_text:
        return [length // _CHARACTERS_PER_TOKEN + 1 for length in lengths]
    return [length if length <= max_tokens else 0 for length in lengths]
