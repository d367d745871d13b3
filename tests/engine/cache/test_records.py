"""A record gives back its reward under its own key and namespace, and is rubbish otherwise."""

import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from kwise.engine.cache.records import (
    RUBBISH,
    SERVER_ID_BYTES,
    Claim,
    RecordFormat,
    claim_record,
)
from kwise.engine.cache.reward_cache import StoredReward

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
COUNTS = st.integers(0, (1 << 32) - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
REWARDS = st.builds(
    StoredReward,
    raw=FINITE | st.lists(FINITE, min_size=2, max_size=5).map(tuple),
    tokens=COUNTS,
    dropped_tokens=COUNTS,
    control_tokens=COUNTS,
)
FORMAT = RecordFormat(b"artifact|fp32")


@given(REWARDS)
def test_a_record_gives_back_its_reward(reward: StoredReward) -> None:
    assert FORMAT.parse(KEY, FORMAT.reward_record(KEY, reward)) == reward


@given(REWARDS)
def test_a_record_of_another_key_or_precision_is_rubbish(reward: StoredReward) -> None:
    record = FORMAT.reward_record(KEY, reward)
    assert FORMAT.parse(OTHER_KEY, record) is RUBBISH
    assert RecordFormat(b"artifact|int8").parse(KEY, record) is RUBBISH


@given(REWARDS, st.data())
def test_a_record_with_one_wrong_bit_or_length_is_rubbish(
    reward: StoredReward, data: st.DataObject
) -> None:
    record = FORMAT.reward_record(KEY, reward)
    changed = bytearray(record)
    changed[data.draw(st.integers(0, len(record) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert FORMAT.parse(KEY, bytes(changed)) is RUBBISH
    assert FORMAT.parse(KEY, record[: data.draw(st.integers(0, len(record) - 1))]) is RUBBISH
    assert FORMAT.parse(KEY, record + b"\0") is RUBBISH


@given(st.binary() | st.integers() | st.text() | st.lists(st.binary()))
def test_what_is_not_a_record_is_rubbish(value: object) -> None:
    assert FORMAT.parse(KEY, value) is RUBBISH


def test_a_reward_that_is_not_finite_is_rubbish() -> None:
    for raw in (math.nan, math.inf, (1.0, math.nan), (math.inf, 0.0, 1.0)):
        reward = StoredReward(raw=raw, tokens=1, dropped_tokens=0, control_tokens=0)
        assert FORMAT.parse(KEY, FORMAT.reward_record(KEY, reward)) is RUBBISH


def test_a_reward_without_members_has_the_bytes_that_earlier_versions_wrote() -> None:
    reward = StoredReward(raw=0.5, tokens=7, dropped_tokens=2, control_tokens=1)
    body = b"R\x01" + struct.pack("<dIII", 0.5, 7, 2, 1)
    record = FORMAT.reward_record(KEY, reward)
    assert record[:-16] == body and len(record) == 38


@given(st.binary(min_size=SERVER_ID_BYTES, max_size=SERVER_ID_BYTES))
def test_a_claim_names_its_server(server_id: bytes) -> None:
    assert FORMAT.parse(KEY, claim_record(server_id)) == Claim(server_id)


def test_nothing_is_nothing() -> None:
    assert FORMAT.parse(KEY, None) is None
