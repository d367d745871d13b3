"""Token sequences → their trie: every distinct prefix of a batch is one node (but for `own_ends`), whichever caller sent it.

A prompt common to K responses, a system prompt common to different prompts and the earlier turns of a conversation are
nodes once. Sorting the sequences makes this a matter of comparing neighbours: each sequence adds nodes only past its
longest common prefix with the one before it, and nodes are numbered depth first. Node k is then an ancestor of node q, or
q itself, exactly if k <= q < ends[k], so that a mask needs two integers a node.

Dimensions: B sequences, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trie:
    """The nodes of a batch, numbered depth first.

    token_ids, depths, ends: int64[N]; a node's depth is its token's position, nodes below node n are n+1 … ends[n]-1.
    last_nodes: int64[B], the node of each sequence's last token, in the order in which the sequences were given.
    branches: int64[sequences with nodes of their own], the first node of each one, ascending.
    """

    token_ids: Int64
    depths: Int64
    ends: Int64
    last_nodes: Int64
    branches: Int64
    _paths: list[Int64]  # beside `branches`: the nodes from the root to the sequence's last token

    @property
    def num_nodes(self) -> int:
        return len(self.token_ids)

    def path(self, node: int) -> Int64:
        """The nodes from the root to `node`, which is the last: int64[depths[node] + 1]."""
        owner = int(np.searchsorted(self.branches, node, side="right")) - 1
        return self._paths[owner][: self.depths[node] + 1]


# Of one token in a sort key.
KEY_BYTES = 4
# Marks a last token in a sort key; token ids are below it.
_END = 1 << 31


def sort_key(token_ids: Int64) -> bytes:
    """Bytes that order as the token ids do (big-endian, four bytes a token), for sorting and for common prefixes."""
    return token_ids.astype(">u4").tobytes()


def key_length(key: bytes) -> int:
    """Tokens of a sort key."""
    return len(key) // KEY_BYTES


def common_prefix(a: bytes, b: bytes) -> int:
    """Tokens that two sort keys have in common from the start."""
    x, y = (np.frombuffer(key, ">u4", count=min(key_length(a), key_length(b))) for key in (a, b))
    differ = x != y
    return int(differ.argmax()) if differ.any() else len(x)


def _with_end(sequence: Int64) -> Int64:
    """The sequence with a last token that is no inner token of any."""
    marked = sequence.copy()
    marked[-1] |= _END
    return marked


def build_trie(sequences: Sequence[Int64], *, own_ends: bool = False) -> Trie:
    """One node per distinct prefix of the sequences (each int64[length >= 1], of token ids below 2³¹).

    own_ends: each sequence's last token is a node that only equal sequences share, beside any inner node of the same prefix.
    For graphs that compute last rows otherwise than others.
    """
    keys = [sort_key(_with_end(sequence) if own_ends else sequence) for sequence in sequences]
    last_nodes = np.empty(len(sequences), np.int64)
    token_ids: list[Int64] = []
    depths: list[Int64] = []
    branches: list[int] = []
    paths: list[Int64] = []
    ends = np.empty(sum(map(len, sequences)), np.int64)
    path: Int64 = np.empty(0, np.int64)
    previous, num_nodes = b"", 0
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        tokens = sequences[index]
        shared = common_prefix(previous, keys[index])
        if shared < len(tokens):
            ends[path[shared:]] = num_nodes  # the branch that ends here has all its nodes
            new_nodes = np.arange(num_nodes, num_nodes + len(tokens) - shared)
            path = np.concatenate([path[:shared], new_nodes])
            token_ids.append(tokens[shared:])
            depths.append(np.arange(shared, len(tokens)))
            branches.append(num_nodes)
            paths.append(path)
            num_nodes += len(new_nodes)
            previous = keys[index]
        last_nodes[index] = path[len(tokens) - 1]
    ends[path] = num_nodes
    return Trie(
        token_ids=np.concatenate(token_ids),
        depths=np.concatenate(depths),
        ends=ends[:num_nodes].copy(),
        last_nodes=last_nodes,
        branches=np.array(branches),
        _paths=paths,
    )
