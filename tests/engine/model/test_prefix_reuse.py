"""The states that a batch reuses, and those it caches, are what a full pass would compute."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kwise.engine.model.packing import NOT_PAST, pack
from kwise.engine.model.prefix_cache import MIN_TOKENS, PromptCache
from kwise.engine.model.prefix_reuse import Reuse, cache_prompts, is_outdated, plan_reuse
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import sort_key
from tests.token_states import BYTES_PER_TOKEN, NO_STATES, states_of

TOKEN_BYTES = BYTES_PER_TOKEN + 4
LARGE = 1 << 20
Tokens = tuple[int, ...]


def _sequence(tokens: Tokens, prompt_tokens: int = 0) -> EncodedSequence:
    token_ids = np.array(tokens, np.int64)
    return EncodedSequence(
        token_ids=token_ids, type_ids=None, num_tokens=len(tokens), prompt_tokens=prompt_tokens
    )


@st.composite
def _runs(draw: st.DrawFn) -> Tokens:
    runs = draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 3, 15, 20])), max_size=2))
    return tuple(token for token, times in runs for _ in range(times))


@st.composite
def _batches(draw: st.DrawFn) -> list[list[EncodedSequence]]:
    """Batches whose prompts extend one another, or a part, before and after they were cached."""
    prompts: list[Tokens] = [()]
    batches = []
    for _ in range(draw(st.integers(1, 6))):
        batch = []
        for _ in range(draw(st.integers(1, 4))):
            before = draw(st.sampled_from(prompts))
            length = draw(st.sampled_from([len(before), draw(st.integers(0, len(before)))]))
            prompts.append(before[:length] + draw(_runs()))
            tokens = prompts[-1] + draw(_runs()) or (0,)
            # prompt_tokens may be unusual; it exceeds the tokens if trailing padding was cut off.
            told = st.sampled_from(
                [len(prompts[-1]), len(prompts[-1]), 0, len(tokens), len(tokens) + 3]
            )
            batch.append(_sequence(tokens, draw(told)))
        batches.append(batch)
    return batches


def _prefixes(reuse: Reuse) -> list[np.ndarray]:
    """Return the prefix that each node stands for."""
    return [reuse.trie.token_ids[reuse.trie.path(node)] for node in range(reuse.trie.num_nodes)]


def _run(
    batch: Sequence[EncodedSequence], cache: PromptCache, *, separate_last_tokens: bool = False
) -> Reuse:
    """Plan, run and cache a batch as a session does, with a graph that knows every prefix's states.

    Asserts what the session relies on. With `separate_last_tokens` last rows have other states.
    """
    reuse = plan_reuse(batch, cache, NO_STATES, separate_last_tokens=separate_last_tokens)
    _finish(reuse, cache, separate_last_tokens=separate_last_tokens)
    return reuse


def _finish(reuse: Reuse, cache: PromptCache, *, separate_last_tokens: bool = False) -> None:
    """Run a planned batch and cache its prompts."""
    expected, past = states_of(_prefixes(reuse)), reuse.past
    assert (past[reuse.trie.last_nodes] == NOT_PAST).all()
    known = np.flatnonzero(past != NOT_PAST)
    for state, right in zip(reuse.states(NO_STATES), expected, strict=True):
        assert state.dtype == np.float32
        assert len(state) == reuse.num_past
        np.testing.assert_array_equal(state[past[known]], right[known])
    packed = pack(reuse.trie, 3, past, reuse.num_past)
    rows = packed.entries[reuse.nodes_to_cache]
    assert (rows < packed.num_rows).all()  # the graph returns the states of rows only
    if separate_last_tokens:
        for right in expected:
            right[reuse.trie.last_nodes] = np.nan
    computed = [right[past == NOT_PAST] for right in expected]
    cache_prompts(reuse, [state[rows] for state in computed], cache)


def _assert_sound(cache: PromptCache) -> None:
    """Assert that everything in the cache is right and that it fits."""
    assert cache.num_bytes <= cache.max_bytes
    assert cache.num_bytes == sum(segment.num_bytes for segment in cache._segments.values())
    for segment in cache._segments.values():
        tokens = np.frombuffer(segment.key, ">u4").astype(np.int64)
        own = states_of([tokens[: n + 1] for n in range(segment.start, len(tokens))])
        for state, right in zip(segment.states, own, strict=True):
            np.testing.assert_array_equal(state, right)


@settings(max_examples=200, deadline=None)
@given(_batches(), st.sampled_from([0, 16, 30, 50, 80, 120, LARGE]), st.booleans())
def test_past_states_are_those_of_their_nodes_and_cached_ones_are_computed(
    batches: list[list[EncodedSequence]], max_tokens: int, separate_last_tokens: bool
) -> None:
    cache = PromptCache(max_tokens * TOKEN_BYTES)
    for batch in batches:
        _run(batch, cache, separate_last_tokens=separate_last_tokens)
        _assert_sound(cache)


@settings(max_examples=60, deadline=None)
@given(_batches(), st.sampled_from([0, 16, 30, 50, 80, 120, LARGE]), st.booleans())
def test_plans_that_are_made_before_the_batch_before_them_ends_stay_right(
    batches: list[list[EncodedSequence]], max_tokens: int, separate_last_tokens: bool
) -> None:
    """Whatever that batch adds to the cache, or drops from it."""
    cache = PromptCache(max_tokens * TOKEN_BYTES)
    running: Reuse | None = None
    for batch in batches:
        planned = plan_reuse(batch, cache, NO_STATES, separate_last_tokens=separate_last_tokens)
        if running is not None:
            _finish(running, cache, separate_last_tokens=separate_last_tokens)
            _assert_sound(cache)
        running = planned
    assert running is not None
    _finish(running, cache, separate_last_tokens=separate_last_tokens)
    _assert_sound(cache)


@settings(max_examples=60, deadline=None)
@given(_batches(), st.sampled_from([0, 16, 30, 50, 80, 120, LARGE]))
def test_a_plan_is_outdated_if_the_batch_before_it_cached_what_it_would_compute(
    batches: list[list[EncodedSequence]], max_tokens: int
) -> None:
    cache = PromptCache(max_tokens * TOKEN_BYTES)
    for first, second in pairwise([*batches, batches[0]]):
        planned = plan_reuse(second, cache, NO_STATES)
        assert not is_outdated(planned, cache)
        _run(first, cache)
        outdated = is_outdated(planned, cache)
        again = plan_reuse(second, cache, NO_STATES)
        gains = [again.num_cached[key] - num for key, num in planned.num_cached.items()]
        assert outdated == (max(gains) >= MIN_TOKENS)


@settings(deadline=None)
@given(_batches())
def test_with_a_large_cache_every_prompt_is_computed_once(
    batches: list[list[EncodedSequence]],
) -> None:
    cache = PromptCache(LARGE)
    for batch in batches:
        _run(batch, cache)
        for sequence in batch:
            prompt = sequence.token_ids[: sequence.prompt_tokens]
            if len(prompt) >= MIN_TOKENS:
                assert cache.longest(sort_key(prompt))[1] == len(prompt)
        again = _run(batch, cache)
        assert again.nodes_to_cache.size == 0
        for sequence, last in zip(batch, again.trie.last_nodes, strict=True):
            path = again.trie.path(int(last))
            told = path[: sequence.prompt_tokens]
            if len(told) >= MIN_TOKENS:
                assert set(told[again.past[told] == NOT_PAST]) <= set(again.trie.last_nodes)


@given(_batches())
def test_no_cache_computes_everything(batches: list[list[EncodedSequence]]) -> None:
    cache = PromptCache(0)
    for batch in batches:
        reuse = _run(batch, cache)
        assert (reuse.past == NOT_PAST).all()
        assert reuse.num_past == reuse.nodes_to_cache.size == 0
        assert not reuse.prompts


PROMPT = tuple(range(100, 140))


def test_another_prompts_first_tokens_are_cached_though_they_are_past_for_the_first() -> None:
    """They are too few for the second prompt to find them, but the batch's other sequence does.

    So they were not computed, the pass was asked for rows that it did not have, and the whole batch
    failed.
    """
    cache = PromptCache(LARGE)
    _run([_sequence((*PROMPT, 1), len(PROMPT))], cache)
    second = PROMPT[: MIN_TOKENS - 1] + tuple(range(30))
    _run([_sequence((*PROMPT, 2), len(PROMPT)), _sequence((*second, 1), len(second))], cache)
    _assert_sound(cache)
    assert _num_known(cache, (*PROMPT, 3)) == len(PROMPT)
    assert _num_known(cache, (*second, 3)) == len(second)


def _num_cached(cache: PromptCache) -> int:
    return sum(len(segment.states[0]) for segment in cache._segments.values())


def _num_known(cache: PromptCache, tokens: Tokens) -> int:
    return cache.longest(sort_key(np.array(tokens)))[1]


def test_equal_sequences_and_a_prompt_that_is_all_of_one_are_computed_at_their_last_token() -> None:
    cache = PromptCache(LARGE)
    whole = _sequence(PROMPT, len(PROMPT))
    assert (_run([whole, whole], cache).past == NOT_PAST).all()
    again = _run([whole, whole, _sequence((*PROMPT, 1), len(PROMPT))], cache)
    assert np.flatnonzero(again.past == NOT_PAST).tolist() == [39, 40]
    assert again.nodes_to_cache.size == 0


def test_a_system_prompt_is_stored_once_for_the_prompts_that_share_it() -> None:
    cache = PromptCache(LARGE)
    first, second = (*PROMPT, *range(20)), (*PROMPT, *range(50, 90))
    _run([_sequence((*first, 1), len(first))], cache)
    reuse = _run([_sequence((*second, 1), len(second))], cache)
    assert (reuse.past != NOT_PAST).sum() == reuse.num_past == len(PROMPT)
    assert len(reuse.nodes_to_cache) == 40 + 1
    assert _num_cached(cache) == len(PROMPT) + 20 + 1 + 40 + 1


def test_prompts_of_one_batch_that_share_their_beginning_store_it_once() -> None:
    cache = PromptCache(LARGE)
    first, second = (*PROMPT, *range(20)), (*PROMPT, *range(50, 90))
    _run([_sequence((*first, 1), len(first)), _sequence((*second, 1), len(second))], cache)
    assert _num_cached(cache) == len(PROMPT) + 20 + 1 + 40 + 1


def test_the_tokens_that_open_a_response_are_cached_with_the_prompt() -> None:
    """Each single response to a cached prompt computed "assistant" and a line feed again."""
    cache, opening = PromptCache(LARGE), (7, 8, 9)
    group = [_sequence((*PROMPT, *opening, 50 + n, 60 + n, 70), len(PROMPT)) for n in range(9)]
    reuse = _run(group, cache)
    assert len(reuse.prompts) == 1, "the prompt is cached with the opening of one response"
    assert _num_cached(cache) == len(PROMPT) + len(opening) + 1
    again = _run([_sequence((*PROMPT, *opening, 1, 2), len(PROMPT))], cache)
    assert (again.past != NOT_PAST).sum() == len(PROMPT) + len(opening)
    assert not again.prompts
