"""What a batch of token sequences takes from the prompt cache, and what it leaves there.

`plan_reuse` finds, before a pass, which of the batch's prefixes have keys and values already, and which prompts are worth
keeping; `keep` stores these when the pass has computed them. Every sequence's last token is computed even where its prefix
is known, for the head reads its hidden state.

Dimensions: N nodes of the batch's trie, P past entries, W the width of a layer's keys or values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.prefix_cache import PromptCache, Segment, States
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import KEY_BYTES, Int64, Trie, build_trie, sort_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """past: int64[N], each node's entry among `states`, or NOT_PAST; states: float32[P, W] each; prompts: by sort key the
    nodes of each prefix to keep; kept: int64, the nodes of them that the cache does not have, ascending."""

    trie: Trie
    past: Int64
    states: States
    prompts: dict[bytes, Int64]
    kept: Int64

    @property
    def num_past(self) -> int:
        return len(self.states[0]) if self.states else 0


def plan_reuse(
    batch: Sequence[EncodedSequence],
    cache: PromptCache,
    widths: Sequence[int],
    *,
    own_ends: bool = False,
) -> Reuse:
    """`widths`: the W of each state, in the graph's order; own_ends: see `build_trie`."""
    trie = build_trie([sequence.token_ids for sequence in batch], own_ends=own_ends)
    past = np.full(trie.num_nodes, NOT_PAST)
    prompts: dict[bytes, Int64] = {}
    found: list[tuple[Int64, Segment, int]] = []
    new: list[Int64] = []
    for sequence, node in zip(batch, trie.last_nodes, strict=True):
        path, key = trie.path(int(node)), sort_key(sequence.token_ids)
        segment, known = cache.longest(key)
        if segment is not None:
            found.append((path, segment, known))
        length = min(sequence.prompt_tokens, len(path) - 1 if own_ends else len(path))
        if known < length and cache.has_room_for(length, 4 * sum(widths)):
            prompts[key[: KEY_BYTES * length]] = path[:length]
            new.append(path[known:length])
    offsets, states = _gather(found, widths)
    for path, segment, known in found:
        stop = known
        for part in segment.chain():
            past[path[part.start : stop]] = offsets[part.key] + np.arange(stop - part.start)
            stop = part.start
    # A prompt's last token may be known and computed all the same, as the last of some sequence: it is not kept again.
    past[trie.last_nodes] = NOT_PAST
    kept = np.unique(np.concatenate([np.empty(0, np.int64), *new]))
    # Of a prompt that shares too few tokens with any entry to be found, these are known where another sequence found them.
    past[kept] = NOT_PAST
    return Reuse(trie=trie, past=past, states=states, prompts=prompts, kept=kept)


def keep(reuse: Reuse, present: States, cache: PromptCache) -> None:
    """`present`: float32[len(kept), W] each, the states of the nodes `reuse.kept`."""
    for key, nodes in sorted(reuse.prompts.items()):
        _, start = cache.longest(key)
        rows = np.searchsorted(reuse.kept, nodes[start:])
        if start < len(nodes) and np.isin(nodes[start:], reuse.kept).all():
            whole = len(rows) == len(reuse.kept)  # the only prompt: no copy
            cache.put(key, start, present if whole else [state[rows] for state in present])


def _gather(
    found: Sequence[tuple[Int64, Segment, int]], widths: Sequence[int]
) -> tuple[dict[bytes, int], States]:
    """(where each segment begins among the past entries, the states of all entries), each segment once."""
    stops: dict[bytes, tuple[Segment, int]] = {}
    for _, segment, known in found:
        stop = known
        for part in segment.chain():
            stops[part.key] = part, max(stop, stops.get(part.key, (part, 0))[1])
            stop = part.start
    lengths = [stop - part.start for part, stop in stops.values()]
    offsets = dict(zip(stops, np.cumsum([0, *lengths]).tolist(), strict=False))
    used = [
        [state[:length] for state in part.states]
        for (part, _), length in zip(stops.values(), lengths, strict=True)
    ]
    if len(used) == 1:  # passed on without a copy
        return offsets, used[0]
    states = [
        np.concatenate([np.empty((0, width), np.float32), *rows])
        for width, *rows in zip(widths, *used, strict=True)
    ]
    return offsets, states
