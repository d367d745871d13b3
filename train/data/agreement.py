"""How far several rankings of one prompt agree on the responses that they share.

Two rankings are compared on their common responses, at least two:

- agreement: of the pairs that neither ties, the share that both order alike;
- Kendall's τ_b = (C − D) / √((C + D + T_x)(C + D + T_y)), where T_x counts pairs tied in the first ranking alone (Kendall 1945,
  "The treatment of ties in ranking problems", Biometrika 33). Undefined, and left out of the mean, where one ranking ties all.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Over all pairs of rankings of one prompt that share two responses or more. None where there is nothing to divide by."""

    num_prompts: int  # with such rankings
    num_ranking_pairs: int
    num_pairs: int  # of responses that both rankings order
    agreement: float | None
    kendall_tau_b: float | None


def agreement(rankings_by_prompt: Iterable[Sequence[Mapping[int, int]]]) -> Agreement:
    """Of the rankings of each prompt, each from response to rank."""
    num_prompts = num_ranking_pairs = num_alike = num_untied = 0
    taus: list[float] = []
    for rankings in rankings_by_prompt:
        num_before = num_ranking_pairs
        for first, second in combinations(rankings, 2):
            common = [response for response in first if response in second]
            if len(common) < 2:
                continue
            num_ranking_pairs += 1
            alike, unlike, tied_first, tied_second = _counts(first, second, common)
            num_alike, num_untied = num_alike + alike, num_untied + alike + unlike
            both = (alike + unlike + tied_first) * (alike + unlike + tied_second)
            if both:
                taus.append((alike - unlike) / math.sqrt(both))
        num_prompts += num_ranking_pairs > num_before
    return Agreement(
        num_prompts=num_prompts,
        num_ranking_pairs=num_ranking_pairs,
        num_pairs=num_untied,
        agreement=num_alike / num_untied if num_untied else None,
        kendall_tau_b=sum(taus) / len(taus) if taus else None,
    )


def _counts(
    first: Mapping[int, int], second: Mapping[int, int], common: Sequence[int]
) -> tuple[int, int, int, int]:
    """Of the pairs: (ordered alike, ordered unlike, tied in the first alone, tied in the second alone)."""
    alike = unlike = tied_first = tied_second = 0
    for a, b in combinations(common, 2):
        x, y = first[a] - first[b], second[a] - second[b]
        alike += x * y > 0
        unlike += x * y < 0
        tied_first += x == 0 and y != 0
        tied_second += y == 0 and x != 0
    return alike, unlike, tied_first, tied_second
