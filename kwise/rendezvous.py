"""Choose a server for a prompt by rendezvous hashing (highest random weight).

Each server has a weight for each prompt, and the highest weight wins. All who know the same
servers compute the same ranking, without talking to each other. When a server goes, only its
prompts move, and they spread over the others; when one comes, it takes an equal share from each.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

import hashlib
from collections.abc import Iterable


def ranked(key: bytes, names: Iterable[str]) -> list[str]:
    """Return the names by their weight for `key`, highest first.

    Args:
        key: a digest of the prompt, of at most 64 bytes.
        names: the servers.
    """
    weights = {
        name: hashlib.blake2b(name.encode(), key=key, digest_size=16).digest() for name in names
    }
    return sorted(weights, key=weights.__getitem__, reverse=True)
