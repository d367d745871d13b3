"""Features of responses: the hidden states that a frozen backbone gives them, in a file.

One pass over the rankings takes minutes on a CPU; afterwards a linear reward head is trained in a
second. The states of several depths are kept, because the first layers stand for a smaller model.

Dimensions: N rankings; K responses of a ranking; T tokens of a conversation; D hidden size.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kwise.errors import ConfigError
from kwise.train.model.batch.layout import PaddedLayout, TrieLayout
from kwise.train.model.batch.trie_attention import trie_mask
from kwise.train.model.precision import bf16_backbone
from kwise.train.model.reward_model import RewardModel, load_reward_model
from kwise.train.model.tokenizer import token_ids
from kwise.train.rankings.schema import Ranking
from kwise.train.step.text_regulariser import prompt_length

HEAD, MEAN = "head", "mean"
# Seven depths, or fewer in a model of few layers, from a fifth of all layers to all of them.
_DEPTHS = tuple(0.2 + 0.8 * step / 6 for step in range(7))
_SAVE_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The states of N rankings of K responses.

    Attributes:
        states: float32[N, K, D] by (pooling, layer). Pooling is `HEAD`, the token at which a reward
            head reads, or `MEAN`, the mean over the tokens of the response.
        num_layers: the layers of the backbone, the highest layer of `states`.
        num_parameters: the parameters of the backbone, embeddings included.
        num_cut: responses whose conversation was cut at the limit of the model.
    """

    states: Mapping[tuple[str, int], Tensor]
    num_layers: int
    num_parameters: int
    num_cut: int

    @property
    def layers(self) -> list[int]:
        """The layers of `states`, ascending."""
        return sorted({layer for _, layer in self.states})


def features_of(
    rankings: Sequence[Ranking], model: str, path: Path, fingerprint: str, *, bf16: bool
) -> Features:
    """Return the features of rankings, read from `path` or computed and written there.

    A file that an earlier call left unfinished is continued.

    Args:
        rankings: each has the same number of responses.
        model: a language model or reward model; it is loaded only if rankings are missing.
        path: a `.npz` file.
        fingerprint: names the rankings, so that a file of other rankings is not read.
        bf16: compute the matmuls of the backbone in bf16.

    Raises:
        ConfigError: the file is of other rankings, or the model computes one conversation at a time
            only.
    """
    arrays = _read(path, fingerprint)
    missing = rankings[len(arrays["num_cut"]) if arrays else 0 :]
    if missing:
        reward_model = load_reward_model(model)
        parts = [arrays] if arrays else []
        for index, part in enumerate(_computed(reward_model, missing, bf16=bf16), start=1):
            parts.append(part)
            if index % _SAVE_EVERY == 0 or index == len(missing):
                arrays = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
                parts = [arrays]
                _write(path, fingerprint, reward_model, arrays)
                print(f"{path.name}: {len(arrays['num_cut'])} of {len(rankings)} rankings")
    with np.load(path) as written:
        return Features(
            states={
                (name.split("_")[0], int(name.split("_")[1])): torch.from_numpy(written[name])
                for name in written.files
                if name.startswith((HEAD, MEAN))
            },
            num_layers=int(written["num_layers"]),
            num_parameters=int(written["num_parameters"]),
            num_cut=int(written["num_cut"].sum()),
        )


def _computed(
    reward_model: RewardModel, rankings: Sequence[Ranking], *, bf16: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of one ranking after another, each with a first dimension of 1."""
    model = reward_model.model.eval()
    num_layers = model.config.num_hidden_layers
    layers = sorted({max(round(num_layers * depth), 1) for depth in _DEPTHS})
    in_precision = bf16_backbone(model, model.device) if bf16 else contextlib.nullcontext()
    with torch.inference_mode(), in_precision:
        for ranking in rankings:
            yield _arrays(reward_model, ranking, layers)


def _arrays(
    reward_model: RewardModel, ranking: Ranking, layers: Sequence[int]
) -> dict[str, np.ndarray]:
    tokenizer, limit = reward_model.tokenizer, reward_model.max_tokens
    whole = [token_ids(tokenizer, talk) for talk in ranking.conversations()]
    sequences = [ids[:limit] for ids in whole]
    starts = [
        min(prompt_length(tokenizer, ranking.prompt, tuple(ids)), len(ids) - 1) for ids in sequences
    ]
    reads_first = not isinstance(reward_model.layout, TrieLayout)
    arrays = {}
    for layer, states_KTD in zip(
        layers, _token_states(reward_model, sequences, layers), strict=True
    ):
        read = [states_TD[0 if reads_first else -1] for states_TD in states_KTD]
        means = [s_TD[start:].mean(0) for s_TD, start in zip(states_KTD, starts, strict=True)]
        arrays[f"{HEAD}_{layer}"] = torch.stack(read)[None].numpy()
        arrays[f"{MEAN}_{layer}"] = torch.stack(means)[None].numpy()
    num_cut = sum(len(ids) < len(all_) for ids, all_ in zip(sequences, whole, strict=True))
    return {**arrays, "num_cut": np.array([num_cut])}


def _token_states(
    reward_model: RewardModel, sequences: Sequence[Sequence[int]], layers: Sequence[int]
) -> list[list[Tensor]]:
    """Return the states of each sequence's tokens, float32[T, D], for each layer."""
    layout, backbone = reward_model.layout, reward_model.model.base_model
    tensors = layout.lay_out(sequences)
    if isinstance(layout, TrieLayout):
        ends, last_nodes = tensors["ends"], tensors["last_nodes"].tolist()
        states = backbone(
            input_ids=tensors["input_ids"],
            position_ids=tensors["position_ids"],
            attention_mask=trie_mask(ends),
            output_hidden_states=True,
        ).hidden_states
        paths = [(ends[: last + 1] > last).nonzero()[:, 0] for last in last_nodes]
        return [[states[layer][0, path].float() for path in paths] for layer in layers]
    if isinstance(layout, PaddedLayout):
        states = backbone(**tensors, output_hidden_states=True).hidden_states
        lengths = [len(ids) for ids in sequences]
        return [
            [s_TD[:n].float() for s_TD, n in zip(states[i], lengths, strict=True)] for i in layers
        ]
    raise ConfigError(f"--models: {reward_model.model.config.model_type}: its layout is {layout}")


def _read(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    with np.load(path) as written:
        if str(written["fingerprint"]) != fingerprint:
            raise ConfigError(f"--states: {path} is of other rankings; name another folder")
        return {
            name: written[name]
            for name in written.files
            if name == "num_cut" or name.startswith((HEAD, MEAN))
        }


def _write(
    path: Path, fingerprint: str, reward_model: RewardModel, arrays: Mapping[str, Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    backbone = reward_model.model.base_model
    np.savez(
        partial,
        **arrays,
        fingerprint=np.array(fingerprint),
        num_layers=np.array(reward_model.model.config.num_hidden_layers),
        num_parameters=np.array(sum(weights.numel() for weights in backbone.parameters())),
    )
    partial.replace(path)
