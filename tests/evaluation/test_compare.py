"""A comparison is paired, and refuses results of different data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kwise.errors import ConfigError
from kwise.evaluation.compare import compare, p_value
from kwise.evaluation.figures import figures_of
from kwise.evaluation.metrics.bootstrap import PromptBootstrap
from kwise.evaluation.result import (
    SCHEMA_VERSION,
    DataRecord,
    EvaluatedRanking,
    Evaluation,
    LeftOut,
    ModelRecord,
    Settings,
)
from tests.evaluation.rankings import QUICK, ranking


def evaluation(
    rankings: Sequence[EvaluatedRanking], *, data: str = "same", num_read: int | None = None
) -> Evaluation:
    model = ModelRecord(
        argument="m", kind="artifact", name="m", fingerprint="f", precision="fp32", runtime="r"
    )
    record = DataRecord(
        name="d", rankings_sha256=data, num_read=num_read or len(rankings), num_tied=0, left_out=()
    )
    return Evaluation(
        schema_version=SCHEMA_VERSION,
        created_at="",
        model=model,
        data=record,
        settings=QUICK,
        options={},
        versions={},
        figures=figures_of(rankings, QUICK),
        rankings=tuple(rankings),
    )


def rankings_with(rewards: Sequence[float]) -> list[EvaluatedRanking]:
    """Return a pair per reward of the better response; the worse one has the reward 0."""
    return [
        ranking([reward, 0], [1, 2], prompt=f"{i:03}", origin=f"f:{i + 1}")
        for i, reward in enumerate(rewards)
    ]


def test_differences_are_paired() -> None:
    """Prompts that are hard for both models add no uncertainty about the difference."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=200)
    a = evaluation(rankings_with((common + 0.5).tolist()))
    b = evaluation(rankings_with(common.tolist()))
    accuracy = compare(a, b, QUICK).differences[0]
    alone = a.figures.accuracy.accuracy.interval
    assert accuracy.difference.interval is not None and alone is not None
    width = accuracy.difference.interval.high - accuracy.difference.interval.low
    assert width < alone.high - alone.low
    assert accuracy.difference.value == pytest.approx(accuracy.a - accuracy.b)
    assert accuracy.difference.interval.low > 0


def test_the_difference_changes_its_sign_with_the_order_of_the_models() -> None:
    generator = np.random.default_rng(1)
    a, b = (evaluation(rankings_with(generator.normal(size=50).tolist())) for _ in range(2))
    there, back = compare(a, b, QUICK), compare(b, a, QUICK)
    for one, other in zip(there.differences, back.differences, strict=True):
        assert (one.figure, one.a, one.b) == (other.figure, other.b, other.a)
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert one.p_value == pytest.approx(other.p_value)


def test_rounding_errors_are_no_difference() -> None:
    """All of one sign had p = 0.005, beside a difference of +0.000."""
    rewards = np.random.default_rng(3).normal(size=50)
    a, b = (evaluation(rankings_with((rewards + error).tolist())) for error in (0, 5e-4))
    assert [difference.p_value for difference in compare(a, b, QUICK).differences] == [1.0] * 4
    c = evaluation(rankings_with((rewards + 5e-3).tolist()))
    p_of_nll = compare(a, c, QUICK).differences[1].p_value
    assert p_of_nll is not None and p_of_nll < 0.05


@pytest.mark.parametrize(("num_prompts", "least"), [(2, 0.5), (3, 0.25), (5, 0.0625)])
def test_few_prompts_show_no_difference(num_prompts: int, least: float) -> None:
    """Two prompts of two, right for A and wrong for B, had p = 0.001."""
    a, b = (evaluation(rankings_with([reward] * num_prompts)) for reward in (1.0, -1.0))
    comparison = compare(a, b, QUICK)
    assert [difference.p_value for difference in comparison.differences] == [least] * 4
    assert "the data do not show that they differ" in comparison.conclusion


