"""Every error that a request can meet. Each one has exactly one status, under gRPC's name for it.

    KwiseError
    ├── InvalidRequest      INVALID_ARGUMENT    a field of the request breaks a limit
    ├── UnknownModel        NOT_FOUND           no model of that name is served here
    ├── ArtifactRefused     FAILED_PRECONDITION an artifact that an administrator names is damaged
    ├── Overloaded          RESOURCE_EXHAUSTED  the queue is full; says when to try again
    │   └── TooManyCalls    RESOURCE_EXHAUSTED  the client has too many calls in flight
    ├── DeadlineExceeded    DEADLINE_EXCEEDED   the time that the request allows has passed
    ├── Unauthenticated     UNAUTHENTICATED     the call has no valid token
    ├── Unavailable         UNAVAILABLE         the server drains; try again elsewhere or later
    ├── ModelFailed         INTERNAL            the runtime failed on this response
    ├── ServiceFailed       INTERNAL            the server has a bug
    └── RewardServiceError  any status          what a client met (kwise.client.errors)

`ArtifactError`, `ConfigError` and `LibraryFailed` occur without requests. This module knows
the names of the statuses and imports no protocol; each protocol maps them in one place.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any


class Status(Enum):
    """The status codes of gRPC, by name. kwise sets some of them; gRPC can set the others."""

    OK = "OK"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"

    @classmethod
    def named(cls, name: str) -> "Status":
        """Return the status called `name`, and UNKNOWN for a name that gRPC does not define."""
        return cls.__members__.get(name, cls.UNKNOWN)


class KwiseError(Exception):
    """The root of all errors of requests; it is never raised itself. Messages address the client.

    Attributes:
        status: the gRPC status of the error.
        response: the index of the response that the error is about; None if it is about the group
            or the server. The message names the response wherever this is set.
        over_limit: True if the conversation has more tokens or characters than the server allows,
            so that a shorter one of the same form may be scored.
    """

    status: Status
    response: int | None = None
    over_limit: bool = False

    @property
    def log_message(self) -> str:
        """The message for the log, which never quotes a text of the request."""
        return str(self)

    def at(self, response: int) -> "KwiseError":
        """Return the error for the response at index `response`, if it is about one response.

        Requests that share a computation have one error, but each has its own order of responses.
        """
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes. The constructors' arguments are not kept.

        `multiprocessing.Pool` hangs if it cannot unpickle a worker's error.
        """
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[KwiseError], arguments: tuple[Any, ...]) -> KwiseError:
    return kind.__new__(kind, *arguments)


class InvalidRequest(KwiseError):
    """A field of the request breaks a limit.

    Args:
        field: the path of the field in the request ("prompt.messages[0].role"). If `response` is
            given, the path in that response ("text", "token_ids[3]", or "" for all of it).
        problem: the value and the limit. It does not quote the text of a prompt or response, unless
            `is_quoting` says so.
        response: the index of the response that the error is about; None if it is about the group.
        over_limit: see `KwiseError`.
        is_quoting: True if the message may quote a text of the request, as that of a chat template
            that refuses it may. Such a message is not logged.
        logged_field: the field for the log, if `field` has a name that the caller chose.

    Attributes:
        field: the path of the field in the request ("responses[3].text").
        problem: the message without the field.
    """

    status = Status.INVALID_ARGUMENT

    def __init__(
        self,
        field: str,
        problem: str,
        *,
        response: int | None = None,
        over_limit: bool = False,
        is_quoting: bool = False,
        logged_field: str = "",
    ) -> None:
        parts = [field] if response is None else [f"responses[{response}]", field]
        self.field = ".".join(filter(None, parts))
        super().__init__(f"{self.field}: {problem}")
        self.problem = problem
        self.response = response
        self.over_limit = over_limit
        self.is_quoting = is_quoting
        self._logged_field = logged_field or self.field
        self._field_in_response = field

    def at(self, response: int) -> "InvalidRequest":
        """Return the error as that of another response; an error of the group stays what it is."""
        if self.response is None:
            return self
        return InvalidRequest(
            self._field_in_response,
            self.problem,
            response=response,
            over_limit=self.over_limit,
            is_quoting=self.is_quoting,
        )

    @property
    def log_message(self) -> str:
        """The message for the log, which never quotes a text of the request."""
        if not self.is_quoting:
            return str(self)
        cause = "the reply has the cause, which is not logged: it may quote a text"
        return f"{self._logged_field}: {cause}"


