"""Compare two evaluations of the same rankings: the differences of their figures.

The two models have scored the same prompts, so a prompt that is hard for one is often hard for the
other. Each resample has the same prompts for both, and the difference is taken in it. This interval
is narrower than two separate ones suggest.

Dimensions: R rankings; B resamples.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from kwise.errors import ConfigError
from kwise.evaluation.estimate import Estimate
from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.metrics.calibration import negative_log_likelihood
from kwise.evaluation.metrics.labelled import Floats, pairs_of_all
from kwise.evaluation.metrics.rank_correlation import kendall_tau, ndcg, values_of
from kwise.evaluation.result import (
    SCHEMA_VERSION,
    Difference,
    EvaluatedRanking,
    Evaluation,
    ModelComparison,
    Settings,
)
from kwise.train.report.pairs import shares_right

Rankings: TypeAlias = Sequence[EvaluatedRanking]

# A prompt whose figure differs by no more has the same rewards but for rounding. Rewards of one
# model in two runtimes differ by up to 1e-4 in fp32 (docs/precisions.md).
_SAME_REWARDS = 1e-3
# Gains and losses that cancel have a sum in float64 of no more, relative to the largest sum.
_CANCELLED = 1e-12


def compare(a: Evaluation, b: Evaluation, settings: Settings) -> ModelComparison:
    """Return the differences A − B over the rankings that both models have scored.

    Raises:
        ConfigError: the data of the two differ, or no ranking was scored by both.
    """
    if a.data.rankings_sha256 != b.data.rankings_sha256:
        raise ConfigError(f"A and B are results of different data: {_what_differs(a, b)}")
    of_a, of_b = _by_content(a.rankings), _by_content(b.rankings)
    both = [content for content in of_a if content in of_b]
    if not both:
        raise ConfigError("A and B have no ranking that both models have scored")
    rankings_a, rankings_b = ([of[content] for content in both] for of in (of_a, of_b))
    bootstrap = PromptBootstrap([ranking.prompt_sha256 for ranking in rankings_a], settings)
    differences = tuple(
        _difference(totals_a, totals_b, bootstrap)
        for totals_a, totals_b in zip(_totals(rankings_a), _totals(rankings_b), strict=True)
    )
    num_pairs = len(pairs_of_all(rankings_a).margin_P)
    return ModelComparison(
        schema_version=SCHEMA_VERSION,
        conclusion=_conclusion(a, b, differences[0], num_pairs, bootstrap.num_prompts, settings),
        a=a.model,
        b=b.model,
        data_name=a.data.name,
        rankings_sha256=a.data.rankings_sha256,
        num_rankings=len(both),
        num_prompts=bootstrap.num_prompts,
        num_pairs=num_pairs,
        num_only_a=len(of_a) - len(both),
        num_only_b=len(of_b) - len(both),
        settings=settings,
        differences=differences,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Totals:
    """A figure as the ratio of two sums over rankings."""

    figure: str
    numerator_R: Floats
    denominator_R: Floats


def _totals(rankings: Rankings) -> Iterator[_Totals]:
    pairs = pairs_of_all(rankings)
    num_pairs_R = pairs.per_ranking(np.ones(len(pairs.margin_P)))
    for figure, values_P in (
        ("accuracy", shares_right(pairs.margin_P)),
        ("nll", negative_log_likelihood(pairs.margin_P)),
    ):
        yield _Totals(
            figure=figure, numerator_R=pairs.per_ranking(values_P), denominator_R=num_pairs_R
        )
    for figure, of in (("kendall_tau", kendall_tau), ("ndcg", ndcg)):
        yield _Totals(
            figure=figure,
            numerator_R=values_of(of, rankings),
            denominator_R=np.ones(len(rankings)),
        )


def _difference(a: _Totals, b: _Totals, bootstrap: PromptBootstrap) -> Difference:
    values = [float(of.numerator_R.sum() / of.denominator_R.sum()) for of in (a, b)]
    # The denominators of A and B are the same, so the difference is a ratio too.
    difference_R = a.numerator_R - b.numerator_R
    resampled_B = bootstrap.resampled_ratios(difference_R, a.denominator_R)
    # The signs of rounding errors say nothing of the models, and resamples of few prompts agree too
    # often. By the test of signs, no outcome of m prompts that differ is rarer than this.
    num_differing = bootstrap.num_prompts_above(difference_R, _SAME_REWARDS * a.denominator_R)
    least_p = min(2.0 ** (1 - num_differing), 1.0)
    return Difference(
        figure=a.figure,
        a=values[0],
        b=values[1],
        difference=Estimate(
            value=float(difference_R.sum() / a.denominator_R.sum()),
            interval=None if resampled_B is None else bootstrap.interval(resampled_B),
        ),
        p_value=None if resampled_B is None else max(p_value(resampled_B), least_p),
    )


def p_value(resampled_B: Floats) -> float:
    """Return the two-sided p-value of the hypothesis that the difference is 0.

    It is never 0: the observed sample counts as a resample (Davison and Hinkley, 1997, section
    4.2). Gains and losses that cancel count on both sides, although their sum in float64 may be as
    large as a rounding error.
    """
    zero = _CANCELLED * np.abs(resampled_B).max(initial=0)
    num_low, num_high = (
        1 + int(np.count_nonzero(side_B)) for side_B in (resampled_B <= zero, resampled_B >= -zero)
    )
    return min(2 * min(num_low, num_high) / (len(resampled_B) + 1), 1.0)


def _conclusion(
    a: Evaluation,
    b: Evaluation,
    accuracy: Difference,
    num_pairs: int,
    num_prompts: int,
    settings: Settings,
) -> str:
    orders = (
        f"A ({a.model.name}) orders {accuracy.a:.1%} of {num_pairs:,} pairs rightly, "
        f"B ({b.model.name}) {accuracy.b:.1%}"
    )
    interval, p = accuracy.difference.interval, accuracy.p_value
    if interval is None or p is None:
        return f"{orders}; with fewer than two prompts nothing can be said about the difference."
    found = "A is better" if accuracy.difference.value > 0 else "B is better"
    if p >= 1 - settings.confidence:
        found = "the data do not show that they differ"
    return (
        f"{orders}: {found} (difference {100 * accuracy.difference.value:+.1f} points, "
        f"{settings.confidence:.0%} interval {100 * interval.low:+.1f} to "
        f"{100 * interval.high:+.1f}, p = {p:.3g}, paired bootstrap over {num_prompts:,} prompts)."
    )


Content: TypeAlias = tuple[object, ...]


def _by_content(rankings: Rankings) -> dict[Content, EvaluatedRanking]:
    """Return the rankings by what they are. A ranking that occurs twice gets two keys."""
    seen: Counter[Content] = Counter()
    by_content: dict[Content, EvaluatedRanking] = {}
    for ranking in rankings:
        content = (
            ranking.prompt_sha256, ranking.responses_sha256, ranking.ranks, ranking.scores
        )  # fmt: skip
        by_content[*content, seen[content]] = ranking
        seen[content] += 1
    return by_content


def _what_differs(a: Evaluation, b: Evaluation) -> str:
    """Return the first kind of difference that is found, as a clause."""
    if a.data.num_read != b.data.num_read:
        return (
            f"A has {a.data.num_read:,} rankings ({a.data.name}) and B has {b.data.num_read:,} "
            f"({b.data.name})"
        )
    by_a, by_b = _by_prompt(a.rankings), _by_prompt(b.rankings)
    if by_a.keys() != by_b.keys():
        return (
            f"{len(by_a.keys() - by_b.keys()):,} prompts are in A only and "
            f"{len(by_b.keys() - by_a.keys()):,} in B only"
        )
    for part in ("responses_sha256", "ranks", "scores"):
        differing = [
            ranking_a.origin
            for prompt, rankings_a in by_a.items()
            for ranking_a, ranking_b in zip(rankings_a, by_b[prompt], strict=False)
            if getattr(ranking_a, part) != getattr(ranking_b, part)
        ]
        if differing:
            return (
                f"the {part.removesuffix('_sha256')} of {len(differing):,} rankings differ, first "
                f"{differing[0]} of A"
            )
    if list(_by_content(a.rankings)) != list(_by_content(b.rankings)):
        return "the order of their rankings"
    without_figures = [(of.data.num_tied, len(of.data.left_out)) for of in (a, b)]
    if without_figures[0] != without_figures[1]:
        (tied_a, left_out_a), (tied_b, left_out_b) = without_figures
        return (
            f"A has {tied_a:,} rankings whose responses are all tied and {left_out_a:,} that could "
            f"not be scored, and B has {tied_b:,} and {left_out_b:,}"
        )
    return "a ranking that is in no figure, because its responses are tied or it was not scored"


def _by_prompt(rankings: Rankings) -> dict[str, list[EvaluatedRanking]]:
    by_prompt: defaultdict[str, list[EvaluatedRanking]] = defaultdict(list)
    for ranking in rankings:
        by_prompt[ranking.prompt_sha256].append(ranking)
    return by_prompt
