"""A ranking as a line of kwise's schema (`kwise.train.rankings`), without what cannot be learned from."""

import json
from collections import Counter
from typing import Any

from kwise.train.data.formats.fields import is_unicode
from kwise.train.data.formats.items import Ranked


def usable(
    ranked: Ranked, left: Counter[tuple[str, str]], *, keep_tied: bool = False
) -> Ranked | None:
    """The ranking without what `kwise train` would refuse in it, which is counted in `left` by (what, reason); None where nothing
    remains."""
    ranks_of: dict[str, set[float]] = {}
    for response, place in zip(ranked.responses, ranked.order(), strict=True):
        ranks_of.setdefault(response, set()).add(place)
    keep = [
        index for index, response in enumerate(ranked.responses) if len(ranks_of[response]) == 1
    ]
    num_dropped = len(ranked.responses) - len(keep)
    reason = ""
    if ranked.prompt and ranked.prompt[-1].role == "assistant":
        reason = "the prompt ends with the assistant's turn"
    elif len(ranked.responses) < 2:
        reason = "fewer than two responses"
    elif len(keep) < 2:
        reason = "one text stands in it with different ranks, and nothing else is left to compare"
    elif len({ranked.order()[index] for index in keep}) == 1 and not keep_tied:
        reason = "all responses are tied (--keep-tied writes them)"
    if reason:
        left["ranking", reason] += 1
        return None
    if not num_dropped:
        return ranked
    left["response", "one text stands in a ranking with different ranks"] += num_dropped
    return Ranked(
        prompt=ranked.prompt,
        responses=tuple(ranked.responses[index] for index in keep),
        ranks=None if ranked.ranks is None else tuple(ranked.ranks[index] for index in keep),
        scores=None if ranked.scores is None else tuple(ranked.scores[index] for index in keep),
    )


def line(ranked: Ranked) -> bytes:
    """In kwise's schema. A prompt of one user's turn is written as a text."""
    if ranked.row is not None:
        row: Any = ranked.row
    else:
        turns = [{"role": message.role, "content": message.content} for message in ranked.prompt]
        judged, judgements = (
            ("rank", ranked.ranks) if ranked.scores is None else ("score", ranked.scores)
        )
        responses = [
            {"text": text, judged: value}
            for text, value in zip(ranked.responses, judgements or (), strict=True)
        ]
        is_text = len(turns) == 1 and turns[0]["role"] == "user"
        row = {"prompt": turns[0]["content"] if is_text else turns, "responses": responses}
    # A half of a surrogate pair cannot be written as UTF-8; escaped, it comes to `parse_ranking`, which names the field.
    text = json.dumps(row, ensure_ascii=False, default=str)
    return (text if is_unicode(text) else json.dumps(row, default=str)).encode() + b"\n"
