"""Token sequences with which the properties of a model are measured.

They begin and end as the chat template lets every conversation begin and end, because some models
read the reward at a special token. Between that are random tokens, and, if asked for, every special
token of the tokenizer, as they appear if a text spells them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.train.checkpoint.ids import num_rows
from kwise.train.model.tokenizer import token_ids
from kwise.types import Message

TokenList = list[int]
# CANINE pools four tokens into one, and other models have demands like it.
_MIN_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The frame of a conversation, and the tokens that may stand in it.

    Attributes:
        head: tokens with which every conversation begins.
        tail: tokens with which every conversation ends.
        special: special tokens that a text may spell out.
        vocab_size: the other tokens are drawn from the ids below it.
    """

    head: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    special: tuple[int, ...] = ()
    vocab_size: int

    @property
    def min_tokens(self) -> int:
        """The length of the shortest sequence: a short text in the frame."""
        return max(_MIN_TOKENS, len(self.head) + 1 + len(self.tail))

    def sequence(self, length: int, *, seed: int, num_special: int = 0) -> TokenList:
        """Return a sequence of `length` tokens, or of `min_tokens` if that is more.

        Sequences of the same seed begin alike. Special tokens stand before the tail, up to
        `num_special` of them.
        """
        size = max(length, self.min_tokens) - len(self.head) - len(self.tail)
        random = np.random.default_rng(seed)
        reserved = {*self.special, *self.head, *self.tail}
        ordinary = [token for token in range(self.vocab_size) if token not in reserved][:20_000]
        body: TokenList = random.choice(ordinary or [0], size).tolist()
        for place, token in enumerate(self.special * num_special):
            if place >= min(num_special, size - 1):
                break
            body[size - 1 - place] = token
        return [*self.head, *body, *self.tail]


def conversation_probe(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Probe:
    """Return a probe like the conversations that the tokenizer's chat template makes."""
    first, second = (_conversation(tokenizer, text) for text in ("Yes", "no."))
    head = _common(first, second)
    tail = _common(first[len(head) :][::-1], second[len(head) :][::-1])[::-1]
    vocab_size = num_rows(model)
    return Probe(
        head=tuple(head),
        tail=tuple(tail),
        special=tuple(sorted(token for token in tokenizer.all_special_ids if token < vocab_size)),
        vocab_size=min(vocab_size, len(tokenizer)),
    )


def _conversation(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenList:
    """Return the tokens of a short conversation; without a template, those of two texts."""
    if tokenizer.chat_template is None:
        return list(tokenizer(text, text)["input_ids"])
    messages = Message(role="user", content=text), Message(role="assistant", content=text)
    return token_ids(tokenizer, messages)


def _common(first: Sequence[int], second: Sequence[int]) -> TokenList:
    """Return the tokens with which both sequences begin."""
    common: TokenList = []
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            break
        common.append(ours)
    return common
