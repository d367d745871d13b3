"""What waits for the model, and which of it runs next: a plain synchronous policy, without clock, tasks or runtime.

A batch starts with whose turn it is (see turns.py) and is filled, up to `max_batch_tokens` rows, with what suits it among
the next in line, its own priority first. Work whose future is done (nobody waits for it any more) costs nothing.
"""

from asyncio import Future
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from kwise.engine.schedule.batch_builder import new_filling
from kwise.engine.schedule.fairness import Turns
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import key_length, sort_key
from kwise.types import Priority

# How far down the line a batch looks for company: bounds the policy's own time.
_WINDOW = 512
# And how many it passes by, nearly full, because they do not fit.
_NEARLY_FULL, _MISFITS = 0.75, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A sequence that the model has run: raw reward, seconds in the queue, seconds of its batch."""

    raw: float
    queue_s: float
    model_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Work:
    """One sequence that waits, for `client`. `arrival_s`: when it came, on the batcher's clock. `key`: its sort key."""

    sequence: EncodedSequence
    priority: Priority
    client: str
    arrival_s: float
    future: "Future[Finished]"
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.key = sort_key(self.sequence.token_ids)

    @property
    def cost(self) -> int:
        """Tokens, a shared prefix included: what the turn is thought to cost before it is taken."""
        return key_length(self.key)


class WorkQueue:
    """Sequences in the order of their turns. `num_tokens` counts the tokens that wait, shared prefixes as often as they
    are sent."""

    def __init__(self, *, layout: str, max_batch_tokens: int) -> None:
        self._layout = layout
        self._max_batch_tokens = max_batch_tokens
        self._turns: Turns[Work] = Turns()
        self._work_of: dict[Future[Finished], Work] = {}
        self._tokens_of: Counter[str] = Counter()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._work_of)

    def num_tokens_of(self, client: str) -> int:
        return self._tokens_of[client]

    def add(self, work: Work) -> None:
        self._turns.add(work)
        self._work_of[work.future] = work
        self._count(work, 1)

    def abandon(self, future: "Future[Finished]") -> bool:
        """Nobody waits for it any more. Says whether it was still in line."""
        if (work := self._work_of.get(future)) is None:
            return False
        self._turns.discard(work)
        self._forget(work)
        return True

    def take(self, cached: Sequence[bytes] = ()) -> list[Work]:
        """The next batch, removed from the queue; empty where nothing is left to do.

        `cached`: sort keys, ascending, of prefixes that the session knows already and that cost it no rows.

        A sequence longer than `max_batch_tokens` runs all the same, and one over half of that with such as share most of it, up to
        twice its own rows.
        """
        waiting = self._next_in_line()
        if not waiting:
            return []
        first, *others = waiting
        filling, batch = new_filling(self._layout, cached), [first]
        filling.add(first.key)
        costs = [filling.rows]
        others.sort(
            key=lambda work: (work.priority is not first.priority, filling.distance(work.key))
        )
        misfits = 0
        for work in others:
            rows = filling.rows
            if filling.fits(work.key, self._max_batch_tokens):
                filling.add(work.key)
                batch.append(work)
                costs.append(filling.rows - rows)
            elif (
                rows > _NEARLY_FULL * self._max_batch_tokens
                and (misfits := misfits + 1) == _MISFITS
            ):
                break
        self._turns.take(batch, costs)
        for work in batch:
            self._forget(work)
        return batch

    def hasten(self, future: "Future[Finished]", priority: Priority, client: str) -> None:
        """`client` waits for it too, with `priority`. See `Turns.hasten`."""
        if (work := self._work_of.get(future)) is not None:
            self._count(work, -1)
            self._turns.hasten(work, priority, client)
            self._count(work, 1)

    def clear(self) -> list[Work]:
        """Take out all that waits."""
        works = list(self._work_of.values())
        for work in works:
            self._turns.discard(work)
            self._forget(work)
        return works

    def _next_in_line(self) -> list[Work]:
        """The next `_WINDOW`, without those that nobody waits for: `abandon` will be told of them in a moment."""
        alive = (work for work in self._turns.in_order() if not work.future.done())
        return list(islice(alive, _WINDOW))

    def _forget(self, work: Work) -> None:
        del self._work_of[work.future]
        self._count(work, -1)

    def _count(self, work: Work, sign: int) -> None:
        self.num_tokens += sign * work.cost
        self._tokens_of[work.client] += sign * work.cost
        if not self._tokens_of[work.client]:
            del self._tokens_of[work.client]
