"""Tokenise texts with a common beginning: the beginning once, and the rest of each separately.

The tokens are those of each whole text. That holds only if the texts are cut at a special token,
because tokenizers split a text at added tokens before anything else. So the shared part is cut
before its last special token. (A cut after it would make the rest the first piece of a text, which
some tokenizers treat differently: Metaspace's `prepend_scheme="first"`.)
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from kwise.engine.trie import Int64


class Tokens(NamedTuple):
    """The tokens of one conversation.

    ids, type_ids: int64[length]; type_ids is None for models without segments.
    num_shared: see `EncodedSequence.prompt_tokens`.
    """

    ids: Int64
    type_ids: Int64 | None = None
    num_shared: int = 0


class SharedTextTokenizer:
    """Tokenises texts with a common beginning. Special tokens that a text spells out count as such.

    Args:
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        raw = [t for t in tokenizer.get_added_tokens_decoder().values() if not t.normalized]
        self._added = any_of([token.content for token in raw])
        self._longest_added = max((len(token.content) for token in raw), default=0)
        # With a word-bound token (`single_word`) the place of a split depends on the text around
        # it, so texts are not cut.
        cuttable = (
            []
            if any(t.single_word for t in raw)
            else [t for t in raw if not (t.lstrip or t.rstrip)]
        )
        self._cuttable = {token.content for token in cuttable}

    def encode(self, texts: Sequence[str], shared_text: str) -> list[Tokens]:
        """Return the tokens of each text, however long.

        Args:
            texts: at least one.
            shared_text: the common beginning of all of them.
        """
        cut = self._cut(shared_text)
        head, *tails = self._tokenizer.encode_batch_fast(
            [texts[0][:cut], *(text[cut:] for text in texts)], add_special_tokens=False
        )
        head_ids = ids_of(head)
        return [
            Tokens(np.concatenate([head_ids, ids_of(tail)]), num_shared=len(head)) for tail in tails
        ]

    def _cut(self, shared_text: str) -> int:
        """Return the start of the last special token of the shared text, or 0.

        Tokenizers match added tokens leftmost and longest first, and so does this pattern. A match
        counts only if no text after `shared_text` could make it longer.
        """
        starts = (
            match.start()
            for match in self._added.finditer(shared_text)
            if match.group() in self._cuttable
            and match.start() + self._longest_added <= len(shared_text)
        )
        return max(starts, default=0)


def ids_of(encoding: Encoding) -> Int64:
    """Return the token ids of an encoding: int64[length]."""
    return np.array(encoding.ids, np.int64)


def any_of(contents: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern for any of the strings, longest first; without strings, it never matches."""
    ordered: Callable[[str], int] = len
    longest_first = sorted(contents, key=ordered, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")
