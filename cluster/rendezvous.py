"""Rank replicas for a prompt by rendezvous hashing.

The highest hash of (prompt, replica) wins. Everybody who knows the replicas computes the same
ranking. When a replica goes, only its prompts move, and they spread over the others; when one
comes, it takes an equal share from each.
"""

import hashlib
from collections.abc import Sequence

from kwise.types import Group, TemplatedText


def prompt_key(model: str, group: Group) -> bytes:
    """Return the digest of the model and the prompt.

    If the responses have all of a templated text, the first one stands for the prompt.
    """
    prompt: object = group.prompt
    if isinstance(prompt, TemplatedText) and not prompt.text and group.responses:
        prompt = group.responses[0]
    return hashlib.blake2b(repr((model, prompt)).encode("utf-8", "surrogatepass")).digest()


def ranked(key: bytes, names: Sequence[str]) -> list[str]:
    """Return the names by their hash with `key`, highest first."""
    weights = {
        name: hashlib.blake2b(name.encode(), key=key, digest_size=16).digest() for name in names
    }
    return sorted(names, key=lambda name: weights[name], reverse=True)


def replicas_for(
    model: str, group: Group, names: Sequence[str], replicas_per_model: int
) -> list[str]:
    """Return the replicas for a request, best first.

    Args:
        model: the name of the model.
        group: the group to score.
        names: the live replicas.
        replicas_per_model: the replicas that come first for a model; 0 for all. The others follow,
            so that a request finds one even if all of those are full.
    """
    key = prompt_key(model, group)
    if not replicas_per_model:
        return ranked(key, names)
    by_model = ranked(hashlib.blake2b(model.encode()).digest(), names)
    return ranked(key, by_model[:replicas_per_model]) + by_model[replicas_per_model:]
