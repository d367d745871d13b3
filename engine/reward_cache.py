"""Rewards by key, least recently used first out, bounded in bytes.

A reward is a pure function of its key (what the artifact is, how the engine treats conversations, prompt, response), so
an entry never goes stale. Keys are 256-bit BLAKE2b digests instead of the texts: an entry's size is then fixed whatever
the prompt's, and two texts with one digest are not to be found by chance or by intent, unlike with the 64-bit hashes that
other caches compare. Used from one thread.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from kwise.types import Group, Message, TokenIds

# A 32-byte key, the entry and the table's share of both, measured with tracemalloc.
ENTRY_BYTES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReward:
    """What is known of one (prompt, response): the fields of `Reward` that do not depend on the call."""

    raw: float
    tokens: int
    dropped_tokens: int
    control_tokens: int


class RewardCache:
    """At most `max_bytes` of rewards; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_entries = max_bytes // ENTRY_BYTES
        self._entries: OrderedDict[bytes, StoredReward] = OrderedDict()

    def get(self, key: bytes) -> StoredReward | None:
        """The reward of `key`, which becomes the most recently used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, reward: StoredReward) -> None:
        self._entries[key] = reward
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        return len(self._entries) * ENTRY_BYTES


def reward_keys(namespace: bytes, group: Group) -> list[bytes]:
    """One key per response: digest of (namespace, prompt, response).

    `namespace` names all else that a reward depends on: artifact, runtime, length policy. Every part is preceded by its
    kind and length, so that no two different groups write the same bytes.
    """
    prompt = hashlib.blake2b(digest_size=32)
    _update(prompt, b"namespace", namespace)
    _update(prompt, b"prompt", *_parts(group.prompt))
    keys = []
    for response in group.responses:
        digest = prompt.copy()
        _update(
            digest, b"response", *_parts((response,) if isinstance(response, str) else response)
        )
        keys.append(digest.digest())
    return keys


def _parts(content: Sequence[Message | str] | TokenIds) -> Iterator[bytes]:
    """Token ids are one part, written at C's speed: a request may have hundreds of thousands of them."""
    if content and not isinstance(content[0], Message | str):
        yield b"ids"
        yield repr(content).encode()
        return
    for item in cast(Sequence[Message | str], content):
        if isinstance(item, Message):
            yield b"role"
            yield item.role.encode()
            yield b"content"
            yield item.content.encode()
        else:
            yield b"text"
            yield item.encode()


def _update(digest: "hashlib.blake2b", *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
