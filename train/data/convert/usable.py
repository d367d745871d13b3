"""Removal of what `kwise train` would refuse in a ranking."""

from collections import Counter
from dataclasses import replace

from kwise.train.data.rows.items import RankedResponses


def usable_part(
    ranked: RankedResponses, skipped: Counter[tuple[str, str]], *, keep_tied: bool = False
) -> RankedResponses | None:
    """Return the ranking without its unusable responses, or None if nothing usable remains.

    skipped: counts what is removed by (what, reason).
    keep_tied: keep a ranking whose responses are all tied.
    """
    ranks_of: dict[str, set[float]] = {}
    sort_keys = ranked.sort_keys()
    for response, sort_key in zip(ranked.responses, sort_keys, strict=True):
        ranks_of.setdefault(response, set()).add(sort_key)
    usable = [i for i, response in enumerate(ranked.responses) if len(ranks_of[response]) == 1]
    num_removed = len(ranked.responses) - len(usable)
    reason = ""
    if ranked.prompt and ranked.prompt[-1].role == "assistant":
        reason = "the prompt ends with the assistant's turn"
    elif len(ranked.responses) < 2:
        reason = "fewer than two responses"
    elif len(usable) < 2:
        reason = "the same text has different ranks, and nothing else is left to compare"
    elif len({sort_keys[index] for index in usable}) == 1 and not keep_tied:
        reason = "all responses are tied (--keep-tied keeps them, and --ties in kwise train)"
    if reason:
        skipped["ranking", reason] += 1
        return None
    if not num_removed:
        return ranked
    skipped["response", "the same text has different ranks in one ranking"] += num_removed
    return replace(
        ranked,
        responses=tuple(ranked.responses[index] for index in usable),
        ranks=None if ranked.ranks is None else tuple(ranked.ranks[index] for index in usable),
        scores=None if ranked.scores is None else tuple(ranked.scores[index] for index in usable),
        response_keys=tuple(ranked.response_keys[i] for i in usable if ranked.response_keys),
    )
