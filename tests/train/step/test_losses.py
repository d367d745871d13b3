"""The loss equals that of explicit pairs, in value and gradient."""

from itertools import product

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from kwise.train.step.losses import Labels, batch_losses, kwise_loss


def pairs_of(ranks: list[int]) -> list[tuple[int, int]]:
    return [(w, l) for w, l in product(range(len(ranks)), repeat=2) if ranks[w] < ranks[l]]


def explicit_loss(rewards: Tensor, ranks: list[int]) -> Tensor:
    """One pair after another, as the formula is written."""
    pairs = pairs_of(ranks)
    return -sum((F.logsigmoid(rewards[w] - rewards[l]) for w, l in pairs), torch.zeros(())) / max(
        len(pairs), 1
    )


@st.composite
def rankings(draw: st.DrawFn, bound: float = 1e4) -> tuple[list[float], list[int]]:
    K = draw(st.integers(2, 9))
    rewards = draw(st.lists(st.floats(-bound, bound), min_size=K, max_size=K))
    return rewards, draw(st.lists(st.integers(1, K), min_size=K, max_size=K))


@given(rankings())
@settings(deadline=None)
def test_value_and_gradient_are_those_of_explicit_pairs(
    ranking: tuple[list[float], list[int]],
) -> None:
    values, ranks = ranking
    ours = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    loss, expected = kwise_loss(ours, torch.tensor(ranks)), explicit_loss(theirs, ranks)
    torch.testing.assert_close(loss.detach(), expected.detach().double(), rtol=1e-12, atol=1e-12)
    loss.backward()
    if pairs_of(ranks):
        expected.backward()
    torch.testing.assert_close(
        ours.grad, theirs.grad if pairs_of(ranks) else torch.zeros_like(ours)
    )


@given(rankings(bound=50.0), st.randoms(use_true_random=False), st.floats(-100, 100))
@settings(deadline=None)
def test_neither_order_nor_a_common_shift_changes_the_loss(
    ranking: tuple[list[float], list[int]], random: object, shift: float
) -> None:
    values, ranks = ranking
    order = list(range(len(ranks)))
    random.shuffle(order)  # type: ignore[attr-defined]
    rewards = torch.tensor(values, dtype=torch.float64)
    moved = kwise_loss(rewards[order] + shift, torch.tensor(ranks)[order])
    torch.testing.assert_close(
        moved, kwise_loss(rewards, torch.tensor(ranks)), rtol=1e-9, atol=1e-9
    )


def test_tied_responses_do_not_push_each_other() -> None:
    rewards = torch.tensor([3.0, -1.0], requires_grad=True)
    kwise_loss(rewards, torch.tensor([1, 1])).backward()
    assert torch.equal(rewards.grad, torch.zeros(2))


def test_extreme_rewards_give_a_finite_loss_and_gradient() -> None:
    rewards = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    loss = kwise_loss(rewards, torch.tensor([1, 2, 3]))
    loss.backward()
    assert loss.isfinite() and rewards.grad.isfinite().all()


def test_each_ranking_of_a_batch_has_the_loss_that_it_has_alone() -> None:
    rewards, ranks = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5]), torch.tensor([1, 2, 3, 1, 2])
    expected = torch.stack([kwise_loss(rewards[:2], ranks[:2]), kwise_loss(rewards[2:], ranks[2:])])
    labels = Labels(ranks, torch.full((5,), torch.nan))
    losses = batch_losses(
        rewards[:, None],
        labels,
        [2, 3],
        torch.ones(2, 1),
        lambda rewards_K, labels_K: kwise_loss(rewards_K, labels_K.ranks_K),
    )
    torch.testing.assert_close(losses, expected)


def test_nine_passes_give_the_gradient_of_36_separate_pairs() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config)
    input_ids_KT, ranks = torch.randint(1, 64, (9, 12)), [3, 1, 9, 2, 8, 4, 7, 5, 6]

    def gradient(loss: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together = gradient(kwise_loss(model(input_ids_KT).logits.squeeze(-1), torch.tensor(ranks)))
    pairs = pairs_of(ranks)
    assert len(pairs) == 36
    separate = torch.zeros_like(together)
    for winner, loser in pairs:
        rewards = model(input_ids_KT[[winner, loser]]).logits.squeeze(-1)
        separate += gradient(-F.logsigmoid(rewards[0] - rewards[1])) / len(pairs)
    assert (together - separate).norm() <= 1e-4 * separate.norm()
