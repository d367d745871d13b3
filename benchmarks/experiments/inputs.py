"""What the experiments read: the responses, and the features of each model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kwise.benchmarks.experiments.features import MEAN, Features
from kwise.benchmarks.experiments.head import Head, Labelled, train_head
from kwise.benchmarks.experiments.responses import Responses, Split, split
from kwise.benchmarks.experiments.scoring import counts_of
from kwise.train.options.objectives import ObjectiveConfig
from kwise.train.rankings.schema import Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The data of all cells.

    Attributes:
        responses: of all rankings.
        models: directories or files of the models, by name.
        features: by the name of the model; the first one is the model of most experiments.
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

    def split(self, seed: int) -> Split:
        """Return the split of a seed."""
        return split(self.num_prompts, seed)

    def states(self, model: str) -> Tensor:
        """Return the states of a model that most experiments use, float32[N, K, D].

        They are means over the response's tokens at three fifths of the depth, a choice that is
        made once for all models: the experiment `models` shows what other depths give.
        """
        features = self.features[model]
        layers = features.layers
        return features.states[MEAN, layers[len(layers) // 2]]

    def main_states(self) -> Tensor:
        """Return `states` of the first model."""
        return self.states(next(iter(self.features)))


def ranks_of(quality: Tensor) -> Tensor:
    """Return ranks, int64[…, K], 1 for the highest quality, equal for equal qualities."""
    better = quality[..., None, :] > quality[..., :, None]
    return better.sum(-1) + 1


def measured(inputs: Inputs, head: Head, states: Tensor, test: Tensor) -> dict[str, Any]:
    """Return the results of a head on test prompts, for the line of a cell."""
    counts = counts_of(head.rewards(states[test]), inputs.responses, test)
    return {"right": counts.right, "right_near": counts.right_near, "penalty": head.penalty}


def learned(
    inputs: Inputs, groups: list[Labelled], objective: ObjectiveConfig, seed: int
) -> dict[str, Any]:
    """Train a head on the main model's states, and return its results on the seed's test prompts.

    The order of the training prompts is random; see `Split`.
    """
    head = train_head(groups, objective)
    return measured(inputs, head, inputs.main_states(), inputs.split(seed).test)
