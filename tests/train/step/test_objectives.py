"""Each objective agrees with its formula, written out pair by pair in plain Python, and with finite
differences. The table of objectives is complete."""

import math
import pkgutil
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.options.objectives import (
    OBJECTIVES,
    TIE_MODELS,
    Margin,
    Objective,
    ObjectiveConfig,
    ObjectiveName,
    PairWeighting,
    Ties,
    learns_from_ties,
    objective_from_plain,
    objective_of,
)
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking, parse_ranking
from kwise.train.report.evaluation import evaluate
from kwise.train.run.training import train
from kwise.train.step.losses import Labels, kwise_loss, ranking_loss
from kwise.types import Message
from tests.training_runs import IGNORED_WARNINGS
from tests.training_runs import options as run_options

pytestmark = IGNORED_WARNINGS
Reference = Callable[[list[float], list[int], list[float], ObjectiveConfig], float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reduced(terms: list[float], config: ObjectiveConfig) -> float:
    return sum(terms) / (1 if config.pair_weighting is PairWeighting.SUM else max(len(terms), 1))


def pairs(
    rewards: list[float], ranks: list[int], scores: list[float], config: ObjectiveConfig
) -> float:
    terms = []
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] > ranks[j]:
            i, j = j, i
        wanted = {
            Margin.NONE: 0.0,
            Margin.RANKS: (ranks[j] - ranks[i]) / max(max(ranks) - 1, 1),
            Margin.SCORES: scores[i] - scores[j],
        }[config.margin]
        difference = rewards[i] - rewards[j] - config.margin_scale * wanted
        is_tie, strength = ranks[i] == ranks[j], config.tie_strength
        if config.ties is Ties.IGNORE:
            if not is_tie:
                e = config.label_smoothing
                terms.append(
                    -(1 - e) * math.log(sigmoid(difference)) - e * math.log(sigmoid(-difference))
                )
            continue
        # Strengths π_i and π_j, of which only the quotient matters.
        a, b = math.exp(difference), 1.0
        if config.ties is Ties.RAO_KUPPER:
            theta = 1 + strength
            win, lose = a / (a + theta * b), b / (b + theta * a)
            tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
        else:
            root = strength * math.sqrt(a * b)
            win, lose, tie = (part / (a + b + root) for part in (a, b, root))
        assert win + lose + tie == pytest.approx(1)
        terms.append(-math.log(tie if is_tie else win))
    return reduced(terms, config)


def literal(
    rewards: list[float], ranks: list[int], _: list[float], config: ObjectiveConfig
) -> float:
    """As some texts print the loss of InstructGPT: −Σ σ(r_w − r_l)."""
    return reduced(
        [
            -sigmoid(rewards[i] - rewards[j])
            for i, j in permutations(range(len(ranks)), 2)
            if ranks[i] < ranks[j]
        ],
        config,
    )


def plackett_luce(
    rewards: list[float], ranks: list[int], _: list[float], config: ObjectiveConfig
) -> float:
    """The best is chosen among all, the next among the rest, and so on."""
    terms = []
    for k in range(len(ranks)):
        if ranks[k] < max(ranks):
            rest = [
                math.exp(rewards[other]) for other in range(len(ranks)) if ranks[other] >= ranks[k]
            ]
            terms.append(-math.log(math.exp(rewards[k]) / sum(rest)))
    return reduced(terms, config)


def regression(
    rewards: list[float], _: list[int], scores: list[float], config: ObjectiveConfig
) -> float:
    return sum((reward - score) ** 2 for reward, score in zip(rewards, scores, strict=True)) / len(
        rewards
    )


