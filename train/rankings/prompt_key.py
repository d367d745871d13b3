"""Hashes of texts and prompts, for sets that may not fit into memory as texts."""

import hashlib

from kwise.types import Conversation


def prompt_key(prompt: Conversation) -> int:
    """Return a hash that ignores white space and case.

    A prompt that leaks from one split into another is seldom an exact copy.
    """
    return text_hash(
        *(
            " ".join(part.casefold().split())
            for message in prompt
            for part in (message.role, message.content)
        )
    )


def text_hash(*parts: str, num_bytes: int = 8) -> int:
    """Return a hash of texts.

    With 64 bits, two texts collide by chance in one of 40 million files with a million texts.
    """
    digest = hashlib.blake2b(digest_size=num_bytes)
    for part in parts:
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")
