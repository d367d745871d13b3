"""The state of one `score_many` call: groups to send, replies to expect, and the next result.

A `Flight` makes no gRPC calls and has no threads or tasks. The blocking and the asyncio client
share it and only move its messages. Each server that a group's prompt is hashed to has a stream:

    send       new groups, and those that have to be sent again, by server
    accept     one reply; a refusal (see retry.py) leaves the group unanswered
    broken     a stream ended: what it has not answered is sent again
    pop        the next result, in input order
    wait_s     the longest wait for any of this

A server that refuses groups for now gets no new ones. Once its stream has answered all, the stream
is closed, and another one is opened after the pause that the server advised. A server that is away
(see several/servers.py) gives its groups to others at once.

The window counts the groups that were taken from the source and whose results were not yet
returned, so that one slow group holds at most a window of results in memory.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from time import monotonic

from kwise.client import messages
from kwise.client.errors import RewardServiceError
from kwise.client.retry import Backoff, is_retried
from kwise.client.several.servers import Servers
from kwise.errors import InvalidRequest, KwiseError, Status
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import ScoredGroup

# For each server. Below the 256 groups of a stream that it works on at once, so that it always
# reads.
WINDOW_GROUPS = 128
# gRPC's message if a stream ended while grpc.aio was writing to it. gRPC then hides the server's
# status and reports INTERNAL, as for a bug of the server. Only the message differs.
_BROKEN_WRITE = "Internal error from Core"


def is_interrupted(error: RewardServiceError) -> bool:
    """Return whether a stream that ended with `error` may be followed by another one."""
    if error.status is Status.INTERNAL:
        return error.message == _BROKEN_WRITE
    return is_retried(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unanswered:
    """A group without an answer, and what its prompt is hashed by."""

    message: pb.ScoreStreamRequest
    key: bytes


@dataclass(slots=True)
class _Stream:
    """The stream to one server.

    Attributes:
        ids: the groups that it has not answered yet.
        has_refused: it gets no more groups.
        advice_s: the server's last advice when to try again, in seconds; None if it gave none.
        opens_at: when the next stream to this server may be opened.
    """

    ids: set[str] = field(default_factory=set)
    has_refused: bool = False
    advice_s: float | None = None
    opens_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


class Flight:
    """The groups of one `score_many` call.

    Args:
        groups: the groups to score, drawn from as the window allows. An error among them is its own
            result. Empty for a caller that draws groups itself, and gives them to `add`.
        timeout_s: the longest wait without a result, in seconds.
        servers: chooses the server of each group.
        window_groups: the largest number of groups that are drawn ahead of the results returned,
            for each server.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        groups: Iterator[pb.Group | InvalidRequest],
        timeout_s: float,
        servers: Servers,
        window_groups: int = WINDOW_GROUPS,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._groups = groups
        self._timeout_s = timeout_s
        self._servers = servers
        self._window_groups = window_groups
        self._now = now
        self._refusal: RewardServiceError | None = None  # the last one since there was a result
        self._is_exhausted = False
        self._num_taken = 0
        self._num_popped = 0
        self._unanswered: dict[str, _Unanswered] = {}
        self._to_send: list[str] = []  # ids of unanswered groups that are on no stream
        self._streams: dict[str, _Stream] = {}  # by address
        self._results: dict[str, ScoredGroup | KwiseError] = {}
        self._progress_at = now()

    @property
    def done(self) -> bool:
        """True once every group has been answered and returned."""
        return self._is_exhausted and not self._unanswered and not self._results

    # Sending

    @property
    def room(self) -> int:
        """The number of groups that may be drawn now: none while the only server refuses groups."""
        if self._is_exhausted or (self._to_send and self._servers.alone):
            return 0
        num_servers = 1 if self._servers.alone else max(len(self._servers.addresses), 1)
        window = self._window_groups * num_servers
        return window - (self._num_taken - self._num_popped)

    def send(self) -> dict[str, list[pb.ScoreStreamRequest]]:
        """Draw as many groups as there is room for. Return what to send, by address."""
        room, num_taken_before = self.room, self._num_taken
        for group in islice(self._groups, room):
            self.add(group)
        if self._num_taken - num_taken_before < room:
            self.end()
        return self.assign()

    def add(self, group: pb.Group | InvalidRequest) -> None:
        """Take a group that was drawn. An error is its own result."""
        id_ = str(self._num_taken)
        self._num_taken += 1
        if isinstance(group, InvalidRequest):
            self._results[id_] = group
            return
        message = pb.ScoreStreamRequest(id=id_, group=group)
        key = self._servers.key(group.prompt)
        self._unanswered[id_] = _Unanswered(message=message, key=key)
        self._to_send.append(id_)
        self._progress_at = self._now()

    def end(self) -> None:
        """Mark the source as exhausted."""
        self._is_exhausted = True

    def assign(self) -> dict[str, list[pb.ScoreStreamRequest]]:
        """Return the messages that can be sent now, by address. Other groups go on waiting."""
        messages_by_address: dict[str, list[pb.ScoreStreamRequest]] = {}
        waiting = []
        for id_ in self._to_send:
            unanswered = self._unanswered[id_]
            address = self._servers.pick(unanswered.key)
            stream = None if address is None else self._streams.setdefault(address, _Stream())
            if address is None or stream is None or not self._is_open(stream):
                waiting.append(id_)
                continue
            stream.ids.add(id_)
            messages_by_address.setdefault(address, []).append(unanswered.message)
        self._to_send = waiting
        return messages_by_address

    def _is_open(self, stream: _Stream) -> bool:
        return not stream.has_refused and stream.opens_at <= self._now()

    # Receiving

    def accept(self, address: str, reply: pb.ScoreStreamResponse) -> bool:
        """Take one reply. A group that was refused for now stays unanswered.

        Returns:
            True if the stream is over: the caller closes it.
        """
        stream = self._streams[address]
        is_new = reply.id in stream.ids
        stream.ids.discard(reply.id)
        is_error = reply.WhichOneof("result") == "error"
        failure = messages.from_error(reply.error) if is_error else None
        if not is_new:
            return False
        if failure is not None and is_retried(failure):
            self._refusal, stream.advice_s = failure, failure.retry_after_s
            insort(self._to_send, reply.id, key=int)
            if not self._servers.failed(address, failure):
                stream.has_refused = True
        elif failure is None and not self._servers.answered(address, reply.scored.fingerprint):
            insort(self._to_send, reply.id, key=int)
        else:
            del self._unanswered[reply.id]
            self._results[reply.id] = failure or messages.from_scored_group(reply.scored)
            stream.backoff.reset()
            self._refusal = None
            self._progress_at = self._now()
        if stream.ids or not stream.has_refused:
            return False
        self._pause(stream)
        return True

    def broken(self, address: str, failure: RewardServiceError | None) -> None:
        """Take the end of a stream, and the error that it ended with.

        Raises:
            RewardServiceError: `failure`, if another stream would not help.
        """
        stream = self._streams[address]
        if failure is not None and stream.ids and not is_interrupted(failure):
            raise failure
        self._to_send = sorted([*self._to_send, *stream.ids], key=int)
        stream.ids.clear()
        stream.has_refused = False
        if failure is not None:
            self._refusal, stream.advice_s = failure, failure.retry_after_s
        if failure is None or not self._servers.failed(address, failure):
            self._pause(stream)

    def _pause(self, stream: _Stream) -> None:
        """Let the next stream to a server wait as long as the server advised."""
        stream.opens_at = self._now() + stream.backoff.pause_s(stream.advice_s)
        stream.has_refused, stream.advice_s = False, None

    def pop(self) -> ScoredGroup | KwiseError | None:
        """Return the next result in input order, or None if it is not there yet."""
        if (result := self._results.pop(str(self._num_popped), None)) is not None:
            self._num_popped += 1
        return result

    # Time

    def resume(self) -> None:
        """Restart the clock, because the caller has finished its work on a result."""
        self._progress_at = self._now()

    @property
    def wait_s(self) -> float | None:
        """The longest wait for a reply, until there is something else to do; None if there is not.

        While no group is unanswered, the time is the caller's own.
        """
        now = self._now()
        times = [inf if self._servers.next_s is None else now + self._servers.next_s]
        if self._unanswered:
            times.append(self._progress_at + self._timeout_s)
        if self._to_send:
            times += [stream.opens_at for stream in self._streams.values() if stream.opens_at > now]
        return None if min(times) == inf else max(min(times) - now, 0.0)

    def check_time(self) -> None:
        """Raise if there has been no result for too long.

        Raises:
            RewardServiceError: no result arrived within `timeout_s` (DEADLINE_EXCEEDED).
        """
        if not self._unanswered or self._now() < self._progress_at + self._timeout_s:
            return
        problem = (
            f"no group was answered for {self._timeout_s:g} s; "
            f"{len(self._unanswered)} are unanswered"
        )
        if not self._servers.usable and not self._servers.alone:
            problem += f"; no server is up: {self._servers.causes}"
        elif self._refusal is not None:
            problem += f"; the last refusal was {self._refusal.code}: {self._refusal.message}"
        raise RewardServiceError("DEADLINE_EXCEEDED", problem, target=self._servers.label)
