"""What a batch of token sequences takes from the prompt cache, and what it leaves there.

`plan_reuse` finds, before a pass, which of the batch's prefixes have keys and values already, and which prompts are worth
keeping; `keep` stores these when the pass has computed them. Every sequence's last token is computed even where its prefix
is known, for the head reads its hidden state.

Dimensions: N nodes of the batch's trie, P past entries, W the width of a layer's keys or values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kwise.engine.conversation import EncodedSequence
from kwise.engine.packing import NOT_PAST
from kwise.engine.prompt_cache import CachedPrefix, PromptCache, States
from kwise.engine.trie import Int64, Trie, build_trie, sort_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """past: int64[N], each node's entry among `states`, or NOT_PAST; states: float32[P, W] each; prompts: the nodes of each
    prefix to keep, by sort key; kept: int64, those of their nodes that this pass computes, ascending."""

    trie: Trie
    past: Int64
    states: States
    prompts: dict[bytes, Int64]
    kept: Int64

    @property
    def num_past(self) -> int:
        return len(self.states[0]) if self.states else 0





def plan_reuse(batch: Sequence[EncodedSequence], cache: PromptCache, widths: Sequence[int]) -> Reuse:
    """`widths`: the W of each state, in the graph's order; empty for a graph that takes none."""
    trie = build_trie([sequence.token_ids for sequence in batch])
    paths = [trie.path(int(node)) for node in trie.last_nodes]
    keys = [sort_key(sequence.token_ids) for sequence in batch]
    past, states, covered = _find(trie, paths, keys, cache, widths)
    prompts = _worth_keeping(batch, paths, keys, covered, cache, 4 * sum(widths))
    nodes = np.unique(np.concatenate([np.empty(0, np.int64), *prompts.values()]))
    return Reuse(trie=trie, past=past, states=states, prompts=prompts, kept=nodes[past[nodes] == NOT_PAST])


def keep(reuse: Reuse, present: States, cache: PromptCache) -> None:
    """`present`: float32[len(kept), W] each, the states of the nodes `reuse.kept`."""
    for key, nodes in reuse.prompts.items():
        computed = reuse.past[nodes] == NOT_PAST
        rows, entries = np.searchsorted(reuse.kept, nodes[computed]), reuse.past[nodes[~computed]]
        states = []
        for new, old in zip(present, reuse.states, strict=True):
            state = np.empty((len(nodes), new.shape[1]), np.float32)
            state[computed], state[~computed] = new[rows], old[entries]
            states.append(state)
        cache.put(CachedPrefix(key=key, states=states))


def _find(
    trie: Trie, paths: Sequence[Int64], keys: Sequence[bytes], cache: PromptCache, widths: Sequence[int]
) -> tuple[Int64, States, list[int]]:
    """(past, states, how many tokens of each sequence the cache knows)."""
    found = [cache.longest(key) for key in keys]
    longest: dict[bytes, tuple[CachedPrefix, int]] = {}
    for entry, shared in found:
        if entry is not None:
            longest[entry.key] = entry, max(shared, longest.get(entry.key, (entry, 0))[1])
    ends = np.cumsum([0, *(shared for _, shared in longest.values())])
    offsets = dict(zip(longest, ends.tolist(), strict=False))
    past = np.full(trie.num_nodes, NOT_PAST)
    for (entry, shared), path in zip(found, paths, strict=True):
        if entry is not None:
            past[path[:shared]] = offsets[entry.key] + np.arange(shared)
    past[trie.last_nodes] = NOT_PAST
    parts = [[np.zeros((0, width), np.float32)] for width in widths]
    for entry, shared in longest.values():
        for part, state in zip(parts, entry.states, strict=True):
            part.append(state[:shared])
    # One prefix alone is passed on without a copy.
    states = [part[-1] if len(part) <= 2 else np.concatenate(part) for part in parts]
    return past, states, [shared for _, shared in found]


def _worth_keeping(
    batch: Sequence[EncodedSequence],
    paths: Sequence[Int64],
    keys: Sequence[bytes],
    covered: Sequence[int],
    cache: PromptCache,
    bytes_per_token: int,
) -> dict[bytes, Int64]:
    """The nodes of every prompt that the cache does not know whole and has room for; a prompt that begins another is in it."""
    prompts: dict[bytes, Int64] = {}
    for sequence, path, key, known in zip(batch, paths, keys, covered, strict=True):
        length = min(sequence.prompt_tokens, len(path))
        if known < length and cache.has_room_for(length, bytes_per_token):
            prompts[key[: 4 * length]] = path[:length]
    ordered = sorted(prompts)
    begins_another = [a for a, b in zip(ordered, ordered[1:], strict=False) if b.startswith(a)]
    for key in begins_another:
        del prompts[key]
    return prompts
