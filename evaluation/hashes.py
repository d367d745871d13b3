"""Hashes that tell prompts and responses apart in a result, which has no texts.

A hash does not hide a short text from those who can guess it.
"""

import hashlib
import json
from collections.abc import Sequence

from kwise.types import Conversation


def prompt_sha256(prompt: Conversation) -> str:
    """Return the hash of the messages of a prompt."""
    return _sha256([[message.role, message.content] for message in prompt])


def responses_sha256(responses: Sequence[str]) -> str:
    """Return the hash of the responses, in order."""
    return _sha256(list(responses))


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
