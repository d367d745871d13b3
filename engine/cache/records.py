"""The bytes under which the shared cache stores a reward, or a server's claim to compute it.

A record of a reward has 38 bytes, a claim 18. The reward of a model with members has 8 bytes more
for each member after the first:

    reward   b"R", version, raw: float64, tokens, dropped_tokens, control_tokens: uint32, check
    members  b"M", version, raw: float64 for each member, and the rest as in a reward
    claim    b"C", version, 16 random bytes that name the server

The check is a BLAKE2b digest of the namespace, the key and all bytes before it. So a record that
was damaged, cut, moved to another key, or written for another artifact, precision or policy does
not parse, and neither does a reply of Redis that belongs to another command. Whatever does not
parse exactly is `RUBBISH`, which counts as a miss.
"""

import hashlib
import math
from dataclasses import dataclass
from enum import Enum
from struct import Struct, pack, unpack
from typing import Final, Literal

from kwise.engine.cache.reward_cache import StoredReward

# Raise this number if the format changes, or if the same key stands for another reward.
VERSION = 1
KEY_PREFIX = f"kwise:{VERSION}:".encode()
SERVER_ID_BYTES = 16

_KIND_BYTES, _RAW_BYTES, _CHECK_BYTES = 2, 8, 16
_COUNTS = Struct("<III")
_REWARD_KIND, _MEMBERS_KIND, _CLAIM_KIND = (kind + bytes([VERSION]) for kind in (b"R", b"M", b"C"))


@dataclass(frozen=True, slots=True)
class Claim:
    """The mark of a server that computes a reward."""

    server_id: bytes


class Rubbish(Enum):
    """The type of `RUBBISH`, a value that is not a record."""

    RUBBISH = "rubbish"


RUBBISH: Final = Rubbish.RUBBISH


class RecordFormat:
    """Reads and writes the records of one namespace."""

    def __init__(self, namespace: bytes) -> None:
        self._check = hashlib.blake2b(digest_size=_CHECK_BYTES, person=b"kwise record")
        self._check.update(len(namespace).to_bytes(8, "big") + namespace)

    def reward_record(self, key: bytes, reward: StoredReward) -> bytes:
        """Return the record of a reward."""
        kind, numbers = (
            (_MEMBERS_KIND, reward.raw)
            if isinstance(reward.raw, tuple)
            else (_REWARD_KIND, (reward.raw,))
        )
        body = (
            kind
            + pack(f"<{len(numbers)}d", *numbers)
            + _COUNTS.pack(reward.tokens, reward.dropped_tokens, reward.control_tokens)
        )
        return body + self._check_of(key, body)

    def parse(
        self, key: bytes, value: object
    ) -> StoredReward | Claim | Literal[Rubbish.RUBBISH] | None:
        """Return the record in `value`, a reply of Redis for `key`; None stays None."""
        if value is None:
            return None
        if not isinstance(value, bytes):
            return RUBBISH
        if len(value) == len(_CLAIM_KIND) + SERVER_ID_BYTES and value.startswith(_CLAIM_KIND):
            return Claim(value[len(_CLAIM_KIND) :])
        body, check = value[:-_CHECK_BYTES], value[-_CHECK_BYTES:]
        kind = body[:_KIND_BYTES]
        raw_bytes, counts = body[_KIND_BYTES : -_COUNTS.size], body[-_COUNTS.size :]
        num_raw, rest = divmod(len(raw_bytes), _RAW_BYTES)
        is_plain = kind == _REWARD_KIND and num_raw == 1
        if rest or not (is_plain or (kind == _MEMBERS_KIND and num_raw > 1)):
            return RUBBISH
        numbers = unpack(f"<{num_raw}d", raw_bytes)
        if check != self._check_of(key, body) or not all(map(math.isfinite, numbers)):
            return RUBBISH
        tokens, dropped_tokens, control_tokens = _COUNTS.unpack(counts)
        return StoredReward(
            raw=numbers[0] if is_plain else numbers,
            tokens=tokens,
            dropped_tokens=dropped_tokens,
            control_tokens=control_tokens,
        )

    def _check_of(self, key: bytes, body: bytes) -> bytes:
        check = self._check.copy()
        check.update(key)
        check.update(body)
        return check.digest()


def claim_record(server_id: bytes) -> bytes:
    """Return the record by which a server claims a reward."""
    return _CLAIM_KIND + server_id
