"""The choice of the next batch: a synchronous policy without clock, event loop or runtime.

A batch starts with the item that fair queueing puts first, and is filled up to `max_batch_tokens`
rows with those of the next 512 items that suit it, its own priority first. Items with one prompt go
together, whichever requests and clients they come from: OpenRLHF, verl and others send each
response in a request of its own, and their prompt would be computed in several batches.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Protocol, TypeVar

from kwise.engine.model.batch_builder import NewBatchBuilder
from kwise.engine.schedule.fair_queue import FairQueue, Flow, Waiting

# The number of items that are considered for a batch. It bounds the time of the policy itself.
_WINDOW = 512
# Stop after 32 sequences that do not fit once the batch is 75 % full.
_FILL_THRESHOLD, _MAX_SKIPS = 0.75, 32


class TokenSequence(Waiting, Protocol):
    """A token sequence that waits for the model. Its cost is its number of tokens."""

    @property
    def sort_key(self) -> bytes:
        """The token ids as bytes that sort like them; see `kwise.engine.trie.sort_key`."""

    @property
    def prompt_key(self) -> bytes:
        """The beginning of `sort_key` that all responses to the same prompt share."""


T = TypeVar("T", bound=TokenSequence)
_Choice = tuple[list[tuple[T, Flow]], list[int]]
"""A batch, with the flow that reaches each item first, and the rows that each item adds."""


class Policy(Protocol[T]):
    """The order in which waiting sequences are batched. The batcher is its only caller."""

    def __len__(self) -> int:
        """Return the number of sequences that wait."""

    def __contains__(self, item: T) -> bool: ...

    def add(self, item: T, flow: Flow) -> None:
        """Let `item` wait for one more request, in that request's flow."""

    def remove(self, item: T, flow: Flow) -> bool:
        """Undo one `add`. Return True if nobody waits for the item any more."""

    def take(self, cached: Sequence[bytes] = ()) -> list[T]:
        """Remove and return the next batch; empty if nothing waits.

        cached: sort keys, ascending, of the prefixes that cost the session no rows.
        """

    def peek(self, cached: Sequence[bytes] = (), excluded: AbstractSet[T] = frozenset()) -> list[T]:
        """Return the batch that `take` would return if `excluded` did not wait."""

    def clear(self) -> list[T]:
        """Remove and return all sequences that wait."""


class FairBatching(Policy[T]):
    """Serves clients fairly, and batches sequences that share a prefix or a length.

    A sequence of more than `max_batch_tokens` gets a batch of its own. Responses to a very long
    prompt may exceed the limit up to twofold, so that the prompt is computed once.
    """

    def __init__(self, new_batch: NewBatchBuilder, *, max_batch_tokens: int) -> None:
        self._new_batch = new_batch
        self._max_batch_tokens = max_batch_tokens
        self._queue: FairQueue[T] = FairQueue()
        # The last batch that was peeked at, and its `cached`, until the queue changes: a choice
        # among 512 sequences takes 1 ms, and `take` comes when the model is idle.
        self._peeked: tuple[Sequence[bytes], _Choice[T]] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, item: T) -> bool:
        return item in self._queue

    def add(self, item: T, flow: Flow) -> None:
        self._peeked = None
        self._queue.add(item, flow)

    def remove(self, item: T, flow: Flow) -> bool:
        self._peeked = None
        return self._queue.remove(item, flow)

    def clear(self) -> list[T]:
        self._peeked = None
        return self._queue.clear()

    def take(self, cached: Sequence[bytes] = ()) -> list[T]:
        if self._peeked is not None and self._peeked[0] is cached:
            taken, costs = self._peeked[1]
        else:
            taken, costs = self._choose(cached, frozenset())
        self._peeked = None
        if taken:
            self._queue.take(taken, costs)
        return [item for item, _ in taken]

    def peek(self, cached: Sequence[bytes] = (), excluded: AbstractSet[T] = frozenset()) -> list[T]:
        choice = self._choose(cached, excluded)
        if not excluded:
            self._peeked = cached, choice
        return [item for item, _ in choice[0]]

    def _choose(self, cached: Sequence[bytes], excluded: AbstractSet[T]) -> _Choice[T]:
        in_order = (pair for pair in self._queue.in_order() if pair[0] not in excluded)
        waiting = list(islice(in_order, _WINDOW))
        if not waiting:
            return [], []
        first, *others = waiting
        batch, taken = self._new_batch(cached), [first]
        batch.add(first[0].sort_key)
        costs = [batch.rows]
        priority = first[1].priority
        arrivals: dict[bytes, int] = {}
        for item, _ in waiting:
            arrivals.setdefault(item.prompt_key, len(arrivals))
        others.sort(
            key=lambda candidate: (
                candidate[1].priority is not priority,
                batch.distance(candidate[0].sort_key),
                arrivals[candidate[0].prompt_key],
            )
        )
        num_skipped = 0
        for candidate in others:
            key, rows = candidate[0].sort_key, batch.rows
            if batch.fits(key, self._max_batch_tokens):
                batch.add(key)
                taken.append(candidate)
                costs.append(batch.rows - rows)
            elif rows > _FILL_THRESHOLD * self._max_batch_tokens:
                num_skipped += 1
                if num_skipped == _MAX_SKIPS:
                    break
        return taken, costs
