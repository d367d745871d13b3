"""Evaluated rankings for the tests, built from numbers or drawn by hypothesis."""

from collections.abc import Sequence

from hypothesis import strategies as st

from kwise.evaluation.result import EvaluatedRanking, Settings

QUICK = Settings(num_resamples=100)


def ranking(
    rewards: Sequence[float],
    ranks: Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    prompt: str = "p",
    origin: str = "f:1",
) -> EvaluatedRanking:
    """Return a ranking whose ranks may have gaps."""
    order = sorted(set(ranks))
    return EvaluatedRanking(
        origin=origin,
        prompt_sha256=prompt,
        responses_sha256=f"{prompt} {len(rewards)}",
        ranks=tuple(order.index(rank) + 1 for rank in ranks),
        scores=None if scores is None else tuple(scores),
        lengths=tuple(lengths) if lengths is not None else (10,) * len(rewards),
        rewards=tuple(map(float, rewards)),
    )


@st.composite
def drawn_rankings(draw: st.DrawFn, *, max_responses: int = 5) -> EvaluatedRanking:
    """A ranking with a pair. Small numbers, so that rewards, ranks and lengths are often equal."""
    size = draw(st.integers(2, max_responses))
    ranks = draw(
        st.lists(st.integers(1, 4), min_size=size, max_size=size).filter(
            lambda ranks: len(set(ranks)) > 1
        )
    )
    return ranking(
        draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)),
        ranks,
        lengths=draw(st.lists(st.integers(1, 6), min_size=size, max_size=size)),
        prompt=draw(st.sampled_from("pqrs")),
    )


drawn_sets = st.lists(drawn_rankings(), min_size=1, max_size=6)
