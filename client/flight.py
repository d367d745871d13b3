"""The state of one `score_many` call: groups to send, replies to expect, and the next result.

A `Flight` makes no gRPC calls and has no threads or tasks. The blocking and the asyncio client
share it and only move its messages. One stream after another carries it:

    start      all unanswered groups go on the new stream
    send       new groups, while the window has room and the server has refused nothing
    accept     one reply; a refusal (see retry.py) leaves the group unanswered
    pop        the next result, in input order
    is_over    the stream has answered all its groups; refused ones go on the next stream, after
               `pause_s`

The window counts the groups that were taken from the source and whose results were not yet
returned, so that one slow group holds at most a window of results in memory.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from time import monotonic

from kwise.client import messages
from kwise.client.errors import RewardServiceError
from kwise.client.retry import Backoff, is_retried
from kwise.errors import InvalidRequest, KwiseError, Status
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import ScoredGroup

# Below the 256 groups of a stream that the server works on at once, so that it always reads.
WINDOW_GROUPS = 128
# gRPC's message if a stream ended while grpc.aio was writing to it. gRPC then hides the server's
# status and reports INTERNAL, as for a bug of the server. Only the message differs.
_BROKEN_WRITE = "Internal error from Core"


def is_interrupted(error: RewardServiceError) -> bool:
    """Return whether a stream that ended with `error` may be followed by another one."""
    if error.status is Status.INTERNAL:
        return error.message == _BROKEN_WRITE
    return is_retried(error)


class Flight:
    """The groups of one `score_many` call.

    Args:
        groups: the groups to score, drawn from as the window allows. An error among them is its own
            result. Empty for a caller that draws groups itself, and gives them to `add`.
        timeout_s: the longest wait without a result, in seconds.
        window_groups: the largest number of groups that are drawn ahead of the results returned.
        now: a clock, in seconds.
        target: the server's address, for messages.
    """

    def __init__(
        self,
        groups: Iterator[pb.Group | InvalidRequest],
        timeout_s: float,
        window_groups: int = WINDOW_GROUPS,
        now: Callable[[], float] = monotonic,
        target: str = "",
    ) -> None:
        self._groups = groups
        self._timeout_s = timeout_s
        self._window_groups = window_groups
        self._now = now
        self._target = target
        self._refusal: RewardServiceError | None = None  # the last one since there was a result
        self._is_exhausted = False
        self._num_taken = 0
        self._num_popped = 0
        self._unanswered: dict[str, pb.ScoreStreamRequest] = {}
        self._on_stream: set[str] = set()  # ids that the present stream has not answered yet
        self._results: dict[str, ScoredGroup | KwiseError] = {}
        self._backoff = Backoff()
        self._progress_at = now()

    @property
    def done(self) -> bool:
        """True once every group has been answered and returned."""
        return self._is_exhausted and not self._unanswered and not self._results

    @property
    def is_over(self) -> bool:
        """True once the present stream has answered everything that it was sent."""
        return not self._on_stream

    @property
    def remaining_s(self) -> float:
        """The seconds left to wait for the next result. The caller's own time does not count."""
        return self._progress_at + self._timeout_s - self._now()

    def start(self) -> list[pb.ScoreStreamRequest]:
        """Return the messages that a new stream starts with: all unanswered groups."""
        self._on_stream = set(self._unanswered)
        return list(self._unanswered.values())

    @property
    def room(self) -> int:
        """The number of groups that may be drawn now: none while the server refuses groups."""
        if self._is_exhausted or len(self._on_stream) < len(self._unanswered):
            return 0
        return self._window_groups - (self._num_taken - self._num_popped)

    def send(self) -> list[pb.ScoreStreamRequest]:
        """Return messages of new groups, as many as the window has room for."""
        new, room, num_taken_before = [], self.room, self._num_taken
        for group in islice(self._groups, room):
            new += self.add(group)
        if self._num_taken - num_taken_before < room:
            self.end()
        return new

    def add(self, group: pb.Group | InvalidRequest) -> list[pb.ScoreStreamRequest]:
        """Return the message of a group that was drawn; none for an error, which is its result."""
        id_ = str(self._num_taken)
        self._num_taken += 1
        if isinstance(group, InvalidRequest):
            self._results[id_] = group
            return []
        message = pb.ScoreStreamRequest(id=id_, group=group)
        self._unanswered[id_] = message
        self._on_stream.add(id_)
        self._progress_at = self._now()
        return [message]

    def end(self) -> None:
        """Mark the source as exhausted."""
        self._is_exhausted = True

    def accept(self, reply: pb.ScoreStreamResponse) -> None:
        """Take one reply. A group that was refused for now stays unanswered."""
        self._on_stream.discard(reply.id)
        is_error = reply.WhichOneof("result") == "error"
        failure = messages.from_error(reply.error) if is_error else None
        if failure is not None and is_retried(failure):
            self.refused(failure)
            return
        if self._unanswered.pop(reply.id, None) is None:
            return  # answered already
        self._results[reply.id] = failure or messages.from_scored_group(reply.scored)
        self._backoff.reset()
        self._refusal = None
        self._progress_at = self._now()

    def refused(self, error: RewardServiceError) -> None:
        """Keep the latest refusal, for the error if the time runs out."""
        self._refusal = error

    def pop(self) -> ScoredGroup | KwiseError | None:
        """Return the next result in input order, or None if it is not there yet."""
        if (result := self._results.pop(str(self._num_popped), None)) is not None:
            self._num_popped += 1
        return result

    def resume(self) -> None:
        """Restart the clock, because the caller has finished its work on a result."""
        self._progress_at = self._now()

    def pause_s(self) -> float:
        """Return the seconds to wait before the next stream.

        Raises:
            RewardServiceError: no result arrived within `timeout_s` (DEADLINE_EXCEEDED).
        """
        if self.remaining_s <= 0:
            raise self.out_of_time()
        advice_s = self._refusal.retry_after_s if self._refusal else None
        return min(self._backoff.pause_s(advice_s), max(self.remaining_s, 0))

    def out_of_time(self) -> RewardServiceError:
        """Return the error of a flight that has had no result for `timeout_s`."""
        problem = (
            f"no group was answered for {self._timeout_s:g} s; "
            f"{len(self._unanswered)} are unanswered"
        )
        if self._refusal is not None:
            problem += f"; the last refusal was {self._refusal.code}: {self._refusal.message}"
        return RewardServiceError("DEADLINE_EXCEEDED", problem, target=self._target)
