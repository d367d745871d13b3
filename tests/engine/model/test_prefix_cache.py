"""The prompt cache finds the longest cached prefix and drops the least recently used first."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kwise.engine.model.prefix_cache import MIN_TOKENS, PromptCache, Segment, States
from kwise.engine.trie import Int64, sort_key
from tests.token_states import BYTES_PER_TOKEN, states_along

TOKEN_BYTES = BYTES_PER_TOKEN + 4  # per token of a segment that has all tokens of its prefix
Tokens = tuple[int, ...]


def _array(tokens: Tokens) -> Int64:
    return np.array(tokens, np.int64)


def _key(tokens: Tokens) -> bytes:
    return sort_key(_array(tokens))


def _shared(a: Tokens, b: Tokens) -> int:
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _spelled(segment: Segment, stop: int) -> States:
    """Return the states of the first `stop` tokens of the segment's prefix."""
    parts: list[States] = []
    for part in segment.chain():
        parts.insert(0, [state[: stop - part.start] for state in part.states])
        stop = part.start
    assert stop == 0
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


def _put(cache: PromptCache, tokens: Tokens, start: int) -> None:
    cache.put(_key(tokens), start, [state[start:] for state in states_along(_array(tokens))])


class PromptCacheMachine(RuleBasedStateMachine):
    """The model: cached prefixes, least recently used first, with the prefixes of their chains."""

    @initialize(
        max_bytes=st.sampled_from([0, 15, 16, 40, 60, 90, 150, 1000]).map(
            lambda tokens: tokens * TOKEN_BYTES
        )
    )
    def start(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.cache = PromptCache(max_bytes)
        self.sent: list[Tokens] = [()]
        self.chains: dict[Tokens, list[Tokens]] = {}
        self.sizes: dict[Tokens, int] = {}

    def draw_tokens(self, data: st.DataObject) -> Tokens:
        """Draw tokens that extend any part of earlier ones."""
        before = data.draw(st.sampled_from(self.sent))
        start = (
            before[: data.draw(st.integers(0, len(before)))] if data.draw(st.booleans()) else before
        )
        run = data.draw(
            st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 3, 14, 20])), max_size=2)
        )
        tokens = start + tuple(token for token, times in run for _ in range(times))
        self.sent.append(tokens)
        return tokens

    def use(self, segment: Segment | None) -> None:
        if segment is not None:
            found = next(tokens for tokens in self.chains if _key(tokens) == segment.key)
            for tokens in self.chains[found]:
                self.chains[tokens] = self.chains.pop(tokens)

    @rule(data=st.data())
    def longest(self, data: st.DataObject) -> None:
        tokens = self.draw_tokens(data)
        segment, shared = self.cache.longest(_key(tokens))
        most = max((_shared(tokens, cached) for cached in self.chains), default=0)
        assert shared == (most if most >= MIN_TOKENS else 0)
        assert (segment is None) == (shared == 0)
        if segment is not None:
            assert segment.start < shared <= len(segment.key) // 4
            for state, expected in zip(
                _spelled(segment, shared), states_along(_array(tokens[:shared])), strict=True
            ):
                np.testing.assert_array_equal(state, expected)
        self.use(segment)

    @rule(data=st.data(), stale=st.sampled_from([0, 0, 0, -1, 1]))
    def put(self, data: st.DataObject, stale: int) -> None:
        tokens = self.draw_tokens(data)
        parent, shared = self.cache.longest(_key(tokens))
        start = shared + stale
        if not 0 <= start < len(tokens):
            start = shared
        _put(self.cache, tokens, start)
        self.use(parent)
        size = 4 * len(tokens) + BYTES_PER_TOKEN * (len(tokens) - start)
        if start != shared or tokens in self.chains or size > self.max_bytes:
            return
        parents = (
            []
            if parent is None
            else self.chains[next(cached for cached in self.chains if _key(cached) == parent.key)]
        )
        self.sizes[tokens] = size
        self.chains[tokens] = [tokens, *parents]
        for used in parents:
            self.chains[used] = self.chains.pop(used)
        while sum(self.sizes.values()) > self.max_bytes:
            oldest = next(iter(self.chains))
            del self.chains[oldest], self.sizes[oldest]

    @invariant()
    def kept_prefixes_agree_and_are_ascending(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.prefixes == tuple(sorted(map(_key, self.chains)))
            assert len(self.cache) == len(self.chains)

    @invariant()
    def bytes_are_the_sum_and_within_the_bound(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.num_bytes == sum(self.sizes.values()) <= self.max_bytes

    @invariant()
    def no_segment_is_dropped_before_those_that_go_on_from_it(self) -> None:
        if hasattr(self, "cache"):
            assert all(used in self.chains for chain in self.chains.values() for used in chain)


PromptCacheMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestPromptCacheMachine = PromptCacheMachine.TestCase

PROMPTS = st.lists(
    st.lists(st.integers(0, 2), min_size=MIN_TOKENS, max_size=40).map(tuple), min_size=1, max_size=6
)


@given(PROMPTS, st.integers(0, MIN_TOKENS * TOKEN_BYTES - 1))
def test_too_few_bytes_for_any_prompt_cache_none(prompts: list[Tokens], max_bytes: int) -> None:
    cache = PromptCache(max_bytes)
    for tokens in prompts:
        _put(cache, tokens, 0)
        assert cache.longest(_key(tokens)) == (None, 0)
        assert not cache.has_room_for(len(tokens), BYTES_PER_TOKEN)
    assert len(cache) == cache.num_bytes == 0
    assert cache.prefixes == ()


@given(st.integers(1, 60), st.integers(0, 60))
def test_there_is_room_for_what_would_be_cached(num_tokens: int, max_tokens: int) -> None:
    cache = PromptCache(max_tokens * TOKEN_BYTES)
    _put(cache, (1,) * num_tokens, 0)
    is_cached = (num_tokens <= max_tokens) and num_tokens >= MIN_TOKENS
    assert cache.has_room_for(num_tokens, BYTES_PER_TOKEN) == is_cached
    assert cache.longest(_key((1,) * num_tokens))[1] == (num_tokens if is_cached else 0)


def test_a_stale_start_caches_nothing() -> None:
    """Between planning and caching, the tokens before may be dropped, or more of them cached."""
    cache = PromptCache(1 << 20)
    prompt = tuple(range(40))
    for start in (1, 16, 39):
        _put(cache, prompt, start)
        assert len(cache) == 0
    _put(cache, prompt[:20], 0)
    for start in (0, 19, 21):
        _put(cache, prompt, start)
        assert cache.prefixes == (_key(prompt[:20]),)
    _put(cache, prompt, 20)
    assert len(cache) == 2


def test_a_prompt_that_extends_half_of_another_holds_only_its_own_tokens() -> None:
    cache = PromptCache(1 << 20)
    first, second = (1,) * 40, (1,) * 20 + (2,) * 10
    _put(cache, first, 0)
    before = cache.num_bytes
    _put(cache, second, 20)
    assert cache.num_bytes - before == 4 * len(second) + 10 * BYTES_PER_TOKEN
    segment, shared = cache.longest(_key((*second, 3)))
    assert shared == 30
    assert segment is not None and segment.start == 20
    for state, expected in zip(_spelled(segment, 30), states_along(_array(second)), strict=True):
        np.testing.assert_array_equal(state, expected)


def test_an_ancestor_outlives_the_prompts_that_extend_it() -> None:
    """It is used as often as any of them, so it is dropped after all of them."""
    system = (9,) * 30
    cache = PromptCache(100 * TOKEN_BYTES)
    _put(cache, system, 0)
    for n in range(50):
        tokens = system + (n,) * 20
        _put(cache, tokens, 30)
        assert cache.longest(_key(tokens))[1] == 50
        assert _key(system) in cache.prefixes
    assert len(cache) < 10
