"""Simulated annotators, who see the quality of responses through a bias, a scale and noise.

An annotator's impression of response k is b + d + s · (q_k + ε_k). The bias b and the scale s
belong to the annotator, the drift d to one prompt (the annotator is stricter after lunch), and the
noise ε to one response. b, log s, d and ε are normal with a mean of 0. The annotator ranks the
responses by impression, or turns each impression into a score from 1 to 7.

Dimensions: N prompts; K responses.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MIDDLE, _LOWEST, _HIGHEST = 4.0, 1.0, 7.0
_POINTS_PER_DEVIATION = 1.25  # without bias, 98 % of normal qualities lie between 1 and 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Standard deviations, in those of the quality within a prompt.

    Attributes:
        bias: of b over annotators.
        scale: of log s over annotators.
        drift: of d over prompts.
        noise: of ε over responses.
    """

    bias: float = 0.0
    scale: float = 0.0
    drift: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels of N prompts, each by one annotator.

    Attributes:
        impressions: float32[N, K].
        annotators: int64[N].
    """

    impressions: Tensor
    annotators: Tensor

    def seven_points(self) -> Tensor:
        """Return the scores on a scale of 1 to 7, float32[N, K]."""
        return (_MIDDLE + _POINTS_PER_DEVIATION * self.impressions).round().clamp(_LOWEST, _HIGHEST)


def label(quality: Tensor, disagreement: Disagreement, num_annotators: int, seed: int) -> Labels:
    """Return the labels of prompts with qualities float32[N, K], shared out among annotators."""
    random = np.random.default_rng([seed, 2])
    num_prompts, num_responses = quality.shape
    bias = random.normal(0, 1, num_annotators) * disagreement.bias
    scale = np.exp(random.normal(0, 1, num_annotators) * disagreement.scale)
    drift = random.normal(0, 1, num_prompts) * disagreement.drift
    noise = random.normal(0, 1, (num_prompts, num_responses)) * disagreement.noise
    annotators = random.permutation(np.arange(num_prompts) % num_annotators)
    shift, factor = bias[annotators] + drift, scale[annotators]
    impressions = shift[:, None] + factor[:, None] * (quality.numpy() + noise)
    return Labels(
        impressions=torch.from_numpy(impressions).float(), annotators=torch.from_numpy(annotators)
    )


def standardised(scores: Tensor, annotators: Tensor) -> Tensor:
    """Return scores, float32[N, K], with a mean of 0 and a deviation of 1 for each annotator."""
    result = scores.clone()
    for annotator in annotators.unique():
        own = scores[annotators == annotator]
        result[annotators == annotator] = (own - own.mean()) / own.std(correction=0).clamp(min=1e-6)
    return result