CASES: dict[str, tuple[Reference, dict[str, Any]]] = {
    "pairs": (pairs, {}),
    "pairs, summed": (pairs, {"pair_weighting": PairWeighting.SUM}),
    "rank margin": (pairs, {"margin": Margin.RANKS, "margin_scale": 2.0}),
    "score margin": (pairs, {"margin": Margin.SCORES, "margin_scale": 0.3}),
    "label smoothing": (pairs, {"label_smoothing": 0.1}),
    "rao-kupper": (pairs, {"ties": Ties.RAO_KUPPER, "tie_strength": 0.5}),
    "davidson": (pairs, {"ties": Ties.DAVIDSON, "tie_strength": 2.0}),
    "davidson with margin": (pairs, {"ties": Ties.DAVIDSON, "margin": Margin.RANKS}),
    "sigmoid": (literal, {"objective": ObjectiveName.SIGMOID}),
    "plackett-luce": (plackett_luce, {"objective": ObjectiveName.PLACKETT_LUCE}),
    "regression": (regression, {"objective": ObjectiveName.REGRESSION}),
}


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[list[float], list[int], list[float]]:
    """(rewards, ranks, scores), the ranks being those of the scores, dense, with ties."""
    K = draw(st.integers(2, 9))
    rewards = draw(st.lists(st.floats(-5, 5), min_size=K, max_size=K))
    scores = draw(st.lists(st.integers(-3, 3).map(float), min_size=K, max_size=K))
    order = sorted(set(scores), reverse=True)
    return rewards, [order.index(score) + 1 for score in scores], scores


@pytest.mark.parametrize("case", CASES)
@given(group=labelled_groups(), centring=st.sampled_from([0.0, 0.2]))
def test_value_and_gradient_are_those_of_the_formula(
    case: str, group: tuple[list[float], list[int], list[float]], centring: float
) -> None:
    formula, options = CASES[case]
    config = ObjectiveConfig(**options, centring=centring)
    rewards, ranks, scores = group

    def expected(values: list[float]) -> float:
        return formula(values, ranks, scores, config) + centring * sum(
            value**2 for value in values
        ) / len(values)

    tensor = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    loss = ranking_loss(config)(tensor, Labels(torch.tensor(ranks), torch.tensor(scores)))
    assert loss.item() == pytest.approx(expected(rewards), rel=1e-9, abs=1e-9)
    loss.backward()
    step = 1e-5
    for k in range(len(rewards)):
        up, down = (
            [value + sign * step * (place == k) for place, value in enumerate(rewards)]
            for sign in (1, -1)
        )
        assert tensor.grad[k].item() == pytest.approx(
            (expected(up) - expected(down)) / (2 * step), rel=1e-4, abs=1e-7
        )


ENTRIES: dict[str, Objective] = {
    name.value: entry for name, entry in (*OBJECTIVES.items(), *TIE_MODELS.items())
}


def test_every_objective_and_tie_model_has_an_entry_a_function_of_its_own_and_a_case() -> None:
    assert OBJECTIVES.keys() == set(ObjectiveName)
    assert TIE_MODELS.keys() == set(Ties) - {Ties.IGNORE}
    assert len({entry.loss for entry in ENTRIES.values()}) == len(ENTRIES)
    tested = [objective_of(ObjectiveConfig(**options)) for _, options in CASES.values()]
    names = {field.name for field in fields(ObjectiveConfig)}
    for name, entry in ENTRIES.items():
        assert callable(pkgutil.resolve_name(entry.loss)), name
        assert entry in tested, f"no case compares {name} with its formula"
        assert entry.summary and entry.source and entry.meaning.endswith("."), name
        assert set(entry.options) <= names, name


def test_a_config_is_read_back_from_a_report() -> None:
    config = ObjectiveConfig(ties=Ties.DAVIDSON, tie_strength=0.5)
    plain = {"objective": "pairs", "pair_weighting": "mean", "ties": "davidson", "margin": "none"}
    numbers = {"tie_strength": 0.5, "margin_scale": 1.0, "label_smoothing": 0.0, "centring": 0.0}
    report = {**plain, **numbers, "text_regulariser": 0.0, "learning_rate": 1e-3}
    assert objective_from_plain(report) == config


@given(labelled_groups())
def test_the_default_is_the_loss_that_evaluations_report(
    group: tuple[list[float], list[int], list[float]],
) -> None:
    rewards, ranks, scores = torch.tensor(group[0]), torch.tensor(group[1]), torch.tensor(group[2])
    torch.testing.assert_close(
        ranking_loss(ObjectiveConfig())(rewards, Labels(ranks, scores)), kwise_loss(rewards, ranks)
    )


