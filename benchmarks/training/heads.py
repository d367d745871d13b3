"""Heads over one backbone: does their standard deviation tell wrong pairs from right ones?

An RL run would like to skip the pairs that its reward model orders wrongly. Every reward model
offers the size of the margin for that: it is trained so that σ(margin) is the probability of being
right. M heads offer their disagreement as well. The question is what it adds, and which share of
the prompts each head should learn from.

Physics: on a frozen backbone heads are independent models, because a head's gradient does not
depend on the others (tests/train/run/test_heads.py), so M heads without a prompt in common are the
ensemble of M linear models. Hidden states are computed once; then a head is a vector, a pair is the
difference of two states, and a thousand heads take minutes. For each seed the prompts are split
anew, heads learn from one part with the loss, the optimizer and the draw of prompts of `kwise
train`, and pairs of the other part are judged. AUROC: 0.5 is chance. Pairs of a ranking depend on
each other, so look at the spread over seeds, which is that of splits.

Dimensions: K responses; P pairs of a ranking; D hidden size; H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.training.head_states import RankingStates, states_of
from kwise.benchmarks.training.options import HeadsBenchConfig
from kwise.train.data.read import read_rankings
from kwise.train.model.head import init_head
from kwise.train.rankings.split import split_by_prompt
from kwise.train.report.members import accuracy, evaluate_members, margins_of, sureness
from kwise.train.step.head_masks import head_mask, num_learning

_RANKINGS_PER_STEP = 4  # the default of kwise train
_WARMUP = 0.1
_DROPPED = (0.1, 0.25, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of the heads of one split, on the pairs of its held-out prompts.

    Attributes:
        accuracy: of the mean of the heads.
        accuracy_of_a_head: the mean over the heads.
        auroc_of_std, auroc_of_margin, auroc_of_ratio: see `MembersEvaluation`.
        correlation: of a response's standard deviation with the share of its pairs that the mean
            orders wrongly. A single response has a standard deviation, but no margin.
        kept: the accuracy on the pairs that are left without the least sure ones: by the figure
            ("std", "margin", "ratio") and the dropped share.
    """

    accuracy: float
    accuracy_of_a_head: float
    auroc_of_std: float
    auroc_of_margin: float
    auroc_of_ratio: float
    correlation: float
    kept: dict[str, dict[str, float]]


def run(config: HeadsBenchConfig) -> None:
    """Print a table, and write the figures to `config.json`."""
    torch.set_num_threads(config.threads)
    rankings = read_rankings(config.rankings, allow_tied=False, progress=print)
    path = Path(config.states) if config.states else None
    items = states_of(rankings, config.model, path, config.num_rankings, bf16=config.bf16)
    num_pairs = sum(item.ranking.num_pairs() for item in items)
    print(f"{len(items)} rankings, {num_pairs} pairs; means and standard deviations over seeds")
    print(_row(_HEADS, *_COLUMNS))
    results = []
    for num_heads in config.heads:
        for num in sorted({num_learning(num_heads, share) for share in config.shares}):
            figures = [
                measure(items, num_heads, num / num_heads, seed, config)
                for seed in range(config.seeds)
            ]
            results.append(
                {"heads": num_heads, "learning": num, "seeds": [asdict(one) for one in figures]}
            )
            print(_summary(f"{num_heads}, {num}", figures))
    print("\naccuracy on the pairs that are left without the least sure ones")
    print(_row(_HEADS, "by", "all", *(f"-{share:.0%}" for share in _DROPPED)))
    for result in results:
        _print_kept(result)
    if config.json:
        write_results(
            config.json,
            "heads",
            config,
            {"num_rankings": len(items), "num_pairs": num_pairs, "results": results},
        )


def measure(
    items: Sequence[RankingStates],
    num_heads: int,
    share: float,
    seed: int,
    config: HeadsBenchConfig,
) -> Figures:
    """Split, train and judge with one seed."""
    training, _ = split_by_prompt([item.ranking for item in items], config.test_fraction, seed)
    learned_from = set(training)
    weight_HD = train_heads(
        [item for item in items if item.ranking in learned_from],
        num_heads,
        share,
        seed,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
    )
    held_out = [item for item in items if item.ranking not in learned_from]
    trained_on = torch.cat([item.states_KD for item in items if item.ranking in learned_from])
    means_H = trained_on.mean(0) @ weight_HD.T  # each head's zero, as in kwise train
    rewards = [item.states_KD @ weight_HD.T - means_H for item in held_out]
    return judged(rewards, [torch.tensor(item.ranking.ranks) for item in held_out])


