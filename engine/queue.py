"""What waits for the model, and which of it runs next: a plain synchronous policy, without clock, tasks or runtime.

A batch starts with the oldest work and is filled, up to `max_batch_tokens` rows, with what suits it among the next in
line. Bulk work counts as if it had arrived `BULK_DELAY_S` later, so it yields to interactive work and cannot starve. Work
whose future is done (nobody waits for it any more) is skipped before it costs anything.
"""

from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from kwise.engine.conversation import EncodedSequence
from kwise.engine.filling import new_filling
from kwise.engine.types import Priority

BULK_DELAY_S = 5.0
# How far down the line a batch looks for company: bounds the policy's own time.
_WINDOW = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A sequence that the model has run: raw reward, seconds in the queue, seconds of its batch."""

    raw: float
    queue_s: float
    model_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """One sequence that waits. `group` tells which submission it came with, `arrival_s` when, on the batcher's clock."""

    sequence: EncodedSequence
    group: int
    priority: Priority
    arrival_s: float
    future: "Future[Finished]"

    @property
    def turn_s(self) -> float:
        return self.arrival_s + (BULK_DELAY_S if self.priority is Priority.BULK else 0.0)


class WorkQueue:
    """Sequences in the order of their turns. `num_tokens` counts the tokens that wait, shared prefixes as often as they
    are sent; `num_abandoned` the sequences that were skipped because nobody waited any more."""

    def __init__(self, *, layout: str, max_batch_tokens: int) -> None:
        self._layout = layout
        self._max_batch_tokens = max_batch_tokens
        self._lines: dict[Priority, deque[Work]] = {priority: deque() for priority in Priority}
        self.num_tokens = 0
        self.num_abandoned = 0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def add(self, work: Work) -> None:
        self._lines[work.priority].append(work)
        self.num_tokens += len(work.sequence.token_ids)

    def take(self, cached: Sequence[bytes] = ()) -> list[Work]:
        """The next batch, removed from the queue; empty where nothing is left to do.

        `cached`: sort keys, ascending, of prefixes that the session knows already and that cost it no rows.

        A sequence longer than `max_batch_tokens` runs by itself.
        """
        self._drop_abandoned()
        waiting = list(islice(merge(*self._lines.values(), key=lambda work: work.turn_s), _WINDOW))
        if not waiting:
            return []
        filling, batch = new_filling(self._layout, cached), [waiting[0]]
        filling.add(waiting[0].sequence.token_ids)
        for work in sorted(waiting[1:], key=lambda work: filling.distance(work.sequence.token_ids)):
            if filling.rows_with(work.sequence.token_ids) <= self._max_batch_tokens:
                filling.add(work.sequence.token_ids)
                batch.append(work)
        taken = set(map(id, batch))
        self._keep(lambda work: id(work) not in taken)
        return batch

    def promote(self, futures: "Iterable[Future[Finished]]") -> None:
        """Give bulk work the turn that it would have as interactive work, from its own arrival on."""
        bulk, interactive = self._lines[Priority.BULK], self._lines[Priority.INTERACTIVE]
        wanted = set(futures)
        promoted = [work for work in bulk if work.future in wanted]
        for work in promoted:
            work.priority = Priority.INTERACTIVE
        self._lines[Priority.BULK] = deque(work for work in bulk if work.priority is Priority.BULK)
        self._lines[Priority.INTERACTIVE] = deque(merge(interactive, promoted, key=lambda work: work.turn_s))

    def _drop_abandoned(self) -> None:
        before = len(self)
        self._keep(lambda work: not work.future.done())
        self.num_abandoned += before - len(self)

    def _keep(self, wanted: Callable[[Work], bool]) -> None:
        for priority, line in self._lines.items():
            self._lines[priority] = deque(work for work in line if wanted(work))
        self.num_tokens = sum(len(work.sequence.token_ids) for line in self._lines.values() for work in line)