def test_figures_that_differ_by_a_factor_have_the_same_p_value() -> None:
    """Sums that cancel were on one side only where float64 does not sum them to 0."""
    signs = np.asarray([1.0] * 11 + [-1.0] * 9)
    bootstrap = PromptBootstrap([str(number) for number in range(20)], Settings(num_resamples=2000))
    p_values = set()
    for factor in (1, 1 / 3, 0.1, 1e-3 / 7):
        resampled = bootstrap.resampled_ratios(signs * factor, np.ones(20))
        assert resampled is not None
        p_values.add(p_value(resampled))
    assert len(p_values) == 1


def test_the_p_value_counts_the_observed_sample() -> None:
    assert p_value(np.ones(99)) == 0.02
    assert p_value(np.zeros(99)) == 1.0
    assert p_value(np.asarray([-1.0] * 4 + [1.0] * 95)) == 0.1


def test_of_equal_models_five_in_a_hundred_differ() -> None:
    """The share of p-values below 0.05 is about 0.05 if the models do not differ."""
    generator, num_runs = np.random.default_rng(2), 400
    bootstrap = PromptBootstrap([str(number) for number in range(100)], Settings(num_resamples=400))
    p_values = []
    for _ in range(num_runs):
        resampled = bootstrap.resampled_ratios(generator.normal(size=100), np.ones(100))
        assert resampled is not None
        p_values.append(p_value(resampled))
    # Within three standard errors of a binomial share.
    assert abs(np.mean(np.asarray(p_values) < 0.05) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / num_runs)


def test_rankings_that_only_one_model_could_score_do_not_count() -> None:
    rankings = rankings_with([1, 1, -1, 1])
    a, b = evaluation(rankings[1:], num_read=4), evaluation(rankings[:3], num_read=4)
    comparison = compare(a, b, QUICK)
    assert (comparison.num_only_a, comparison.num_only_b, comparison.num_rankings) == (1, 1, 2)
    assert comparison.differences[0].a == comparison.differences[0].b == 0.5


def test_one_prompt_says_nothing() -> None:
    one = evaluation(rankings_with([1]))
    comparison = compare(one, one, QUICK)
    assert comparison.differences[0].p_value is None
    assert "fewer than two prompts" in comparison.conclusion


def test_a_ranking_that_occurs_twice_counts_twice() -> None:
    twice = evaluation(rankings_with([1]) * 2)
    assert compare(twice, twice, QUICK).num_rankings == 2


RANKINGS = rankings_with([1, 2, 3])
FIRST, *REST = RANKINGS


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (RANKINGS[:2], "A has 3 rankings (d) and B has 2 (d)"),
        ([replace(FIRST, prompt_sha256="x"), *REST], "1 prompts are in A only and 1 in B only"),
        ([replace(FIRST, responses_sha256="x"), *REST], "the responses of 1 rankings differ"),
        ([replace(FIRST, ranks=(2, 1)), *REST], "the ranks of 1 rankings differ, first f:1 of A"),
        ([replace(FIRST, scores=(2.0, 1.0)), *REST], "the scores of 1 rankings differ, first f:1"),
        (RANKINGS[::-1], "the order of their rankings"),
        (RANKINGS, "a ranking that is in no figure, because its responses are tied or it was not"),
    ],
)
def test_results_of_different_data_are_refused(other: list[EvaluatedRanking], what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compare(evaluation(RANKINGS), evaluation(other, data="other"), QUICK)
    assert what in str(refused.value)


def test_rankings_without_a_figure_are_counted_if_they_differ() -> None:
    a, b = (evaluation(RANKINGS, data=name, num_read=4) for name in ("one", "other"))
    a = replace(a, data=replace(a.data, num_tied=1))
    left_out = LeftOut(origin="f:4", reason="too long", is_overlong=True)
    b = replace(b, data=replace(b.data, left_out=(left_out,)))
    with pytest.raises(ConfigError) as refused:
        compare(a, b, QUICK)
    what = "A has 1 rankings whose responses are all tied and 0 that could not be scored, and B has"
    assert f"{what} 0 and 1" in str(refused.value)