def train_heads(
    items: Sequence[RankingStates],
    num_heads: int,
    share: float,
    seed: int,
    *,
    epochs: int,
    learning_rate: float,
) -> Tensor:
    """Return the weights of heads trained on frozen states, [H, D], as `kwise train` would."""
    head = nn.Linear(items[0].states_KD.shape[1], num_heads, bias=False)
    init_head(head, seed)
    differences = [_differences(item) for item in items]
    masks = [
        torch.tensor(head_mask(item.ranking.prompt, num_heads, share, seed)).float()
        for item in items
    ]
    num_steps = epochs * math.ceil(len(items) / _RANKINGS_PER_STEP)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / max(_WARMUP * num_steps, 1), (1 + math.cos(math.pi * step / num_steps)) / 2
        ),
    )
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for step in np.array_split(order, math.ceil(len(items) / _RANKINGS_PER_STEP)):
            optimizer.zero_grad()
            pair_losses([differences[i] for i in step], [masks[i] for i in step], head).backward()
            optimizer.step()
            schedule.step()
    return head.weight.detach()


def pair_losses(differences: Sequence[Tensor], masks: Sequence[Tensor], head: nn.Linear) -> Tensor:
    """Return the mean of `batch_losses` over the rankings of a step, for a head without bias.

    Args:
        differences: the better state minus the worse one, of each pair, [P, D].
        masks: 1 for the heads that learn from the ranking, [H].
    """
    losses = [
        -(F.logsigmoid(head(differences_PD)).mean(0) * mask_H).sum() / mask_H.sum()
        for differences_PD, mask_H in zip(differences, masks, strict=True)
    ]
    return torch.stack(losses).mean()


def judged(rewards: Sequence[Tensor], ranks: Sequence[Tensor]) -> Figures:
    """Return the figures of the heads' rewards, [K, H] for each ranking, and of its ranks, [K]."""
    pairs = list(zip(rewards, ranks, strict=True))
    margins_PH = torch.cat([margins_of(*pair) for pair in pairs]).double()
    mean_P, std_P = margins_PH.mean(1), margins_PH.std(1, correction=0)
    evaluation = evaluate_members([margins_PH])
    sure = {"std": -std_P, "margin": mean_P.abs(), "ratio": sureness(mean_P, std_P)}
    aurocs = (evaluation.auroc_of_std, evaluation.auroc_of_margin, evaluation.auroc_of_ratio)
    std, margin, ratio = (math.nan if auroc is None else auroc for auroc in aurocs)
    return Figures(
        accuracy=accuracy(mean_P),
        accuracy_of_a_head=float(np.mean(evaluation.accuracies)),
        auroc_of_std=std,
        auroc_of_margin=margin,
        auroc_of_ratio=ratio,
        correlation=_correlation(pairs),
        kept={
            name: {
                f"{dropped:.0%}": accuracy(mean_P[scores_P.argsort()[int(dropped * len(mean_P)) :]])
                for dropped in _DROPPED
            }
            for name, scores_P in sure.items()
        },
    )


def _correlation(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the correlation of the responses' standard deviations with their wrong pairs."""
    stds, wrong = [], []
    for rewards_KH, ranks_K in pairs:
        reward_K = rewards_KH.mean(1)
        signs_KK = (ranks_K[None, :] - ranks_K[:, None]).sign()  # 1 if i is better than j
        wrong_KK = signs_KK * (reward_K[:, None] - reward_K[None, :]) < 0
        stds.append(rewards_KH.std(1, correction=0))
        wrong.append(wrong_KK.sum(1) / (signs_KK != 0).sum(1).clamp(min=1))
    return float(torch.corrcoef(torch.stack([torch.cat(stds), torch.cat(wrong)]))[0, 1])


def _differences(item: RankingStates) -> Tensor:
    """Return the better state minus the worse one, of each pair, [P, D]."""
    return margins_of(item.states_KD, torch.tensor(item.ranking.ranks))


_HEADS = "heads, of which learn"
_COLUMNS = (
    "accuracy",
    "of a head",
    "AUROC std",
    "margin",
    "ratio",
    "ratio - margin",
    "correlation",
)


def _summary(name: str, figures: Sequence[Figures]) -> str:
    fields = ("accuracy", "accuracy_of_a_head", "auroc_of_std", "auroc_of_margin", "auroc_of_ratio")
    columns = [_spread([getattr(one, field) for one in figures]) for field in fields]
    gains = _spread([one.auroc_of_ratio - one.auroc_of_margin for one in figures])
    return _row(name, *columns, gains, _spread([one.correlation for one in figures]))


def _print_kept(result: dict[str, Any]) -> None:
    for name in ("std", "margin", "ratio"):
        kept = [one["kept"][name] for one in result["seeds"]]
        columns = [_spread([one[f"{dropped:.0%}"] for one in kept]) for dropped in _DROPPED]
        everything = _spread([one["accuracy"] for one in result["seeds"]])
        print(_row(f"{result['heads']}, {result['learning']}", name, everything, *columns))


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def _row(first: str, *columns: str) -> str:
    return f"{first:<22}" + "".join(f"{column:>16}" for column in columns)
