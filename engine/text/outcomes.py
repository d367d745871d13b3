"""The outcome of encoding one response: its token sequence, or the error that prevents scoring."""

import numpy as np

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.limits import EncoderLimits, Overlong
from kwise.engine.text.shared_text import Tokens
from kwise.errors import InvalidRequest
from kwise.types import TokenIds


class Outcomes:
    """Makes the outcomes of an encoder.

    Args:
        limits: the limits on characters, tokens and token ids.
        trailing_pad_id: see `ConversationEncoder`.
    """

    def __init__(self, limits: EncoderLimits, trailing_pad_id: int | None) -> None:
        self._limits = limits
        self._trailing_pad_id = trailing_pad_id

    def sequence(
        self, index: int, tokens: Tokens, *, dropped_tokens: int = 0, control_tokens: int = 0
    ) -> EncodedSequence | InvalidRequest:
        """Return the sequence that the model reads, or an error if it cannot read the tokens."""
        num_tokens = length = len(tokens.ids)
        if not num_tokens:
            return InvalidRequest(
                "", "the conversation has no tokens, so there is nothing to score", response=index
            )
        if int(tokens.ids.max()) >= self._limits.vocab_size:
            return self._without_row(index, tokens)
        if self._trailing_pad_id is not None:
            not_padding = np.flatnonzero(tokens.ids != self._trailing_pad_id)
            length = int(not_padding[-1]) + 1 if len(not_padding) else 1
        return EncodedSequence(
            token_ids=tokens.ids[:length],
            type_ids=None if tokens.type_ids is None else tokens.type_ids[:length],
            num_tokens=num_tokens,
            prompt_tokens=tokens.num_shared,
            dropped_tokens=dropped_tokens,
            control_tokens=control_tokens,
        )

    def _without_row(self, index: int, tokens: Tokens) -> InvalidRequest:
        """Return the error of a text with a token that the tokenizer has and the model lacks.

        The error is about the group if the token is in the prompt.
        """
        place = int(np.flatnonzero(tokens.ids >= self._limits.vocab_size)[0])
        problem = (
            f"it spells out token {tokens.ids[place]}, which is outside the model's vocabulary of "
            f"{self._limits.vocab_size}"
        )
        if place < tokens.num_shared:
            return InvalidRequest("prompt", problem)
        return InvalidRequest("text", problem, response=index)

    def outside_vocabulary(
        self, field: str, ids: TokenIds, response: int | None = None
    ) -> InvalidRequest | None:
        """Return the error of the first id that the model has no row for, or None."""
        if not ids or (min(ids) >= 0 and max(ids) < self._limits.vocab_size):
            return None
        index, token_id = next(
            (i, id_) for i, id_ in enumerate(ids) if not 0 <= id_ < self._limits.vocab_size
        )
        problem = f"{token_id} is outside the vocabulary of {self._limits.vocab_size}"
        return InvalidRequest(f"{field}[{index}]", problem, response=response)

    def too_long(self, index: int, num_tokens: int, *, has_turns: bool = True) -> InvalidRequest:
        """Return the error of a conversation with too many tokens.

        Args:
            index: the index of the response.
            num_tokens: the tokens of the conversation.
            has_turns: False if its turns are not known, so that none can be dropped.
        """
        problem = (
            f"the conversation has {num_tokens} tokens and the limit is {self._limits.max_tokens}"
        )
        if self._limits.overlong is Overlong.DROP_TURNS and not has_turns:
            problem += "; --overlong drop-turns drops turns of messages only"
        return InvalidRequest("", problem, response=index, over_limit=True)

    def too_many_characters(
        self, field: str, length: int, response: int | None = None
    ) -> InvalidRequest:
        """Return the error of a conversation with too many characters."""
        problem = (
            f"the conversation has {length} characters and the limit is "
            f"{self._limits.max_characters}"
        )
        return InvalidRequest(field, problem, response=response, over_limit=True)

    def prompt_too_long(self, num_tokens: int) -> InvalidRequest:
        """Return the error of a prompt that leaves no room even for an empty response."""
        return InvalidRequest(
            "prompt",
            f"it has {num_tokens} tokens with an empty response, and the limit of a conversation "
            f"is {self._limits.max_tokens}",
            over_limit=True,
        )
