"""The cache is an LRU with a limit in bytes. Two different (prompt, response) share no key."""

import sys

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kwise.engine.artifact.members import ensemble_reward
from kwise.engine.cache.reward_cache import (
    ENTRY_BYTES,
    RewardCache,
    entry_bytes,
    reward_keys,
)
from kwise.types import Group, Message, Priority, Reward

KEYS = st.sampled_from([bytes([n]) * 32 for n in range(8)])
REWARDS = st.builds(
    Reward,
    value=st.floats(-10, 10),
    raw=st.floats(-10, 10),
    tokens=st.integers(1, 9),
    dropped_tokens=st.integers(0, 9),
    control_tokens=st.integers(0, 9),
)


class CacheIsLeastRecentlyUsed(RuleBasedStateMachine):
    """Beside a list of (key, reward), the least recently used first."""

    @initialize(max_bytes=st.integers(0, 5 * ENTRY_BYTES))
    def start(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.cache = RewardCache(max_bytes)
        self.naive: list[tuple[bytes, Reward]] = []

    @rule(key=KEYS, reward=REWARDS)
    def put(self, key: bytes, reward: Reward) -> None:
        self.cache.put(key, reward)
        self.naive = [entry for entry in self.naive if entry[0] != key] + [(key, reward)]
        while len(self.naive) * ENTRY_BYTES > self.max_bytes:
            del self.naive[0]

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        found = [entry for entry in self.naive if entry[0] == key]
        assert self.cache.get(key) == (found[0][1] if found else None)
        self.naive = [entry for entry in self.naive if entry[0] != key] + found

    @invariant()
    def sizes_agree_and_stay_within_the_bound(self) -> None:
        assert len(self.cache) == len(self.naive)
        assert self.cache.usage.num_bytes == len(self.naive) * ENTRY_BYTES <= self.max_bytes


TestCacheIsLeastRecentlyUsed = CacheIsLeastRecentlyUsed.TestCase


@given(st.lists(st.tuples(KEYS, REWARDS)), st.integers(0, ENTRY_BYTES - 1))
def test_no_bytes_keep_no_rewards(entries: list[tuple[bytes, Reward]], max_bytes: int) -> None:
    cache = RewardCache(max_bytes)
    for key, reward in entries:
        cache.put(key, reward)
        assert cache.get(key) is None
    assert len(cache) == cache.usage.num_bytes == 0


# Words that the keys' own encoding uses, so that boundaries are what tells groups apart.
WORDS = st.lists(
    st.sampled_from(["role", "content", "text", "response", "prompt", "id1", "1", "é", "\0"]),
    max_size=3,
)
TEXTS = WORDS.map("".join)
# The largest one fits into no machine word.
ID = st.integers(0, 12) | st.sampled_from([-1, 1 << 8, 1 << 32, 1 << 64])
IDS = st.lists(ID, max_size=3).map(tuple)
CONVERSATIONS = st.lists(st.builds(Message, role=TEXTS, content=TEXTS), max_size=3).map(tuple)
GROUPS = st.builds(
    Group, prompt=CONVERSATIONS, responses=st.lists(TEXTS, min_size=1, max_size=3).map(tuple)
) | st.builds(
    Group, prompt=IDS.filter(bool), responses=st.lists(IDS, min_size=1, max_size=3).map(tuple)
)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"", b"a", b"prompt", b"aprompt"]), GROUPS),
        min_size=1,
        max_size=8,
    )
)
def test_keys_are_equal_exactly_if_all_that_decides_the_reward_is(
    cases: list[tuple[bytes, Group]],
) -> None:
    contents: dict[bytes, object] = {}
    keys: dict[object, bytes] = {}
    for namespace, group in cases:
        group_keys = reward_keys(namespace, group)
        assert len(group_keys) == len(group.responses)
        for key, response in zip(group_keys, group.responses, strict=True):
            content = (namespace, group.prompt, response)
            assert len(key) == 32
            assert contents.setdefault(key, content) == content
            assert keys.setdefault(content, key) == key


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_moving_text_across_a_boundary_changes_the_key(a: str, b: str, c: str, d: str) -> None:
    def key(prompt: tuple[Message, ...], response: str) -> bytes:
        return reward_keys(b"", Group(prompt=prompt, responses=(response,)))[0]

    variants = {
        ((Message(role=a, content=b + c),), d),
        ((Message(role=a + b, content=c),), d),
        ((Message(role=a, content=b),), c + d),
        ((Message(role=a, content=b), Message(role=c, content=d)), ""),
        ((Message(role=a, content=b + c + d),), ""),
    }
    assert len({key(*variant) for variant in variants}) == len(variants)


def test_token_ids_and_texts_that_look_like_them_have_different_keys() -> None:
    ids = reward_keys(b"", Group(prompt=(1,), responses=((12,), (1, 2), ())))
    texts = reward_keys(
        b"", Group(prompt=(Message(role="1", content="1"),), responses=("12", "id12", ""))
    )
    assert len({*ids, *texts}) == 6


@given(GROUPS)
def test_priority_and_company_change_no_key(group: Group) -> None:
    bulk = Group(prompt=group.prompt, responses=group.responses[::-1], priority=Priority.BULK)
    assert reward_keys(b"n", bulk)[::-1] == reward_keys(b"n", group)


def test_rewards_of_members_take_more_of_the_limit() -> None:
    """An entry of a model with members has three numbers and a tuple more."""
    values = [number / 7 for number in range(64)]
    reward = ensemble_reward(values=values, raw=values, tokens=1)
    cache = RewardCache(10 * entry_bytes(64) + 1, 64)
    for number in range(20):
        cache.put(bytes([number]), reward)
    assert len(cache) == 10
    assert cache.usage.num_bytes == cache.usage.max_bytes == 10 * entry_bytes(64)
    assert entry_bytes(1) == ENTRY_BYTES
    in_place = sys.getsizeof(reward.members) + 66 * sys.getsizeof(0.5)
    assert entry_bytes(64) - ENTRY_BYTES >= in_place
