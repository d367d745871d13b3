"""The groups that `score_many` has in flight: what to send, what is owed, what comes next, how long to wait.

Decides and does nothing: no gRPC calls, threads or tasks, so that the blocking client and the asyncio client only move its
messages. One stream after another carries a flight:

    start      all that is unanswered goes on the new stream
    send       new groups, while the window has room and the server has refused nothing
    accept     one reply; a refusal (see retry.py) leaves the group unanswered
    pop        the next result in input order
    stranded   the stream owes nothing more, and what it refused must go on another one, after `pause_s`

Results come in input order. The window counts groups taken from the source and not yet handed out, so one slow group
holds at most a window of results in memory.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from time import monotonic

from kwise.client import messages
from kwise.client.results import RewardServiceError
from kwise.client.retry import Backoff, is_retried
from kwise.errors import InvalidRequest, KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import ScoredGroup

# Below the 256 groups of a stream that the server works on at once: it always reads what we send.
WINDOW_GROUPS = 128
# What grpc.aio reports, in place of the server's status, when the stream ended while a message was being written.
_BROKEN_WRITE = ("INTERNAL", "Internal error from Core")


def is_break(error: RewardServiceError) -> bool:
    """Whether a stream that ended like this may be followed by another."""
    return is_retried(error) or (error.code, error.message) == _BROKEN_WRITE


class Flight:
    """`requests` is drawn from as the window allows, an error among them being its own result; `timeout_s` is the longest
    wait without a result; `target` is for messages."""

    def __init__(
        self,
        requests: Iterator[pb.ScoreRequest | InvalidRequest],
        timeout_s: float,
        window_groups: int = WINDOW_GROUPS,
        now: Callable[[], float] = monotonic,
        target: str = "",
    ) -> None:
        self._requests = requests
        self._timeout_s = timeout_s
        self._window_groups = window_groups
        self._now = now
        self._target = target
        self._refusal: RewardServiceError | None = None  # the last since there was a result
        self._exhausted = False
        self._taken = 0
        self._popped = 0
        self._unanswered: dict[str, pb.ScoreStreamRequest] = {}
        self._owed: set[str] = set()  # ids that the present stream is still to answer
        self._results: dict[str, ScoredGroup | KwiseError] = {}
        self._backoff = Backoff()
        self._progress_at = now()

    @property
    def done(self) -> bool:
        return self._exhausted and not self._unanswered and not self._results

    @property
    def stranded(self) -> bool:
        return not self._owed

    @property
    def remaining_s(self) -> float:
        """Seconds until there has been no result for `timeout_s`; the time that the caller takes is not counted."""
        return self._progress_at + self._timeout_s - self._now()

    def start(self) -> list[pb.ScoreStreamRequest]:
        self._owed = set(self._unanswered)
        return list(self._unanswered.values())

    def send(self) -> list[pb.ScoreStreamRequest]:
        if self._exhausted or len(self._owed) < len(self._unanswered):
            return []
        room = self._window_groups - (self._taken - self._popped)
        new, taken_before = [], self._taken
        for request in islice(self._requests, room):
            id_ = str(self._taken)
            self._taken += 1
            if isinstance(request, InvalidRequest):
                self._results[id_] = request
                continue
            message = pb.ScoreStreamRequest(id=id_, request=request)
            self._unanswered[id_] = message
            self._owed.add(id_)
            new.append(message)
        self._exhausted = self._taken - taken_before < room
        if new:
            self._progress_at = self._now()
        return new

    def accept(self, reply: pb.ScoreStreamResponse) -> None:
        self._owed.discard(reply.id)
        failure = (
            messages.response_error(reply.error) if reply.WhichOneof("result") == "error" else None
        )
        if failure is not None and is_retried(failure):
            self.refused(failure)
            return
        if self._unanswered.pop(reply.id, None) is None:
            return  # answered already
        self._results[reply.id] = failure or messages.scored_group(reply.response)
        self._backoff.reset()
        self._refusal = None
        self._progress_at = self._now()

    def refused(self, error: RewardServiceError) -> None:
        """Remember why there is no result, for the time that there may never be one."""
        self._refusal = error

    def pop(self) -> ScoredGroup | KwiseError | None:
        """The next result in input order, or None while it is not there."""
        if (result := self._results.pop(str(self._popped), None)) is not None:
            self._popped += 1
        return result

    def resume(self) -> None:
        """The caller is back from what it did with a result."""
        self._progress_at = self._now()

    def pause_s(self) -> float:
        """How long to wait before the next stream.

        Raises:
            RewardServiceError: DEADLINE_EXCEEDED, no result for `timeout_s`.
        """
        if self.remaining_s <= 0:
            raise self.out_of_time()
        advice_s = self._refusal.retry_after_s if self._refusal else None
        return min(self._backoff.pause_s(advice_s), max(self.remaining_s, 0))

    def out_of_time(self) -> RewardServiceError:
        problem = f"no group was answered for {self._timeout_s:g} s; {len(self._unanswered)} are unanswered"
        if self._refusal is not None:
            problem += f"; the last refusal was {self._refusal.code}: {self._refusal.message}"
        return RewardServiceError("DEADLINE_EXCEEDED", problem, target=self._target)
