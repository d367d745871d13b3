"""The hash of rankings, which says whether two runs used the same data."""

import hashlib
import json
from collections.abc import Sequence

from kwise.train.rankings.schema import Ranking


def rankings_sha256(rankings: Sequence[Ranking]) -> str:
    """Return the hash of the rankings, in their order.

    A hash of the file would need to read it again: a pipe can be read once, and a file may have
    changed meanwhile.
    """
    digest = hashlib.sha256()
    for ranking in rankings:
        prompt = [[message.role, message.content] for message in ranking.prompt]
        content = [prompt, ranking.responses, ranking.ranks, ranking.scores]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()
