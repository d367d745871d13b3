"""Made-up keys and values for tests: each row is a function of the whole prefix that it belongs to.

A row in the wrong place therefore has the wrong value.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from kwise.engine.trie import Int64, sort_key

# The widths differ, as those of keys and values do in some models.
WIDTHS = (1, 3)
BYTES_PER_TOKEN = 4 * sum(WIDTHS)
NO_STATES = [np.empty((0, width), np.float32) for width in WIDTHS]


def states_of(prefixes: Sequence[Int64]) -> list[NDArray[np.float32]]:
    """Return one array per width: float32[len(prefixes), W], a row for each prefix."""
    codes = np.array(
        [crc32(sort_key(prefix)) >> 8 for prefix in prefixes], np.float32
    )  # 24 bits are exact
    return [np.repeat(codes[:, None] + width, width, axis=1) for width in WIDTHS]


def states_along(token_ids: Int64) -> list[NDArray[np.float32]]:
    """Return one array per width: float32[len(token_ids), W], a row for each token."""
    return states_of([token_ids[: n + 1] for n in range(len(token_ids))])
