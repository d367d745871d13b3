"""The tokens whose hidden states the reward head reads: the last one, or those of the response.

A reward model reads the hidden state of a conversation's last token. With mean pooling it reads
those of all tokens of the response, and the reward is the mean of what the head gives for each.

The response begins after the last response header: the token ids with which the chat template
begins every turn of the assistant, from the last special token on, for instance those of
"<|im_start|>assistant". So a reward follows from token ids alone, and it does not matter how a
caller divides a conversation into prompt and response, or whether the prompt is messages, a text or
token ids. A conversation without a header is read whole. Training and the engine both use the
functions of this module.

Dimensions: B sequences; R nodes that the head reads; S tokens read in all sequences. A node of
several sequences counts once in R and several times in S.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwise.engine.trie import Int64, Trie


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTokens:
    """The tokens of a batch that the reward head reads.

    Conversations without a header are read whole, and may share a long prompt. The head still reads
    each node once, so it never has more rows than the batch.

    nodes: int64[R], their nodes in the batch's trie; with mean pooling each once, ascending.
    places: int64[S], the place in `nodes` of each token read, of one sequence after another.
    counts: int64[B], how many tokens are read in each sequence; at least 1.
    """

    nodes: Int64
    places: Int64
    counts: Int64

    def mean(self, rewards: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean of the rewards of each sequence's tokens.

        Args:
            rewards: float32[R], or float32[R, M] of M members.

        Returns:
            float32[B] or float32[B, M].
        """
        starts = np.cumsum(self.counts) - self.counts
        sums = np.add.reduceat(rewards[self.places].astype(np.float64), starts)
        counts = self.counts.reshape(-1, *(1,) * (rewards.ndim - 1))
        return (sums / counts).astype(np.float32)


def response_start(token_ids: Sequence[int] | Int64, header: Sequence[int]) -> int:
    """Return the position at which the last response begins; 0 without a header.

    Args:
        token_ids: a conversation.
        header: the response header, at least one token id.
    """
    ids = np.asarray(token_ids, np.int64)
    if len(ids) < len(header):
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(header))
    places = np.flatnonzero((windows == np.asarray(header)).all(axis=1))
    return int(places[-1]) + len(header) if len(places) else 0


def first_read(token_ids: Sequence[int] | Int64, header: Sequence[int] | None) -> int:
    """Return the place of the first token that the reward head reads; the last one is read always.

    Args:
        token_ids: a conversation of at least one token.
        header: the response header of a model with mean pooling; None for other models.
    """
    last = len(token_ids) - 1
    return last if header is None else min(response_start(token_ids, header), last)


def read_tokens(
    trie: Trie, sequences: Sequence[Sequence[int] | Int64], header: Sequence[int] | None
) -> ReadTokens:
    """Return the tokens of a batch that the reward head reads.

    Args:
        trie: the trie of `sequences`.
        header: see `first_read`.
    """
    if header is None:
        num_sequences = len(sequences)
        return ReadTokens(
            nodes=trie.last_nodes,
            places=np.arange(num_sequences),
            counts=np.ones(num_sequences, np.int64),
        )
    parts = [
        trie.path(int(node))[first_read(sequence, header) :]
        for sequence, node in zip(sequences, trie.last_nodes, strict=True)
    ]
    nodes_read = np.concatenate(parts)
    is_read = np.zeros(trie.num_nodes, bool)
    is_read[nodes_read] = True
    return ReadTokens(
        nodes=np.flatnonzero(is_read),
        places=(np.cumsum(is_read) - 1)[nodes_read],
        counts=np.array([len(part) for part in parts]),
    )
