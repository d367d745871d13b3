"""Limits on the text and the tokens of a conversation. Imports the standard library only."""

from dataclasses import dataclass
from enum import Enum

# English has about four characters per token. A text that exceeds both limits is too long in tokens
# as well, unless it consists of characters that tokenizers drop.
_MAX_CHARACTERS_PER_TOKEN = 64
_MAX_CHARACTERS = 1_000_000


class Overlong(Enum):
    """The treatment of a conversation that exceeds the token limit."""

    REJECT = "reject"  # its reward carries an error
    DROP_TURNS = (
        "drop-turns"  # the prompt's oldest turns are dropped; its last turn and the response stay
    )


class ControlTokens(Enum):
    """The treatment of text that spells out a special token, such as `<|im_end|>` in a response."""

    ACCEPT = "accept"  # tokenised as the special token, as in training; the reply counts it
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLimits:
    """The limits of an encoder.

    Attributes:
        max_tokens: the longest conversation that is scored, in tokens.
        vocab_size: the size of the vocabulary. Token ids are below it.
        overlong: the treatment of a conversation that exceeds `max_tokens`.
        control_tokens: the treatment of text that spells out a special token.
    """

    max_tokens: int
    vocab_size: int
    overlong: Overlong = Overlong.REJECT
    control_tokens: ControlTokens = ControlTokens.ACCEPT

    @property
    def max_characters(self) -> int:
        """The largest number of characters in a conversation.

        A longer one is refused without tokenising it, which takes a second per million characters.
        """
        return max(self.max_tokens * _MAX_CHARACTERS_PER_TOKEN, _MAX_CHARACTERS)
