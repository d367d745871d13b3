"""States that tell tokens apart: each row is a function of the whole prefix that it stands for, so a wrong row is seen."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kwise.engine.trie import Int64, sort_key

# Unlike widths, as of keys and values in some models.
WIDTHS = (1, 3)
BYTES_PER_TOKEN = 4 * sum(WIDTHS)


def states_of(prefixes: Sequence[Int64]) -> list[NDArray[np.float32]]:
    """float32[len(prefixes), W] for each width."""
    codes = np.array(
        [crc32(sort_key(prefix)) >> 8 for prefix in prefixes], np.float32
    )  # 24 bits are exact
    return [np.repeat(codes[:, None] + width, width, axis=1) for width in WIDTHS]


def states_along(token_ids: Int64) -> list[NDArray[np.float32]]:
    """Of each token of the sequence: float32[len(token_ids), W] each."""
    return states_of([token_ids[: n + 1] for n in range(len(token_ids))])
