"""The inputs of the experiments: the responses, and the features of each model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kwise.benchmarks.experiments.features import HEAD, MEAN, Features
from kwise.benchmarks.experiments.head import Head, Labelled, train_head
from kwise.benchmarks.experiments.responses import Responses, Split, split
from kwise.benchmarks.experiments.scoring import counts_of
from kwise.train.options.objectives import ObjectiveConfig
from kwise.train.rankings.schema import Ranking

_DEPTH = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The data of all cells.

    Attributes:
        responses: of all rankings.
        models: directories or files of the models, by name; the first one is `main_model`.
        features: by the name of the model.
        bf16: whether backbones run in bf16.
    """

    rankings: Sequence[Ranking]
    responses: Responses
    models: Mapping[str, str]
    features: Mapping[str, Features]
    bf16: bool

    @property
    def num_prompts(self) -> int:
        """The number of prompts."""
        return len(self.responses.ranks)

    @property
    def num_training(self) -> int:
        """The number of prompts of the training part."""
        return len(self.split(0).training)

    @property
    def main_model(self) -> str:
        """The name of the model of most experiments: the first one."""
        return next(iter(self.models))

    def split(self, seed: int) -> Split:
        """Return the split of a seed."""
        return split(self.num_prompts, seed)

    def states(self, model: str, layer: int | None = None, pooling: str = MEAN) -> Tensor:
        """Return the features of the responses by a model, float32[N, K, D].

        A mean over tokens hides the length of the response, which a head at the last token can
        see. So the logarithm of the length is one more feature beside a mean.

        Args:
            model: its name.
            layer: one of its layers; None for three fifths of the depth, a choice that is made once
                for all models. The experiment `models` shows what other depths give.
            pooling: `MEAN` or `HEAD`.
        """
        features = self.features[model]
        if layer is None:
            layer = min(features.layers, key=lambda one: abs(one - _DEPTH * features.num_layers))
        states = features.states[pooling, layer]
        if pooling == HEAD:
            return states
        lengths = self.responses.lengths.clamp(min=1).log()
        return torch.cat([states, lengths[..., None]], dim=-1)

    def true_labels(self, states: Tensor, prompts: Tensor) -> Labelled:
        """Return the rankings of all responses to `prompts` in their true order.

        Args:
            states: features of all prompts, float32[N, K, D].
        """
        return Labelled(
            states=states[prompts],
            ranks=self.responses.ranks[prompts],
            scores=self.responses.quality[prompts],
        )

    def head(
        self, groups: Sequence[Labelled], objective: ObjectiveConfig, pooling: str = MEAN
    ) -> Head:
        """Return the head for rankings with features of this pooling; λ leaves the length free."""
        return train_head(groups, objective, num_free=1 if pooling == MEAN else 0)


def ranks_of(quality: Tensor) -> Tensor:
    """Return ranks, int64[…, K], 1 for the highest quality, equal for equal qualities."""
    better = quality[..., None, :] > quality[..., :, None]
    return better.sum(-1) + 1


def measured(inputs: Inputs, head: Head, states: Tensor, test: Tensor) -> dict[str, Any]:
    """Return the results of a head on test prompts, for the line of a cell."""
    counts = counts_of(head.rewards(states[test]), inputs.responses, test)
    return {"right": counts.right, "right_near": counts.right_near, "penalty": head.penalty}


def learned(
    inputs: Inputs, model: str, groups: list[Labelled], objective: ObjectiveConfig, seed: int
) -> dict[str, Any]:
    """Train a head on a model's states, and return its results on the seed's test prompts.

    The order of the training prompts is random; see `Split`.
    """
    head = inputs.head(groups, objective)
    return measured(inputs, head, inputs.states(model), inputs.split(seed).test)
