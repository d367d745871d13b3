"""One ranking of several rankings of a prompt, if they determine one order."""

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import pairwise

from kwise.train.data.convert.convert import ConvertedRow
from kwise.train.data.convert.json_line import row_of
from kwise.train.data.convert.merge_comparisons import Comparison, merge_comparisons
from kwise.train.data.rows.items import RankedResponses
from kwise.train.rankings.schema import Ranking, ranking_of


class NotCombined(Enum):
    """The reason why rankings of a prompt stay separate; each goes on after "whose rankings"."""

    SCORES = "have scores, which a common order would lose"
    NO_COMMON = "have no response in common"
    CONTRADICT = "contradict each other"
    UNDETERMINED = "do not say which of some responses is better"


def combine(rankings: Sequence[Ranking]) -> ConvertedRow | NotCombined:
    """Return the ranking of all responses of `rankings`, which have one prompt, or the reason."""
    if any(ranking.scores is not None for ranking in rankings):
        return NotCombined.SCORES
    comparisons = [c for ranking in rankings for c in _comparisons(ranking)]
    merged = merge_comparisons(comparisons)
    if merged.num_contradictions:
        return NotCombined.CONTRADICT
    responses = {response for ranking in rankings for response in ranking.responses}
    order = merged.orders[0]
    if len(merged.orders) != 1 or sum(map(len, order)) != len(responses):
        num_all = sum(len(set(ranking.responses)) for ranking in rankings)
        return NotCombined.NO_COMMON if num_all == len(responses) else NotCombined.UNDETERMINED
    row = row_of(
        RankedResponses(
            prompt=rankings[0].prompt,
            responses=tuple(response for group in order for response in group),
            ranks=tuple(rank for rank, group in enumerate(order, start=1) for _ in group),
        )
    )
    return ConvertedRow(
        ranking=ranking_of(row, origin=rankings[0].origin, allow_tied=True), row=row
    )


def _comparisons(ranking: Ranking) -> Iterator[Comparison]:
    """Yield the comparisons of each response with the next one in the order."""
    rank_of = dict(zip(ranking.responses, ranking.ranks, strict=True))
    for better, worse in pairwise(sorted(rank_of, key=rank_of.__getitem__)):
        yield Comparison(better=better, worse=worse, tied=rank_of[better] == rank_of[worse])