class ArtifactRefused(KwiseError):
    """An artifact that an administrator has the server load is damaged, or does not suit it."""

    status = Status.FAILED_PRECONDITION


_MAX_NAMES = 20  # names of models that a message has


class UnknownModel(KwiseError):
    """No model called `name` is served here; the message names the ones that are."""

    status = Status.NOT_FOUND

    def __init__(self, name: str, served: Sequence[str]) -> None:
        # A longer message would not fit into gRPC's trailers, and the client would not get it.
        shown = ", ".join(repr(other[:100]) for other in served[:_MAX_NAMES])
        more = len(served) - _MAX_NAMES
        has = f"{shown} and {more} more" if more > 0 else shown or "none at present"
        self.problem = f"{name[:100]!r} is not served here; this server has {has}"
        super().__init__(f"model: {self.problem}")
        self._served = has

    @property
    def log_message(self) -> str:
        """The message for the log, without the name: a caller may have sent a text in its place."""
        return f"model: this server has {self._served}; the reply names the model that it lacks"


class Overloaded(KwiseError):
    """The client already has as many tokens in the queue as are left free for it.

    Attributes:
        retry_after_s: seconds until there should be room, at the present rate; 0.05 to 10.
    """

    status = Status.RESOURCE_EXHAUSTED

    def __init__(
        self, queued_tokens: int, own_tokens: int, max_queue_tokens: int, retry_after_s: float
    ) -> None:
        super().__init__(
            f"the queue holds {queued_tokens} tokens, {own_tokens} of them this client's, and its "
            f"limit is {max_queue_tokens} (--max-queue-tokens); a client may queue as many tokens "
            f"as are left free: try again in {retry_after_s:.2f} s"
        )
        self.retry_after_s = retry_after_s


class TooManyCalls(Overloaded):
    """The client has as many calls in flight as one client may have."""

    def __init__(self, max_calls: int) -> None:
        KwiseError.__init__(
            self,
            f"this client has as many calls in flight as one client may have, {max_calls} "
            "(--max-calls-per-client); wait for one of them to end",
        )
        self.retry_after_s = 1.0  # nobody knows when one of its calls ends


class DeadlineExceeded(KwiseError):
    """The time that a field of the request allows has passed. gRPC's own deadline is separate."""

    status = Status.DEADLINE_EXCEEDED

    def __init__(self, field: str, limit: str) -> None:
        super().__init__(f"{field}: the rewards were not there within {limit}; allow more time")


class Unauthenticated(KwiseError):
    """The call has no token that the server knows. The message never quotes what was sent.

    Attributes:
        is_wrong: True if there is a token and it is not known, or no longer.
    """

    status = Status.UNAUTHENTICATED

    def __init__(self, problem: str, *, is_wrong: bool = False) -> None:
        super().__init__(problem)
        self.is_wrong = is_wrong


class Unavailable(KwiseError):
    """The server is draining or not ready yet."""

    status = Status.UNAVAILABLE

    @classmethod
    def draining(cls) -> "Unavailable":
        """Return the error of a request that meets a server which is shutting down."""
        return cls("the server is shutting down; send the request again")


class ModelFailed(KwiseError):
    """The runtime failed on this response, both in its batch and alone, or its reward is NaN.

    Args:
        response: the index of the response that the error is about; None if it is about the group.
        field: the field that the response comes from, where a protocol has another name for it
            ("documents[3]").
    """

    status = Status.INTERNAL

    def __init__(self, response: int | None = None, *, field: str = "") -> None:
        place = field or ("" if response is None else f"responses[{response}]")
        prefix = f"{place}: " if place else ""
        super().__init__(f"{prefix}the model failed on this response; the server's log has details")
        self.response = response

    def at(self, response: int) -> "ModelFailed":
        """Return the error as that of the response at index `response`."""
        return ModelFailed(response)


class ServiceFailed(KwiseError):
    """The server has a bug. The details are in its log only."""

    status = Status.INTERNAL

    def __init__(self) -> None:
        super().__init__("internal error; the server's log has the details")


class ArtifactError(Exception):
    """An artifact is missing or damaged, has another schema, or fails its golden check.

    The message names the file.
    """


class LibraryFailed(Exception):
    """Another library failed while it worked. The message names the model and the cause."""


class ConfigError(ValueError):
    """An option is out of its range. The message names the option and the bound."""