@pytest.mark.parametrize("case", CASES)
def test_far_apart_rewards_have_a_finite_loss_and_gradient(case: str) -> None:
    rewards = torch.tensor([-1e4, 1e4, 0.0, 0.0], requires_grad=True)
    labels = Labels(torch.tensor([1, 3, 2, 2]), torch.tensor([2.0, 0.0, 1.0, 1.0]))
    loss = ranking_loss(ObjectiveConfig(**CASES[case][1]))(rewards, labels)
    loss.backward()
    assert loss.isfinite() and rewards.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"objective": ObjectiveName.SIGMOID, "margin": Margin.RANKS},
            "--margin has no effect with --objective sigmoid; it is an option of --objective pairs",
        ),
        (
            {"objective": ObjectiveName.REGRESSION, "ties": Ties.DAVIDSON},
            "--ties has no effect with --objective regression",
        ),
        (
            {"objective": ObjectiveName.PLACKETT_LUCE, "label_smoothing": 0.1},
            "--label-smoothing has no effect with --objective plackett-luce",
        ),
        (
            {"objective": ObjectiveName.PLACKETT_LUCE, "pair_weighting": PairWeighting.SUM},
            "plackett-luce; it is an option of --objective pairs and sigmoid",
        ),
        ({"ties": Ties.DAVIDSON, "label_smoothing": 0.1}, "exclude each other"),
        ({"label_smoothing": 0.5}, "--label-smoothing is 0.5; it must be at most 0.49"),
        (
            {"margin_scale": 2.0},
            "--margin-scale has no effect with --margin none; give --margin ranks or",
        ),
        (
            {"tie_strength": 2.0},
            "--tie-strength has no effect with --ties ignore; give --ties rao-kupper or",
        ),
        ({"centring": math.inf}, "--centring is inf; it must be at most 1000000.0"),
        ({"centring": math.nan}, "--centring is nan; it must be at least 0"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        TrainConfig(data="d", model="m", output=Path("o"), **options)


def test_scores_are_kept_and_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    scored = (
        b'{"prompt": "p", "responses": [{"text": "a", "score": 0.5}, {"text": "b", "score": 4}]}'
    )
    ranking = parse_ranking(scored, origin="x:1")
    assert (ranking.scores, ranking.ranks) == ((0.5, 4), (2, 1))
    assert replace(ranking, scores=None) != ranking
    data = tmp_path / "data.jsonl"
    data.write_bytes(
        scored
        + b'\n{"prompt": "p", "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}'
    )
    for options in ({"objective": ObjectiveName.REGRESSION}, {"margin": Margin.SCORES}):
        config = TrainConfig(data=str(data), model="nowhere", output=tmp_path / "out", **options)
        with pytest.raises(
            RankingsError, match=r"data\.jsonl:2: responses: --.* needs scores; these have ranks"
        ):
            train(config)


def test_a_ranking_that_is_one_tie_is_learnt_from_where_ties_say_something(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """It was refused with --ties too, which is about what ties say."""
    tied = (
        '{"prompt": "Equal?", "responses": '
        '[{"text": "yes no no no", "rank": 1}, {"text": "no no no yes", "rank": 1}]}'
    )
    path = tmp_path / "data.jsonl"
    path.write_text(data.read_text(encoding="utf-8") + f"\n{tied}\n", encoding="utf-8")
    settings = run_options(path, tiny_checkpoint, tmp_path / "out", epochs=0.1)
    with pytest.raises(
        RankingsError,
        match=r"data\.jsonl:31: responses: all 2 are tied, so there is no pair to learn from",
    ):
        train(TrainConfig(**settings))
    report = train(TrainConfig(**settings, ties=Ties.DAVIDSON))
    assert report.rankings_by_size == {2: 1, 5: 30}
    assert learns_from_ties(ObjectiveConfig(objective=ObjectiveName.REGRESSION))
    assert not learns_from_ties(ObjectiveConfig(objective=ObjectiveName.PLACKETT_LUCE))


def test_an_evaluation_leaves_rankings_without_a_pair_out() -> None:
    prompt = (Message(role="user", content="?"),)
    pair = Ranking(prompt=prompt, responses=("a", "b"), ranks=(1, 2))
    evaluation = evaluate(
        lambda _: [1.0, 0.0], [pair, Ranking(prompt=prompt, responses=("a", "b"), ranks=(1, 1))]
    )
    assert evaluation.num_pairs == 1
    assert evaluation.loss == pytest.approx(-math.log(sigmoid(1.0)))
