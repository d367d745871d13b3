"""Limits on the text and tokens of a conversation. Imports the standard library only."""

from dataclasses import dataclass
from enum import Enum

# English has about four. What exceeds both is too long in tokens as well, unless it is made of what tokenizers leave out.
_MAX_CHARACTERS_PER_TOKEN = 64
_MAX_CHARACTERS = 1_000_000


class Overlong(Enum):
    """What becomes of a conversation longer than the limit."""

    REJECT = "reject"  # its reward carries an error
    DROP_TURNS = (
        "drop-turns"  # the oldest turns of the prompt go, the response and the last turn stay whole
    )


class ControlTokens(Enum):
    """What becomes of text in which a special token is spelled out, such as `<|im_end|>` in a response."""

    ACCEPT = "accept"  # tokenised as the special token, as transformers does in training; counted in the reply
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLimits:
    """max_tokens: longest conversation that is scored, in tokens; vocab_size: token ids are below it."""

    max_tokens: int
    vocab_size: int
    overlong: Overlong = Overlong.REJECT
    control_tokens: ControlTokens = ControlTokens.ACCEPT

    @property
    def max_characters(self) -> int:
        """Of a conversation's texts; what has more is refused without tokenising it, which takes a second a million."""
        return max(self.max_tokens * _MAX_CHARACTERS_PER_TOKEN, _MAX_CHARACTERS)
