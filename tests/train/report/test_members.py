"""What members add is measured by definitions that plain Python can check."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kwise.train.rankings.schema import Ranking
from kwise.train.report.evaluation import evaluate
from kwise.train.report.members import accuracy, auroc, evaluate_members, margins_of, sureness
from kwise.types import Message

PROMPT = (Message(role="user", content="Why?"),)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_auroc_is_the_share_of_positives_above_negatives(items: list[tuple[int, bool]]) -> None:
    positives = [score for score, positive in items if positive]
    negatives = [score for score, positive in items if not positive]
    measured = auroc(
        torch.tensor([score for score, _ in items]), torch.tensor([flag for _, flag in items])
    )
    if not positives or not negatives:
        assert measured is None
        return
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    assert measured == pytest.approx(wins / (len(positives) * len(negatives)), abs=1e-12)


def test_margins_are_those_of_pairs_with_different_ranks_the_better_first() -> None:
    rewards_KM = torch.tensor([[1.0, 10.0], [3.0, 20.0], [0.0, 50.0]])
    margins = margins_of(rewards_KM, torch.tensor([2, 1, 2]))  # the first and the last are tied
    assert margins.tolist() == [[2.0, 10.0], [3.0, -30.0]]


def test_an_offset_of_a_member_changes_nothing() -> None:
    torch.manual_seed(0)
    rewards_KM, ranks_K = torch.randn(9, 5, dtype=torch.float64), torch.arange(1, 10)
    offset = torch.tensor([5.0, -3.0, 0.0, 100.0, 1.0], dtype=torch.float64)
    one, other = (
        evaluate_members([margins_of(rewards, ranks_K)])
        for rewards in (rewards_KM, rewards_KM + offset)
    )
    assert one.auroc_of_std is not None
    assert other.accuracies == one.accuracies and other.std == pytest.approx(one.std, abs=1e-12)
    assert other.auroc_of_std == pytest.approx(one.auroc_of_std, abs=1e-12)


def test_members_that_disagree_on_the_wrong_pairs_alone_have_an_auroc_of_1() -> None:
    margins = torch.tensor([[1.0, 1.1], [2.0, 2.1], [-3.0, 1.0]])
    evaluation = evaluate_members([margins])
    assert evaluation.accuracies == (2 / 3, 1.0)
    assert evaluation.auroc_of_std == 1.0 and evaluation.auroc_of_margin == 1.0


def test_members_that_agree_exactly_are_sure_of_every_pair_but_a_tie() -> None:
    sure = sureness(torch.tensor([0.0, -2.0]), torch.zeros(2)).tolist()
    assert sure == [0.0, math.inf] and accuracy(torch.tensor([1.0, 0.0])) == 0.75


def test_an_evaluation_is_of_the_mean_and_names_its_members() -> None:
    ranking = Ranking(prompt=PROMPT, responses=("a", "b", "c"), ranks=(1, 2, 3))
    rewards_KM = torch.tensor([[3.0, 1.0], [2.0, 2.0], [0.0, 3.0]])
    together = evaluate(lambda _: rewards_KM, [ranking])
    alone = evaluate(lambda _: rewards_KM.mean(1), [ranking])
    assert together.members is not None and alone.members is None
    assert together.members.accuracies == (1.0, 0.0)
    assert (together.loss, together.accuracy) == (alone.loss, alone.accuracy)
