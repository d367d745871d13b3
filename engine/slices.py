"""Long work on the event loop, done in slices between which other requests run.

A thread would not help: the work is Python code and holds the interpreter's lock.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")

# Items that are worked on between two pauses, so that a slice takes 1 to 5 ms.
SLICE_ITEMS = 1024  # making or converting a reward or a comparison takes 1 to 5 us
CHEAP_SLICE_ITEMS = 8192  # checking or converting a pair takes 0.3 us
TOKEN_IDS_SLICE_ITEMS = 128  # converting or hashing a response of 100 token ids takes 4 to 8 us
# Token ids that are converted between two pauses, whatever the number of sequences.
SLICE_TOKEN_IDS = 1 << 14

# A unary call takes several turns of the event loop. With a pause of no length between two slices,
# each of these turns would wait for a slice: a cached call waited up to 48 ms instead of 6 ms.
PAUSE_S = 0.001


async def in_slices(items: Iterable[_T], size: int = SLICE_ITEMS) -> AsyncIterator[list[_T]]:
    """Yield `items` in lists of at most `size`, and let other requests run between two lists."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
        if len(part) == size:
            await asyncio.sleep(PAUSE_S)


async def in_slices_of_ids(
    items: Iterable[_T], num_ids: Callable[[_T], int]
) -> AsyncIterator[list[_T]]:
    """Yield `items` in lists, and let other requests run between two lists.

    Args:
        items: sequences of token ids, or objects that have one.
        num_ids: returns the number of token ids of an item. The items of a list have about
            `SLICE_TOKEN_IDS` together.
    """
    part: list[_T] = []
    total = 0
    for item in items:
        part.append(item)
        total += num_ids(item)
        if total >= SLICE_TOKEN_IDS or len(part) >= TOKEN_IDS_SLICE_ITEMS:
            yield part
            part, total = [], 0
            await asyncio.sleep(PAUSE_S)
    if part:
        yield part
