"""The pairs of a group to train on: chosen and rejected. One entry of the table is one choice."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

from kwise.bulk.output.names import PairChoice

Pair = tuple[int, int]

_CHOICES: dict[PairChoice, Callable[[Sequence[int]], Iterable[Pair]]] = {
    PairChoice.BEST_WORST: lambda order: [(order[0], order[-1])],
    PairChoice.BEST_REST: lambda order: [(order[0], other) for other in order[1:]],
    PairChoice.ALL: lambda order: combinations(order, 2),
}


def chosen_pairs(
    raw: Sequence[float | None], order: Sequence[int], choice: PairChoice, min_margin: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (chosen, rejected, margin). A pair of equal rewards says nothing, and is not yielded.

    Args:
        raw: the raw reward of each response; None if it was not scored.
        order: the indices of those that were scored, the best first.
        choice: the pairs to take.
        min_margin: the smallest margin of a pair.
    """
    if len(order) < 2:
        return
    for chosen, rejected in _CHOICES[choice](order):
        better, worse = raw[chosen], raw[rejected]
        assert better is not None and worse is not None, "only scored responses have an order"
        margin = better - worse
        if margin > 0 and margin >= min_margin:
            yield chosen, rejected, margin
