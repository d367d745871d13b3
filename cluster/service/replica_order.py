"""Rank the replicas for a request by its model and prompt."""

import hashlib
from collections.abc import Sequence

from kwise.rendezvous import ranked
from kwise.types import Group, TemplatedText


def prompt_key(model: str, group: Group) -> bytes:
    """Return the digest of the model and the prompt.

    If the responses have all of a templated text, the first one stands for the prompt.
    """
    prompt: object = group.prompt
    if isinstance(prompt, TemplatedText) and not prompt.text and group.responses:
        prompt = group.responses[0]
    return hashlib.blake2b(repr((model, prompt)).encode("utf-8", "surrogatepass")).digest()


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
