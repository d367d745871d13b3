"""Decide what a batch takes from the prompt cache and what it adds to it.

Before a pass, `plan_reuse` finds which of the batch's prefixes have cached keys and values, and
which prompts are worth caching. After the pass, `cache_prompts` stores those. The tokens whose
hidden states the head reads (pooling.py) are computed even if their keys and values are cached.

A batch may be planned while the batch before it runs. Whatever that one then adds to the cache or
drops from it, the plan stays right, because it holds the segments that it reuses and nothing
changes them. But it may compute a prompt that is cached by now; `is_outdated` tells.

Dimensions: N nodes of the batch's trie, P past entries, W the width of a layer's keys or values.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kwise.engine.model.packing import NOT_PAST
from kwise.engine.model.pooling import ReadTokens, read_tokens
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
    parts: the segments that the past entries are from, in order, each with its number of entries.
    prompts: the nodes of each prefix to cache, by its sort key.
    nodes_to_cache: int64, ascending: those of them that the cache does not have.
    read: the tokens whose hidden states the head reads.
    num_cached: the number of tokens that each sequence, by its sort key, has in the cache.
    prefixes: the prefixes that the cache had.
    """

    trie: Trie
    past: Int64
    parts: Sequence[tuple[Segment, int]]
    prompts: dict[bytes, Int64]
    nodes_to_cache: Int64
    read: ReadTokens
    num_cached: dict[bytes, int]
    prefixes: tuple[bytes, ...]

    def without_caching(self) -> "Reuse":
        """Return the plan, with nothing to cache after the pass."""
        return replace(self, prompts={}, nodes_to_cache=self.nodes_to_cache[:0])

    @property
    def num_past(self) -> int:
        return sum(num_entries for _, num_entries in self.parts)

    def states(self, no_states: States) -> States:
        """Return what the cache holds of the P past entries.

        It is a copy, unless there is one part. In host memory it may be as large as the whole
        cache, so a batch that waits for its pass does not have it yet.

        Args:
            no_states: the states of 0 tokens.
        """
        used = [[state[:num] for state in segment.states] for segment, num in self.parts]
        if len(used) == 1:
            return used[0]
        pairs = zip(no_states, *used, strict=True)
        return [np.concatenate([nothing, *rows]) for nothing, *rows in pairs]


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
    response_header: Sequence[int] | None = None,
    separate_last_tokens: bool = False,
) -> Reuse:
    """Build the batch's trie and look its prefixes up in the cache.

    Args:
        no_states: the states of 0 tokens.
        response_header: see `kwise.engine.model.pooling.first_read`.
        separate_last_tokens: see `build_trie`.
    """
    sequences = [sequence.token_ids for sequence in batch]
    trie = build_trie(sequences, separate_last_tokens=separate_last_tokens)
    read = read_tokens(trie, sequences, response_header)
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
    parts = _join(matches)
    starts = np.cumsum([0, *(num_entries for _, num_entries in parts)]).tolist()
    offsets = dict(zip((segment.key for segment, _ in parts), starts, strict=False))
    for match in matches:
        stop = match.num_tokens
        for part in match.segment.chain():
            past[match.path[part.start : stop]] = offsets[part.key] + np.arange(stop - part.start)
            stop = part.start
    # A prompt's token may be cached and still be computed, because it is the last one of some
    # sequence, or of its response. It is not cached again.
    past[read.nodes] = NOT_PAST
    nodes_to_cache = np.unique(np.concatenate([np.empty(0, np.int64), *new]))
    # A prompt that shares fewer than MIN_TOKENS tokens with every entry finds nothing in the cache,
    # but another sequence of the batch may have found those few tokens. They are computed all the
    # same.
    past[nodes_to_cache] = NOT_PAST
    return Reuse(
        trie=trie,
        past=past,
        parts=parts,
        prompts=prompts,
        nodes_to_cache=nodes_to_cache,
        read=read,
        num_cached=num_cached_of,
        prefixes=prefixes,
    )


def is_outdated(reuse: Reuse, cache: PromptCache) -> bool:
    """Return whether the batch should be planned anew.

    That is so if a plan made now would reuse at least MIN_TOKENS more tokens of a sequence, or if
    the pass that should compute states of this plan has failed.
    """
    if any(cache.is_revoked(segment) for segment, _ in reuse.parts):
        return True
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


def cache_prompts(reuse: Reuse, present: States, cache: PromptCache) -> list[Segment]:
    """Store the planned prompts.

    Args:
        present: the states of `reuse.nodes_to_cache`, as computed.

    Returns:
        The new segments.
    """
    segments: list[Segment] = []
    for key, nodes in sorted(reuse.prompts.items()):
        _, start = cache.longest(key)
        rows = np.searchsorted(reuse.nodes_to_cache, nodes[start:])
        if start < len(nodes) and np.isin(nodes[start:], reuse.nodes_to_cache).all():
            is_only_prompt = len(rows) == len(reuse.nodes_to_cache)  # then no copy is needed
            states = present if is_only_prompt else [state[rows] for state in present]
            segment = cache.put(key, start, states)
            if segment is not None:
                segments.append(segment)
    return segments


def _join(matches: Sequence[_Match]) -> list[tuple[Segment, int]]:
    """Return each segment that a match uses, once, with the number of its tokens that are used."""
    parts: dict[bytes, tuple[Segment, int]] = {}
    for match in matches:
        stop = match.num_tokens
        for part in match.segment.chain():
            parts[part.key] = part, max(stop - part.start, parts.get(part.key, (part, 0))[1])
            stop = part.start
    return list(parts.values())
