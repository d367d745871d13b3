"""A cache of rewards by key, bounded in bytes; the least recently used go first.

A reward is a pure function of its key: the artifact, how the engine treats conversations, the
prompt and the response. An entry therefore never goes stale. A key is a 256-bit BLAKE2b digest and
not the text, so that an entry has a fixed size whatever the length of the prompt. Two texts with
one digest cannot be found by chance or on purpose, unlike with the 64-bit hashes that other caches
compare. Used from one thread.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from kwise.engine.cache_usage import CacheUsage
from kwise.types import Group, Message, RawReward, Reward, TemplatedText, TokenIds

# The 32-byte key, the entry, and the table's share of both, measured with tracemalloc.
ENTRY_BYTES = 400
# What the reward of a model with members takes besides: std, min and a tuple, and each member.
_MEMBERS_BYTES, _MEMBER_BYTES = 96, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReward:
    """The fields of `Reward` that do not depend on the request or on normalisation.

    raw: of each member, if the model has members.
    """

    raw: RawReward
    tokens: int
    dropped_tokens: int
    control_tokens: int


def entry_bytes(num_members: int) -> int:
    """Return the memory that a cached reward takes."""
    return ENTRY_BYTES + (_MEMBERS_BYTES + _MEMBER_BYTES * num_members if num_members > 1 else 0)


class RewardCache:
    """Holds rewards of at most `max_bytes`; 0 turns the cache off.

    Args:
        num_members: the members of each reward; 1 if it has none.
    """

    def __init__(self, max_bytes: int, num_members: int = 1) -> None:
        self._entry_bytes = entry_bytes(num_members)
        self._max_entries = max_bytes // self._entry_bytes
        self._entries: OrderedDict[bytes, Reward] = OrderedDict()

    def get(self, key: bytes) -> Reward | None:
        """Return the reward of `key`, or None. It becomes the most recently used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: bytes, reward: Reward) -> None:
        """Store a reward, and evict the least recently used ones beyond the limit."""
        self._entries[key] = reward
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def usage(self) -> CacheUsage:
        """The rewards that are cached, and the memory that they take."""
        num_entries = len(self._entries)
        return CacheUsage(
            entries=num_entries,
            num_bytes=num_entries * self._entry_bytes,
            max_bytes=self._max_entries * self._entry_bytes,
        )


def reward_keys(namespace: bytes, group: Group) -> list[bytes]:
    """Return one key per response: the digest of (namespace, prompt, response).

    Args:
        namespace: names everything else that a reward depends on: artifact, runtime, length policy.
        group: the prompt and its responses.

    Each part is preceded by its kind and length, so that no two different groups give the same
    bytes.
    """
    prompt = hashlib.blake2b(digest_size=32)
    _update(prompt, b"namespace", namespace)
    if isinstance(group.prompt, TemplatedText):
        return _keys_of_templated(prompt, group.prompt.text, cast(tuple[str, ...], group.responses))
    _update(prompt, b"prompt", *_parts(group.prompt))
    _update(prompt, b"response")
    text = prompt.copy()
    _update(text, b"text")
    keys = []
    for response in group.responses:
        if isinstance(response, str):  # the common case, with as few calls as possible
            digest = text.copy()
            _update(digest, response.encode())
        else:
            digest = prompt.copy()
            _update(digest, *_parts(response))
        keys.append(digest.digest())
    return keys


def _keys_of_templated(
    digest: "hashlib.blake2b", prompt: str, responses: Sequence[str]
) -> list[bytes]:
    """Return the keys of whole texts: it does not matter where a text is cut into two."""
    _update(digest, b"templated")
    digest.update(prompt.encode())
    keys = []
    for response in responses:
        whole = digest.copy()
        whole.update(response.encode())
        keys.append(whole.digest())
    return keys


def _parts(content: Sequence[Message] | TokenIds) -> Iterator[bytes]:
    """Yield the parts that the digest covers.

    Token ids are one part, because a request may have hundreds of thousands of them and `array`
    takes 15 ns each.
    """
    if content and not isinstance(content[0], Message):
        try:
            ids = array("q", cast(TokenIds, content)).tobytes()
        except OverflowError:  # in a response that is too long to be scored, ids are not checked
            yield b"large ids"
            yield repr(content).encode()
        else:
            yield b"ids"
            yield ids
        return
    for message in cast(Sequence[Message], content):
        yield b"role"
        yield message.role.encode()
        yield b"content"
        yield message.content.encode()


def _update(digest: "hashlib.blake2b", *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
