"""Merging: every comparison holds in the output, and every pair of the output is implied."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.train.data.convert.merge_comparisons import Comparison, Order, merge_comparisons


def parse(text: str) -> list[Comparison]:
    """Return the comparisons of a text such as "a>b b=c"."""
    return [Comparison(better=word[0], worse=word[2], tied=word[1] == "=") for word in text.split()]


def written(orders: Sequence[Order]) -> list[str]:
    return sorted(">".join("=".join(sorted(group)) for group in order) for order in orders)


@pytest.mark.parametrize(
    ("comparisons", "orders", "num_contradictions"),
    [
        ("", [], 0),
        ("a>b", ["a>b"], 0),
        ("b>c a>b", ["a>b>c"], 0),
        ("a>b b>c a>c a>b", ["a>b>c"], 0),
        ("a>b b=c", ["a>b=c"], 0),
        ("a=b b=c c>d e>a", ["e>a=b=c>d"], 0),
        ("a>b a>c", ["a>b", "a>c"], 0),  # the order of b and c is unknown
        ("a>b c>d", ["a>b", "c>d"], 0),
        ("a>b c>d d>e", ["a>b", "c>d>e"], 0),
        ("a=b a>c a>d", ["a=b>c", "a=b>d"], 0),  # the tie is kept although there is no whole order
        ("a=b", ["a=b"], 0),
        ("a>b b>a", ["a>b", "b>a"], 2),
        ("a>b b>a a>b", ["a>b", "a>b", "b>a"], 3),  # repetitions are kept
        ("a>b b>c c>a", ["a>b", "b>c", "c>a"], 3),
        ("a>b a=b", ["a=b", "a>b"], 2),
        ("a=b b=c a>c", ["a=b", "a>c", "b=c"], 3),
        (
            "a>b b>a c>d d>a",
            ["a>b", "b>a", "c>d>a"],
            2,
        ),  # the consistent part is merged
    ],
)
def test_orders_of_comparisons(
    comparisons: str, orders: list[str], num_contradictions: int
) -> None:
    merged = merge_comparisons(parse(comparisons))
    assert written(merged.orders) == sorted(orders)
    assert merged.num_contradictions == num_contradictions


def test_a_chain_longer_than_pythons_recursion_limit_is_one_ranking() -> None:
    names = [f"{i:05}" for i in range(5000)]
    merged = merge_comparisons([Comparison(better=a, worse=b) for a, b in pairwise(names)])
    assert merged.orders == (tuple((name,) for name in names),)


HIDDEN = st.lists(st.integers(0, 4), min_size=2, max_size=7)  # ranks of responses "0", "1", …


@st.composite
def _consistent(draw: Any) -> tuple[list[int], list[Comparison]]:
    ranks = draw(HIDDEN)
    pairs = draw(
        st.lists(st.sampled_from(list(combinations(range(len(ranks)), 2))), min_size=1, max_size=12)
    )
    comparisons = []
    for first, second in pairs:
        better, worse = (first, second) if ranks[first] <= ranks[second] else (second, first)
        comparisons.append(
            Comparison(better=str(better), worse=str(worse), tied=ranks[first] == ranks[second])
        )
    return ranks, comparisons


def _relations(orders: Sequence[Order]) -> set[tuple[str, str, str]]:
    """Return every pair of every order, as (">" or "=", one, other)."""
    relations = set()
    for order in orders:
        for index, group in enumerate(order):
            relations |= {("=", *sorted(pair)) for pair in combinations(group, 2)}
            relations |= {(">", a, b) for a in group for later in order[index + 1 :] for b in later}
    return {(sign, a, b) for sign, a, b in relations}


def _closure(comparisons: Sequence[Comparison]) -> set[tuple[str, str, str]]:
    """Return everything that the comparisons imply, by the algorithm of Floyd and Warshall."""
    names = {name for c in comparisons for name in (c.better, c.worse)}
    at_least = {(c.better, c.worse) for c in comparisons} | {
        (c.worse, c.better) for c in comparisons if c.tied
    }
    better = {(c.better, c.worse) for c in comparisons if not c.tied}
    for middle in names:
        for a in names:
            for b in names:
                if (a, middle) in at_least and (middle, b) in at_least:
                    at_least.add((a, b))
    implied = {
        (a, d)
        for (b, c) in better
        for a in names
        for d in names
        if _reach(a, b, at_least) and _reach(c, d, at_least)
    }
    ties = {("=", *sorted((a, b))) for a, b in at_least if a != b and (b, a) in at_least}
    return {(">", a, b) for a, b in implied} | {(sign, a, b) for sign, a, b in ties}


def _reach(a: str, b: str, at_least: set[tuple[str, str]]) -> bool:
    return a == b or (a, b) in at_least


@given(_consistent())
def test_consistent_comparisons_are_neither_lost_nor_invented(
    drawn: tuple[list[int], list[Comparison]],
) -> None:
    ranks, comparisons = drawn
    merged = merge_comparisons(comparisons)
    assert merged.num_contradictions == 0
    output = _relations(merged.orders)
    for c in comparisons:
        assert (
            ("=", *sorted((c.better, c.worse))) if c.tied else (">", c.better, c.worse)
        ) in output
    assert output <= _closure(comparisons)
    for sign, a, b in output:
        assert ranks[int(a)] < ranks[int(b)] if sign == ">" else ranks[int(a)] == ranks[int(b)]


@given(HIDDEN)
def test_all_pairs_of_a_hidden_order_make_one_ranking(ranks: list[int]) -> None:
    comparisons = []
    for a, b in combinations(range(len(ranks)), 2):
        better, worse = (a, b) if ranks[a] <= ranks[b] else (b, a)
        comparisons.append(
            Comparison(better=str(better), worse=str(worse), tied=ranks[a] == ranks[b])
        )
    [order] = merge_comparisons(comparisons).orders
    assert [{ranks[int(name)] for name in group} for group in order] == [
        {rank} for rank in sorted(set(ranks))
    ]


ANY = st.lists(
    st.builds(
        Comparison,
        better=st.sampled_from("abc"),
        worse=st.sampled_from("defabc"),
        tied=st.booleans(),
    ).filter(lambda c: c.better != c.worse),
    max_size=10,
)


@given(ANY)
def test_no_comparison_is_lost_even_among_contradictions(comparisons: list[Comparison]) -> None:
    merged = merge_comparisons(comparisons)
    output = _relations(merged.orders)
    assert all(
        (("=", *sorted((c.better, c.worse))) if c.tied else (">", c.better, c.worse)) in output
        for c in comparisons
    )
    assert output <= _closure(comparisons)
    if merged.num_contradictions == 0:
        assert not any(
            (">", b, a) in output or ("=", *sorted((a, b))) in output
            for s, a, b in output
            if s == ">"
        )
