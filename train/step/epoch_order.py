"""The order of an epoch's rankings: by seed and epoch alone, so that one process, several, and a
resumed one go the same way.
"""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """A permutation of the rankings' indices for each epoch, filled up with the index
    `num_rankings` to whole rounds.

    A round is what all processes compute at a time. accelerate deals batches out in turn, so the
    rankings of an optimizer step are the same however many processes share them. Where it would
    fill a last round with rankings of the epoch's beginning, which would count twice, the index
    behind the last stands for a filler that counts nothing.

    Args:
        per_round: 1 where one process computes, so that a last pass is smaller instead of filled.
    """

    def __init__(self, num_rankings: int, *, seed: int, per_round: int) -> None:
        self._num_rankings, self._seed, self._per_round = num_rankings, seed, per_round
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by `Trainer` before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_rankings / self._per_round) * self._per_round

    def __iter__(self) -> Iterator[int]:
        yield from (
            np.random.default_rng([self._seed, self._epoch])
            .permutation(self._num_rankings)
            .tolist()
        )
        yield from [self._num_rankings] * (len(self) - self._num_rankings)
