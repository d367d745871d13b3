"""Decide what a batch takes from the prompt cache and what it adds to it.

Before a pass, `plan_reuse` finds which of the batch's prefixes have cached keys and values, and
which prompts are worth caching. After the pass, `cache_prompts` stores those. The last token of
every sequence is computed even if its prefix is cached, because the head reads its hidden state.

A batch may be planned while the batch before it runs. Whatever that one then adds to the cache or
drops from it, the plan stays right, because it holds the states that it reuses and nothing changes
them. But it may compute a prompt that is cached by now; `is_outdated` tells.

Dimensions: N nodes of the batch's trie, P past entries, W the width of a layer's keys or values.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.prefix_cache import MIN_TOKENS, PromptCache, Segment, States
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import KEY_BYTES, Int64, Trie, build_trie, common_prefix, sort_key

# A prompt is cached with this many tokens after it. Texts are cut at a special token, so the tokens
# that open the response's turn ("assistant", a line feed) are not part of the prompt, although
# nearly all responses have them. Where that is wrong, four rows are cached in vain.
_OPENING_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """A batch's trie, the cached states it uses, and the prompts to cache after the pass.

    past: int64[N], the index of each node among the past entries, or NOT_PAST.
    states: what the cache holds of the P past entries, see `States`.
    segments: the segments that these are from.
    prompts: the nodes of each prefix to cache, by its sort key.
    nodes_to_cache: int64, ascending: those of them that the cache does not have.
    num_cached: the number of tokens that each sequence, by its sort key, has in the cache.
    prefixes: the prefixes that the cache had.
    """

    trie: Trie
    past: Int64
    states: States
    prompts: dict[bytes, Int64]
    nodes_to_cache: Int64
    num_cached: dict[bytes, int]
    prefixes: tuple[bytes, ...]
    segments: Sequence[Segment]

    def without_caching(self) -> "Reuse":
        """Return the plan, with nothing to cache after the pass."""
        return replace(self, prompts={}, nodes_to_cache=self.nodes_to_cache[:0])

    @property
    def num_past(self) -> int:
        return len(self.states[0]) if self.states else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """A sequence whose first `num_tokens` tokens are cached in `segment` and its ancestors."""

    path: Int64
    segment: Segment
    num_tokens: int


def plan_reuse(
    batch: Sequence[EncodedSequence],
    cache: PromptCache,
    no_states: States,
    *,
    separate_last_tokens: bool = False,
) -> Reuse:
    """Build the batch's trie and look its prefixes up in the cache.

    Args:
        no_states: the states of 0 tokens.
        separate_last_tokens: see `build_trie`.
    """
    trie = build_trie([s.token_ids for s in batch], separate_last_tokens=separate_last_tokens)
    past = np.full(trie.num_nodes, NOT_PAST)
    prefixes = cache.prefixes
    num_cached_of: dict[bytes, int] = {}
    prompts: dict[bytes, Int64] = {}
    planned: set[bytes] = set()  # the prompts without what is cached after them
    matches: list[_Match] = []
    bytes_per_token = sum(state.itemsize * math.prod(state.shape[1:]) for state in no_states)
    new: list[Int64] = []
    for sequence, node in zip(batch, trie.last_nodes, strict=True):
        path, key = trie.path(int(node)), sort_key(sequence.token_ids)
        segment, num_cached = cache.longest(key)
        num_cached_of[key] = num_cached
        if segment is not None:
            matches.append(_Match(path=path, segment=segment, num_tokens=num_cached))
        max_length = len(path) - 1 if separate_last_tokens else len(path)
        length = min(sequence.prompt_tokens, max_length)
        prompt = key[: KEY_BYTES * length]
        if num_cached >= length or prompt in planned:
            continue
        length = min(length + _OPENING_TOKENS, max_length)
        if cache.has_room_for(length, bytes_per_token):
            planned.add(prompt)
            prompts[key[: KEY_BYTES * length]] = path[:length]
            new.append(path[num_cached:length])
    offsets, states = _gather(matches, no_states)
    for match in matches:
        stop = match.num_tokens
        for part in match.segment.chain():
            past[match.path[part.start : stop]] = offsets[part.key] + np.arange(stop - part.start)
            stop = part.start
    # A prompt's last token may be cached and still be computed, as some sequence's last token. It
    # is not cached again.
    past[trie.last_nodes] = NOT_PAST
    nodes_to_cache = np.unique(np.concatenate([np.empty(0, np.int64), *new]))
    # A prompt that shares fewer than MIN_TOKENS tokens with every entry finds nothing in the cache,
    # but another sequence of the batch may have found those few tokens. They are computed all the
    # same.
    past[nodes_to_cache] = NOT_PAST
    return Reuse(
        trie=trie,
        past=past,
        states=states,
        prompts=prompts,
        nodes_to_cache=nodes_to_cache,
        num_cached=num_cached_of,
        prefixes=prefixes,
        segments=[part for match in matches for part in match.segment.chain()],
    )


def is_outdated(reuse: Reuse, cache: PromptCache) -> bool:
    """Return whether a plan made now would reuse at least MIN_TOKENS more tokens of a sequence."""
    if cache.prefixes is reuse.prefixes:
        return False
    keys = sorted(reuse.num_cached)
    for prefix in set(cache.prefixes).difference(reuse.prefixes):
        # The sequence that shares most with the prefix is a neighbour. If it gains nothing, no
        # other does: what it has in the cache covers what they share with the prefix.
        at = bisect_left(keys, prefix)
        for key in keys[max(at - 1, 0) : at + 1]:
            if common_prefix(key, prefix) - reuse.num_cached[key] >= MIN_TOKENS:
                return True
    return False


def cache_prompts(reuse: Reuse, present: States, cache: PromptCache) -> NDArray[np.bool_]:
    """Store the planned prompts.

    Args:
        present: the states of `reuse.nodes_to_cache`, as computed.

    Returns:
        Which of these nodes are in the cache now, bool[len(reuse.nodes_to_cache)].
    """
    is_stored = np.zeros(len(reuse.nodes_to_cache), np.bool_)
    for key, nodes in sorted(reuse.prompts.items()):
        _, start = cache.longest(key)
        rows = np.searchsorted(reuse.nodes_to_cache, nodes[start:])
        if start < len(nodes) and np.isin(nodes[start:], reuse.nodes_to_cache).all():
            is_only_prompt = len(rows) == len(reuse.nodes_to_cache)  # then no copy is needed
            states = present if is_only_prompt else [state[rows] for state in present]
            if cache.put(key, start, states) is not None:
                is_stored[rows] = True
    return is_stored


def _gather(matches: Sequence[_Match], no_states: States) -> tuple[dict[bytes, int], States]:
    """Join the matched segments' states, each segment once.

    Returns where each segment begins among the past entries, and the states of all entries.
    """
    stops: dict[bytes, tuple[Segment, int]] = {}
    for match in matches:
        stop = match.num_tokens
        for part in match.segment.chain():
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
        np.concatenate([nothing, *rows]) for nothing, *rows in zip(no_states, *used, strict=True)
    ]
    return offsets, states
