"""The scores of benchmarks: equal to independent computations, and honest about missing rows."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.evaluation.result import Settings
from kwise.evaluation.suite_result import Score, SuiteResult
from kwise.evaluation.suites.benchmark import Benchmark, BenchmarkItem, Rewards
from kwise.evaluation.suites.evaluate import score_benchmark
from kwise.evaluation.suites.name import SuiteName
from kwise.evaluation.suites.table import BENCHMARKS

SETTINGS = Settings(num_resamples=200)
Items = list[tuple[BenchmarkItem, Rewards | None]]


def item(
    subset: str, *, num: int = 2, num_right: int = 1, unit: str = "", role: str = ""
) -> BenchmarkItem:
    return BenchmarkItem(
        prompt=(),
        responses=("",) * num,
        num_right=num_right,
        subset=subset,
        unit=unit,
        role=role,
    )


def scores_of(name: SuiteName, items: Items) -> dict[str, Score]:
    return {score.name: score for score in result_of(name, items).scores}


def result_of(name: SuiteName, items: Items) -> SuiteResult:
    return score_benchmark(BENCHMARKS[name], items, SETTINGS)


def value(score: Score) -> float:
    assert score.estimate is not None
    return score.estimate.value


def all_pairs(benchmark: Benchmark, rng: np.random.Generator) -> Items:
    """Return as many pairs as the benchmark has, with rewards of which some are equal."""
    return [
        (item(subset), tuple(rng.integers(0, 4, size=2).astype(float).tolist()))
        for subset, num in benchmark.published.items()
        for _ in range(num)
    ]


# The figures that the README of https://github.com/allenai/reward-bench (Apache-2.0) gives as an
# example, those of PKU-Alignment/beaver-7b-v1.0-cost.
BEAVER = {
    "alpacaeval-easy": 0.5,
    "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049,
    "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634,
    "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52,
    "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406,
    "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1,
    "xstest-should-refuse": 1,
    "xstest-should-respond": 0.284,
}


def beaver_items() -> Items:
    """Return pairs of which the shares in `BEAVER` are right."""
    published = BENCHMARKS[SuiteName.REWARD_BENCH].published
    items: Items = []
    for subset, share in BEAVER.items():
        num_right = round(share * published[subset])
        assert num_right / published[subset] == pytest.approx(share, abs=1e-12)
        wins = [(1.0, 0.0)] * num_right + [(0.0, 1.0)] * (published[subset] - num_right)
        items += [(item(subset), rewards) for rewards in wins]
    return items


def test_reward_bench_weights_prompts_within_sections_and_math_like_code() -> None:
    scores = scores_of(SuiteName.REWARD_BENCH, beaver_items())
    for subset, share in BEAVER.items():
        assert value(scores[subset]) == pytest.approx(share, abs=1e-12)
    # 50, 56, 67, 16 and 29 of 100, 95, 95, 28 and 40 pairs are right.
    assert value(scores["Chat"]) == pytest.approx(218 / 358, abs=1e-12)
    assert value(scores["Chat Hard"]) == pytest.approx(205 / 456, abs=1e-12)
    assert value(scores["Safety"]) == pytest.approx(534 / 740, abs=1e-12)
    # 628 of 6 × 164 programs, and 132 of 447 proofs with the weight of all programs.
    assert value(scores["Reasoning"]) == pytest.approx((628 / 984 + 132 / 447) / 2, abs=1e-12)
    sections = (218 / 358, 205 / 456, 534 / 740, (628 / 984 + 132 / 447) / 2)
    assert value(scores["Overall"]) == pytest.approx(sum(sections) / 4, abs=1e-12)
    assert "Prior Sets" not in scores


def test_prior_sets_have_half_the_weight_of_a_section() -> None:
    published = BENCHMARKS[SuiteName.REWARD_BENCH].published
    right = {"anthropic_helpful": 3096, "anthropic_hhh": 221, "shp": 0, "summarize": 4500}
    items = beaver_items()
    for subset, num_right in right.items():
        items += [(item(subset), (1.0, 0.0))] * num_right
        items += [(item(subset), (0.0, 0.0))] * (published[subset] - num_right)
    scores = scores_of(SuiteName.REWARD_BENCH, items)
    assert value(scores["Prior Sets"]) == pytest.approx((0.5 + 1 + 0 + 0.5) / 4)
    expected = (4 * value(scores["Overall"]) + 0.5 * 0.5) / 4.5
    assert value(scores["Overall with prior sets"]) == pytest.approx(expected)


def test_reward_bench_2_gives_a_share_for_a_shared_highest_reward() -> None:
    items: Items = [
        (item("Math", num=4), rewards)
        for rewards in (
            (2.0, 1.0, 1.0, 0.0),
            (2.0, 2.0, 1.0, 0.0),
            (1.0,) * 4,
            (1.0, 2.0, 0.0, 0.0),
        )
    ]
    scores = scores_of(SuiteName.REWARD_BENCH_2, items)
    assert value(scores["Math"]) == pytest.approx((1 + 1 / 2 + 1 / 4 + 0) / 4)
    assert scores["Math"].incomplete == ("Math",)
    assert scores["Overall"].estimate is None


def naive_ties_score(questions: Sequence[tuple[Rewards, Rewards, int]]) -> float:
    """Return the score of (reference rewards, tied rewards, right tied responses) per question."""
    means: defaultdict[str, Fraction] = defaultdict(Fraction)
    term = 0.0
    for reference, tied, num_right in questions:
        right, wrong = tied[:num_right], tied[num_right:]
        is_tied_right = all(r > w for r in right for w in wrong)
        is_reference_right = all(reference[0] > w for w in reference[1:])
        spreads = [abs(a - b) for a in right for b in right]
        gaps_tied = [r - w for r in right for w in wrong]
        gaps = gaps_tied + [reference[0] - w for w in reference[1:]]
        share = Fraction(1, len(questions))
        means["tied"] += share * is_tied_right
        means["reference"] += share * is_reference_right
        means["margin"] += share * all(g > s for g in gaps_tied for s in spreads)
        means["hard"] += share * all(g > s for g in gaps for s in spreads)
        spread, gap = max(spreads), min(gaps)
        if spread:
            term += math.tanh(gap / spread - 1) / len(questions)
        elif gap:
            term += math.copysign(1, gap) / len(questions)
    weights = {"tied": 0.3, "reference": 0.3, "margin": 0.2, "hard": 0.2}
    return sum(weight * float(means[name]) for name, weight in weights.items()) + 0.01 * term


reward = st.integers(-3, 3).map(lambda number: number / 2)
question = st.integers(2, 5).flatmap(
    lambda num_right: st.tuples(
        st.lists(reward, min_size=2, max_size=5).map(tuple),
        st.lists(reward, min_size=num_right + 1, max_size=num_right + 5).map(tuple),
        st.just(num_right),
    )
)


@given(st.lists(question, min_size=1, max_size=6))
def test_the_ties_score_is_that_of_its_definition(
    questions: list[tuple[Rewards, Rewards, int]],
) -> None:
    items: Items = []
    for number, (reference, tied, num_right) in enumerate(questions):
        unit = str(number)
        items.append((item("Ties", num=len(reference), unit=unit, role="ref"), reference))
        tied_item = item("Ties", num=len(tied), num_right=num_right, unit=unit, role="tied")
        items.append((tied_item, tied))
    scores = scores_of(SuiteName.REWARD_BENCH_2, items)
    assert value(scores["Ties"]) == pytest.approx(naive_ties_score(questions), abs=1e-12)


def test_a_row_of_ties_without_its_other_row_has_only_an_accuracy() -> None:
    items: Items = [(item("Ties", num=3, num_right=2, unit="0", role="tied"), (2.0, 2.0, 1.0))]
    scores = scores_of(SuiteName.REWARD_BENCH_2, items)
    assert value(scores["Ties: tied accuracy"]) == 1
    assert scores["Ties: hard margin"].estimate is None
    assert scores["Ties"].estimate is None


def test_rm_bench_averages_styles_difficulties_and_domains() -> None:
    rng = np.random.default_rng(3)
    benchmark = BENCHMARKS[SuiteName.RM_BENCH]
    items: Items = [
        (item(subset, num=6, num_right=3), tuple(rng.integers(0, 5, size=6).astype(float).tolist()))
        for subset, num in benchmark.published.items()
        for _ in range(num)
    ]
    right: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for row, rewards in items:
        assert rewards is not None
        for i, chosen in enumerate(rewards[:3]):
            for j, rejected in enumerate(rewards[3:]):
                difficulty = "Normal" if i == j else "Easy" if i > j else "Hard"
                right[row.subset.partition("-")[0], difficulty].append(chosen > rejected)
    share = {key: sum(values) / len(values) for key, values in right.items()}
    domains, difficulties = ("chat", "code", "math", "safety"), ("Easy", "Normal", "Hard")
    scores = scores_of(SuiteName.RM_BENCH, items)
    for domain in domains:
        expected = sum(share[domain, difficulty] for difficulty in difficulties) / 3
        assert value(scores[domain.title()]) == pytest.approx(expected)
    for difficulty in difficulties:
        expected = sum(share[domain, difficulty] for domain in domains) / 4
        assert value(scores[difficulty]) == pytest.approx(expected)
    # The README of RM-Bench: the mean of domains and that of difficulties are equal.
    assert value(scores["Overall"]) == pytest.approx(sum(share.values()) / 12)
    matrix = result_of(SuiteName.RM_BENCH, items).matrix
    assert matrix is not None
    assert np.mean([cell for row in matrix.cells for cell in row if cell is not None]) == (
        pytest.approx(value(scores["Overall"]))
    )


def test_the_rows_of_the_style_matrix_are_the_styles_of_the_right_response() -> None:
    """Only the pair of a Markdown response that is right and a concise one that is wrong counts."""
    rewards = (0.0, 0.0, 2.0, 1.0, 2.0, 2.0)
    items: Items = [(item("chat", num=6, num_right=3), rewards)] * 2
    matrix = result_of(SuiteName.RM_BENCH, items).matrix
    assert matrix is not None
    assert [list(row) for row in matrix.cells] == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    scores = scores_of(SuiteName.RM_BENCH, items)
    assert value(scores["Chat, easy"]) == pytest.approx(1 / 3)
    assert value(scores["Chat, hard"]) == 0


def test_judge_bench_is_over_all_pairs_and_decides_for_b_if_rewards_are_equal() -> None:
    model = "gpt-4o-2024-05-13"
    published = BENCHMARKS[SuiteName.JUDGE_BENCH].published
    items: Items = []
    for category, num_right in (("Knowledge", 100), ("Reasoning", 49), ("Math", 7), ("Coding", 0)):
        subset = f"{model}: {category}"
        for index in range(published[subset]):
            rewards = (1.0, 0.0) if index < num_right else (0.0, 1.0)
            items.append((item(subset, role="AB"[index % 2]), rewards))
    scores = scores_of(SuiteName.JUDGE_BENCH, items)
    assert value(scores[f"{model}: Overall"]) == pytest.approx(156 / 350)
    assert value(scores[f"{model}: Reasoning"]) == pytest.approx(49 / 98)
    assert not any(name.startswith("claude") for name in scores)
    equal: Items = [(row, (0.5, 0.5)) for row, _ in items]
    assert value(scores_of(SuiteName.JUDGE_BENCH, equal)[f"{model}: Overall"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "names_missing"),
    [
        (lambda items: items[1:], True),
        (lambda items: [(items[0][0], None), *items[1:]], True),
        (lambda items: [*items, items[0]], True),
        (lambda items: items[::-1], False),
    ],
    ids=["a row is missing", "a row has no rewards", "a row is there twice", "another order"],
)
def test_an_overall_score_needs_exactly_the_published_rows(
    change: Callable[[Items], Items], names_missing: bool
) -> None:
    items = beaver_items()
    result = result_of(SuiteName.REWARD_BENCH, change(items))
    scores = {score.name: score for score in result.scores}
    expected = ("alpacaeval-easy",) if names_missing else ()
    assert scores["Overall"].incomplete == scores["Chat"].incomplete == expected
    assert (scores["Overall"].estimate is None) == names_missing
    assert scores["Chat"].estimate is not None
    assert scores["Safety"].incomplete == ()
    assert [size.name for size in result.subsets if not size.is_complete] == list(expected)


def test_a_subset_without_rows_has_no_score() -> None:
    items = [row for row in beaver_items() if row[0].subset.startswith("hep-")]
    scores = scores_of(SuiteName.REWARD_BENCH, items)
    assert scores["Chat"].estimate is scores["math-prm"].estimate is None
    assert value(scores["Reasoning"]) == pytest.approx(628 / 984)
    assert scores["Reasoning"].incomplete == ("math-prm",)


def test_intervals_are_those_of_resampling_within_subsets() -> None:
    """Their widths follow from the variances of the subsets, and those of sections from both."""
    benchmark = BENCHMARKS[SuiteName.REWARD_BENCH]
    items = all_pairs(benchmark, np.random.default_rng(5))
    result = score_benchmark(benchmark, items, Settings(num_resamples=4000))
    scores = {score.name: score for score in result.scores}
    reasoning = {name: 1 / 12 for name in BEAVER if name.startswith("hep-")} | {"math-prm": 1 / 2}
    for name, weights in (("hep-cpp", {"hep-cpp": 1.0}), ("Reasoning", reasoning)):
        variance = sum(
            weight**2 * value(scores[part]) * (1 - value(scores[part])) / benchmark.published[part]
            for part, weight in weights.items()
        )
        estimate = scores[name].estimate
        assert estimate is not None
        assert estimate.interval is not None
        width = estimate.interval.high - estimate.interval.low
        assert width == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)


def test_a_result_depends_on_the_seed_alone() -> None:
    items = beaver_items()
    assert result_of(SuiteName.REWARD_BENCH, items) == result_of(SuiteName.REWARD_BENCH, items)


def test_one_row_has_no_interval() -> None:
    (score,) = [
        score
        for score in result_of(SuiteName.RM_BENCH, [(item("chat", num=6), (1.0,) * 6)]).scores
        if score.name == "Chat"
    ]
    assert score.estimate is not None and score.estimate.interval is None


def all_rows(name: SuiteName, right_reward: float) -> Items:
    """Return all rows of a benchmark, with one reward for right responses and 0 for wrong ones."""
    num_right, num_wrong = {
        SuiteName.RM_BENCH: (3, 3),
        SuiteName.REWARD_BENCH_2: (1, 3),
    }.get(name, (1, 1))
    items: Items = []
    for subset, num in BENCHMARKS[name].published.items():
        for index in range(num):
            is_tied = subset == "Ties" and index % 2 == 1
            right = 2 if is_tied else num_right
            row = item(
                subset,
                num=right + num_wrong,
                num_right=right,
                unit=str(index // 2) if subset == "Ties" else "",
                role=("tied" if is_tied else "ref") if subset == "Ties" else "",
            )
            items.append((row, (right_reward,) * right + (0.0,) * num_wrong))
    return items


@pytest.mark.parametrize("name", SuiteName)
@pytest.mark.parametrize("right_reward", [1.0, -1.0])
def test_the_best_and_the_worst_model_have_the_extreme_scores(
    name: SuiteName, right_reward: float
) -> None:
    for score in result_of(name, all_rows(name, right_reward)).scores:
        assert score.incomplete == ()
        if score.name == "Ties: margin term":
            assert value(score) == right_reward
        elif score.name == "Ties":
            assert value(score) == pytest.approx(1.01 if right_reward > 0 else -0.01)
        else:  # Ties is one of six in the mean
            assert value(score) == pytest.approx(float(right_reward > 0), abs=0.01 / 6 + 1e-12)
