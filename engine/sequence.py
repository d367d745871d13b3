"""One conversation as the model reads it: the encoder returns it and every later stage takes it."""

from dataclasses import dataclass

from kwise.engine.trie import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSequence:
    """One conversation as the model reads it.

    token_ids: int64[length].
    type_ids: int64[length], the segment of each token (0 prompt, 1 response), or None for models
        without segments.
    num_tokens: tokens of the conversation. It exceeds `length` if padding at the end, which the
        model does not read, was cut off.
    prompt_tokens: how many tokens, from the start, every response to the same prompt shares; 0 if
        unknown.
    dropped_tokens: tokens of the oldest turns that were dropped to fit the limit.
    control_tokens: special tokens that the response's text spells out.
    """

    token_ids: Int64
    type_ids: Int64 | None
    num_tokens: int
    prompt_tokens: int = 0
    dropped_tokens: int = 0
    control_tokens: int = 0
