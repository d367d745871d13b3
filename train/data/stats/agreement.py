"""Agreement between rankings of one prompt on the responses that they have in common.

Two rankings are compared if they have at least two responses in common:

- agreement: the share of pairs that both order alike, among the pairs that neither ties;
- Kendall's τ_b = (C − D) / √((C + D + T_x)(C + D + T_y)) with C concordant and D discordant pairs,
  T_x pairs tied only in the first ranking and T_y only in the second (Kendall 1945, "The treatment
  of ties in ranking problems", Biometrika 33). It is undefined if one ranking ties everything.

`scipy.stats.kendalltau` gives the same values, which a test checks, but importing it takes 1.4 s
and each call 20 times as long for rankings of nine.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement over all pairs of rankings that share a prompt and at least two responses.

    num_prompts: prompts with such a pair of rankings.
    num_pairs: pairs of responses that both rankings order.
    agreement: share of `num_pairs` ordered alike; None without such pairs.
    kendall_tau_b: mean over the pairs of rankings where it is defined; None without such pairs.
    """

    num_prompts: int
    num_ranking_pairs: int
    num_pairs: int
    agreement: float | None
    kendall_tau_b: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """Pairs of responses by how two rankings order them. Pairs tied in both are not counted."""

    concordant: int
    discordant: int
    tied_first: int
    tied_second: int

    def kendall_tau_b(self) -> float | None:
        """Return Kendall's τ_b in [−1, 1], or None if one ranking ties everything."""
        untied = self.concordant + self.discordant
        product = (untied + self.tied_first) * (untied + self.tied_second)
        return (self.concordant - self.discordant) / math.sqrt(product) if product else None


def agreement(rankings_by_prompt: Iterable[Sequence[Mapping[int, int]]]) -> Agreement:
    """Return the agreement of rankings, each a mapping from response to rank, grouped by prompt."""
    num_prompts = num_ranking_pairs = num_alike = num_untied = 0
    taus: list[float] = []
    for rankings in rankings_by_prompt:
        num_before = num_ranking_pairs
        for first, second in combinations(rankings, 2):
            common = [response for response in first if response in second]
            if len(common) < 2:
                continue
            num_ranking_pairs += 1
            counts = count_pairs([first[r] for r in common], [second[r] for r in common])
            num_alike += counts.concordant
            num_untied += counts.concordant + counts.discordant
            if (tau := counts.kendall_tau_b()) is not None:
                taus.append(tau)
        num_prompts += num_ranking_pairs > num_before
    return Agreement(
        num_prompts=num_prompts,
        num_ranking_pairs=num_ranking_pairs,
        num_pairs=num_untied,
        agreement=num_alike / num_untied if num_untied else None,
        kendall_tau_b=sum(taus) / len(taus) if taus else None,
    )


def count_pairs(first: Sequence[float], second: Sequence[float]) -> PairCounts:
    """Count the C(K,2) pairs of K responses; `first[i]` and `second[i]` rank response i."""
    concordant = discordant = tied_first = tied_second = 0
    for i, j in combinations(range(len(first)), 2):
        x, y = first[i] - first[j], second[i] - second[j]
        concordant += x * y > 0
        discordant += x * y < 0
        tied_first += x == 0 and y != 0
        tied_second += y == 0 and x != 0
    return PairCounts(
        concordant=concordant,
        discordant=discordant,
        tied_first=tied_first,
        tied_second=tied_second,
    )
