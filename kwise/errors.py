"""Every error that a request can meet, each with exactly one gRPC status.

    KwiseError
    ├── InvalidRequest    INVALID_ARGUMENT    the client's mistake: field, size and limit, never the text itself
    ├── UnknownModel      NOT_FOUND
    ├── Overloaded        RESOURCE_EXHAUSTED  the queue is full; carries a time after which to try again
    ├── Unavailable       UNAVAILABLE         draining, or not ready yet; the same request may succeed elsewhere or later
    └── ModelFailed       INTERNAL            the runtime failed on this response; details are in the server's log

`ArtifactError` and `ConfigError` are met at start-up, before there are requests. This module knows the names of the
statuses and nothing of gRPC: each protocol maps them in one place.
"""

from enum import Enum
from typing import ClassVar


class Status(Enum):
    """The gRPC status codes that kwise answers with, by gRPC's own names."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class KwiseError(Exception):
    """The root; never raised itself. The message is written for the client."""

    status: ClassVar[Status]


class InvalidRequest(KwiseError):
    """A field of the request breaks a limit.

    Args:
        field: the path of the field: in the request ("prompt.messages[0].role"), or, when `response` is given, in that
            response ("text", "token_ids[3]", or "" for the whole response).
        problem: the value and the limit. It never quotes the text of a prompt or response.
        response: the index of the response that the error is about; None if it is about the group.

    Attributes:
        field: the path of the field in the request ("responses[3].text").
    """

    status = Status.INVALID_ARGUMENT

    def __init__(self, field: str, problem: str, *, response: int | None = None) -> None:
        parts = [field] if response is None else [f"responses[{response}]", field]
        self.field = ".".join(filter(None, parts))
        super().__init__(f"{self.field}: {problem}")
        self.problem = problem
        self.response = response
        self._field_in_response = field

    def at(self, response: int) -> "InvalidRequest":
        """Return the same error for the response at another index."""
        return InvalidRequest(self._field_in_response, self.problem, response=response)


class UnknownModel(KwiseError):
    """No model called `name` is served here; the message says which are."""

    status = Status.NOT_FOUND

    def __init__(self, name: str, served: str) -> None:
        super().__init__(f"model: {name!r} is not served here; this server has {served!r}")


class Overloaded(KwiseError):
    """The client has as many tokens in the queue as are left free. `retry_after_s`: when there should be room, at the present
    rate; 0.05 to 10 seconds."""

    status = Status.RESOURCE_EXHAUSTED

    def __init__(
        self, queued_tokens: int, own_tokens: int, max_queue_tokens: int, retry_after_s: float
    ) -> None:
        super().__init__(
            f"the queue holds {queued_tokens} tokens, {own_tokens} of them this client's, and its limit is {max_queue_tokens} "
            f"(--max-queue-tokens); a client may have as many as are left free: try again in {retry_after_s:.2f} s"
        )
        self.retry_after_s = retry_after_s


class Unavailable(KwiseError):
    """The server is draining or not ready yet."""

    status = Status.UNAVAILABLE

    @classmethod
    def leaving(cls) -> "Unavailable":
        return cls("the server is shutting down; send the request again")


class ModelFailed(KwiseError):
    """The runtime raised on this response, alone as well as in company, or its reward is not a number."""

    status = Status.INTERNAL

    def __init__(self) -> None:
        super().__init__("the model failed on this response; the server's log has the details")


class ArtifactError(Exception):
    """An artifact is missing, damaged, of another schema, or fails its golden check. The message names the file."""


class ConfigError(ValueError):
    """An option is out of its range. The message names the option and the bound."""
