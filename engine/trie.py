"""The trie of a batch of token sequences: one node per distinct prefix, whoever sent it.

A prompt that K responses share, a system prompt that different prompts share and the earlier turns
of a conversation are each stored once. `build_trie` sorts the sequences and compares neighbours: a
sequence adds nodes only after its longest common prefix with the sequence before it. Nodes are
numbered in preorder (depth first), so node k is an ancestor of node q, or q itself, exactly if
k <= q < subtree_end[k]. An attention mask therefore needs two integers per node.

Dimensions: B sequences, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """The nodes of a batch, numbered in preorder.

    token_ids: int64[N].
    depths: int64[N], the position of each node's token.
    subtree_end: int64[N]; the descendants of node n are n+1 … subtree_end[n]-1.
    last_nodes: int64[B], the node of each sequence's last token, in the order of the input.
    branches: int64[number of branches], ascending. A branch is the run of nodes that one sequence
        added; this is its first node.
    """

    token_ids: Int64
    depths: Int64
    subtree_end: Int64
    last_nodes: Int64
    branches: Int64
    _paths: list[Int64]  # per branch: the nodes from the root to the sequence's last token

    @property
    def num_nodes(self) -> int:
        return len(self.token_ids)

    def path(self, node: int) -> Int64:
        """Return the nodes from the root to `node` inclusive: int64[depths[node] + 1]."""
        branch = int(np.searchsorted(self.branches, node, side="right")) - 1
        return self._paths[branch][: self.depths[node] + 1]


# Bytes per token in a sort key.
KEY_BYTES = 4
# Marks a last token in a sort key. Token ids are smaller.
_LAST_TOKEN = 1 << 31


def sort_key(token_ids: Int64) -> bytes:
    """Return bytes that sort like the token ids: four bytes each, the most significant first."""
    return token_ids.astype(">u4").tobytes()


def key_length(key: bytes) -> int:
    """Return the number of tokens in a sort key."""
    return len(key) // KEY_BYTES


def common_prefix(a: bytes, b: bytes) -> int:
    """Return how many tokens two sort keys have in common at the start."""
    length = min(key_length(a), key_length(b))
    if not length:
        return 0
    # Equality needs no byte order, and NumPy compares native integers fastest.
    differ = np.frombuffer(a, np.uint32, length) != np.frombuffer(b, np.uint32, length)
    first = int(differ.argmax())
    return first if differ[first] else length


def _mark_last_token(sequence: Int64) -> Int64:
    """Return the sequence with a last token that differs from every inner token."""
    marked = sequence.copy()
    marked[-1] |= _LAST_TOKEN
    return marked


def build_trie(sequences: Sequence[Int64], *, separate_last_tokens: bool = False) -> Trie:
    """Build the trie of the sequences.

    Args:
        sequences: int64[length >= 1] each, with token ids below 2³¹.
        separate_last_tokens: give each sequence's last token a node of its own, which only equal
            sequences share, even if another sequence has the same prefix as inner tokens. For
            graphs that compute last rows differently from other rows.
    """
    keys = [sort_key(_mark_last_token(s) if separate_last_tokens else s) for s in sequences]
    last_nodes = np.empty(len(sequences), np.int64)
    token_ids: list[Int64] = []
    depths: list[Int64] = []
    branches: list[int] = []
    paths: list[Int64] = []
    subtree_end = np.empty(sum(map(len, sequences)), np.int64)
    path: Int64 = np.empty(0, np.int64)
    previous, num_nodes = b"", 0
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        tokens = sequences[index]
        shared = common_prefix(previous, keys[index])
        if shared < len(tokens):
            subtree_end[path[shared:]] = num_nodes  # these nodes get no more descendants
            new_nodes = np.arange(num_nodes, num_nodes + len(tokens) - shared)
            path = np.concatenate([path[:shared], new_nodes])
            token_ids.append(tokens[shared:])
            depths.append(np.arange(shared, len(tokens)))
            branches.append(num_nodes)
            paths.append(path)
            num_nodes += len(new_nodes)
            previous = keys[index]
        last_nodes[index] = path[len(tokens) - 1]
    subtree_end[path] = num_nodes
    return Trie(
        token_ids=np.concatenate(token_ids),
        depths=np.concatenate(depths),
        subtree_end=subtree_end[:num_nodes].copy(),
        last_nodes=last_nodes,
        branches=np.array(branches),
        _paths=paths,
    )
