"""One conversation as the model reads it: what the encoder returns and every later stage takes."""

from dataclasses import dataclass

from kwise.engine.trie import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSequence:
    """One conversation as the model reads it.

    token_ids: int64[length]; type_ids: int64[length] or None, the segment (0 prompt, 1 response) for models that want it.
    num_tokens: tokens of the conversation, which exceeds `length` where unread padding at the end was cut. prompt_tokens: how
    many of them, from the start, other responses to the prompt have too; 0 where that is not known.
    """

    token_ids: Int64
    type_ids: Int64 | None
    num_tokens: int
    prompt_tokens: int = 0
    dropped_tokens: int = 0
    control_tokens: int = 0
