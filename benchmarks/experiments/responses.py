"""The responses of all rankings as tensors, and the split of prompts into training and test.

Dimensions: N prompts; K responses to each; P pairs.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kwise.errors import ConfigError
from kwise.train.rankings.open_file import open_decompressed
from kwise.train.rankings.schema import Ranking

NUM_FOLDS = 5
_SMALLEST = 5e-7  # half of the last digit of scores with six digits, where a logit must end
_NEAR = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """K responses to each of N prompts.

    Attributes:
        ranks: int64[N, K], 1 is the best.
        quality: float32[N, K], the logit of the score, or the score itself if it is not a
            probability, with a mean of 0 and a standard deviation of 1 within each prompt.
        logit: the same before it is standardised, divided by one number for all prompts, so that
            some prompts have better responses than others. Its mean is 0.
        lengths: float32[N, K], characters.
        systems: int64[N, K], the number of the system that wrote a response; None if the file does
            not say so.
        fingerprint: the hash of the file.
    """

    ranks: Tensor
    quality: Tensor
    logit: Tensor
    lengths: Tensor
    systems: Tensor | None
    fingerprint: str

    def is_near(self) -> Tensor:
        """Return whether two responses differ in length by at most a quarter, bool[N, K, K]."""
        shorter = torch.minimum(self.lengths[:, :, None], self.lengths[:, None, :])
        longer = torch.maximum(self.lengths[:, :, None], self.lengths[:, None, :])
        return shorter >= _NEAR * longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Indices of prompts. Any first part of `training` is a random training set of that size."""

    training: Tensor
    test: Tensor


def split(num_prompts: int, seed: int) -> Split:
    """Return the split of a seed. The test parts of five seeds in a row are all prompts, once."""
    order = np.random.default_rng([seed // NUM_FOLDS]).permutation(num_prompts)
    fold = np.arange(num_prompts) % NUM_FOLDS == seed % NUM_FOLDS
    training = np.random.default_rng([seed, 1]).permutation(order[~fold])
    return Split(training=torch.from_numpy(training), test=torch.from_numpy(np.sort(order[fold])))


def responses_of(path: str, rankings: Sequence[Ranking]) -> Responses:
    """Return the tensors of rankings that were read from a file.

    Raises:
        ConfigError: they differ in their number of responses, have no scores, or are too few.
    """
    sizes = {len(ranking.responses) for ranking in rankings}
    if len(sizes) != 1:
        raise ConfigError(f"RANKINGS {path}: all rankings must have as many responses as the first")
    scores = [ranking.scores for ranking in rankings if ranking.scores is not None]
    if len(scores) != len(rankings):
        raise ConfigError(f"RANKINGS {path}: each response needs a score, not only a rank")
    if len(rankings) < 4 * NUM_FOLDS:
        raise ConfigError(f"RANKINGS {path}: has {len(rankings)} rankings; give at least 20")
    logit = _logit(torch.tensor(scores, dtype=torch.float64))
    centred = logit - logit.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return Responses(
        ranks=torch.tensor([ranking.ranks for ranking in rankings]),
        quality=(centred / spread.clamp(min=1e-6)).float(),
        logit=((logit - logit.mean()) / spread.mean()).float(),
        lengths=torch.tensor([[float(len(text)) for text in r.responses] for r in rankings]),
        systems=_systems(path, len(rankings)),
        fingerprint=hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16],
    )


def _logit(scores: Tensor) -> Tensor:
    if scores.min() < 0 or scores.max() > 1:
        return scores
    return scores.clamp(_SMALLEST, 1 - _SMALLEST).logit()


def _systems(path: str, num_rankings: int) -> Tensor | None:
    """Return the numbers of the systems, which training ignores as `source` of each response."""
    with open_decompressed(path) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    names = [[response.get("source") for response in row["responses"]] for row in rows]
    known = sorted({name for row in names for name in row if name is not None})
    if len(rows) != num_rankings or any(name is None for row in names for name in row):
        return None
    return torch.tensor([[known.index(name) for name in row] for row in names])
