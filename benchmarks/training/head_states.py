"""The hidden states that a frozen backbone gives the responses of rankings, in a file.

They are what a head reads: a pass over the rankings takes half an hour on a CPU, and hundreds of
heads can then be trained on them in minutes. The file is written every ten rankings, and a later
call continues it.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kwise.errors import ConfigError
from kwise.train.model.batch.layout import trie_states
from kwise.train.model.precision import bf16_backbone
from kwise.train.model.reward_model import RewardModel, load_reward_model
from kwise.train.model.tokenizer import token_ids
from kwise.train.rankings.schema import Ranking

_SAVE_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingStates:
    """A ranking, and the hidden state of the last token of each response, float32[K, D]."""

    ranking: Ranking
    states_KD: Tensor


def states_of(
    rankings: Sequence[Ranking], model: str, path: Path | None, num_rankings: int, *, bf16: bool
) -> list[RankingStates]:
    """Return the states of `num_rankings` rankings, in a random order that is always the same.

    Args:
        rankings: all rankings.
        model: the model whose backbone is used; it is loaded only if states are missing.
        path: the file to read and to continue; None to compute all states.
        num_rankings: 0 for all rankings.
        bf16: compute the backbone's matmuls in bf16.

    Raises:
        ConfigError: the file belongs to other rankings, or the model's layout is not the trie.
    """
    order = list(range(len(rankings)))
    random.Random(0).shuffle(order)
    chosen = order[: num_rankings or len(order)]
    done = _read(path) if path is not None and path.is_file() else []
    known = [(index, len(rankings[index].responses)) for index in chosen[: len(done)]]
    if [(index, len(states)) for index, states in done[: len(chosen)]] != known:
        raise ConfigError(f"--states {path}: is of other rankings; name another file")
    missing = chosen[len(done) :]
    if missing:
        for index, states_KD in _computed(rankings, missing, model, bf16=bf16):
            done.append((index, states_KD))
            if path is not None and (len(done) % _SAVE_EVERY == 0 or index == missing[-1]):
                _write(path, done)
    return [
        RankingStates(ranking=rankings[index], states_KD=states)
        for index, states in done[: len(chosen)]
    ]


def _computed(
    rankings: Sequence[Ranking], indices: Sequence[int], model: str, *, bf16: bool
) -> Iterator[tuple[int, Tensor]]:
    reward_model = load_reward_model(model)
    if not reward_model.layout.has_token_states:
        raise ConfigError(f"MODEL {model}: its layout is {reward_model.layout}, not the trie")
    reward_model.model.eval()
    in_precision = (
        bf16_backbone(reward_model.model, reward_model.model.device)
        if bf16
        else contextlib.nullcontext()
    )
    with torch.no_grad(), in_precision:
        for index in indices:
            yield index, _states(reward_model, rankings[index])


def _states(reward_model: RewardModel, ranking: Ranking) -> Tensor:
    sequences = [token_ids(reward_model.tokenizer, talk) for talk in ranking.conversations()]
    tensors = reward_model.layout.lay_out(sequences)
    states_KD = trie_states(reward_model.model, tensors)[tensors["last_nodes"]]
    return states_KD.float()


def _read(path: Path) -> list[tuple[int, Tensor]]:
    with np.load(path) as arrays:
        parts = torch.from_numpy(arrays["states"]).split(arrays["sizes"].tolist())
        return list(zip(arrays["index"].tolist(), parts, strict=True))


def _write(path: Path, done: Sequence[tuple[int, Tensor]]) -> None:
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        index=np.array([index for index, _ in done]),
        sizes=np.array([len(states) for _, states in done]),
        states=torch.cat([states for _, states in done]).numpy(),
    )
    partial.replace(path)
