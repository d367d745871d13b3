"""The order of an epoch's rankings.

It depends on seed and epoch alone, so that one process, several, and a resumed run agree.
"""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """A permutation of the indices of the rankings for each epoch, filled up to whole rounds.

    A round is what all processes compute at a time. accelerate deals batches out in turn, so a step
    has the same rankings for any number of processes. It would fill a last round with rankings from
    the beginning of the epoch, which would count twice; here the index `num_rankings` stands for a
    filler with a weight of 0.

    Args:
        per_round: rankings of a round; 1 for a single process, whose last pass may be smaller.
    """

    def __init__(self, num_rankings: int, *, seed: int, per_round: int) -> None:
        self._num_rankings, self._seed, self._per_round = num_rankings, seed, per_round
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Trainer calls this before each one."""
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
