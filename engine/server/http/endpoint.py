"""An entry of the table of HTTP endpoints.

The routes (`app.py`) and the OpenAPI document (`openapi.py`) come from the same entries. Adding a
protocol means to write structs for its bodies, a handler, and entries.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from kwise.engine.server.call import Call
from kwise.engine.server.http.errors import KWISE_ERRORS, ErrorForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply that is not a plain success in JSON. Handlers return most replies as their struct.

    Attributes:
        body: bytes, or what msgspec encodes as JSON.
    """

    body: Any
    http_status: HTTPStatus = HTTPStatus.OK
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


# Returns the reply: what msgspec encodes as JSON, or a `Reply`. Runs within `service.call()`, and
# is cancelled when the client goes away or its time-out passes. Raises `KwiseError`.
Handler = Callable[[Call, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path, with one form of body.

    Several entries may have the same method and path: the dialects of several protocols. The first
    one that has a field of the body among its `marks` gets the request, or else the last one of the
    path that has no marks.

    Attributes:
        method: GET or POST. HEAD and OPTIONS come by themselves.
        path: the path, without a trailing slash.
        handler: answers a request. Its second argument is the decoded body, None without one.
        summary: a line for the OpenAPI document.
        tag: the protocol, by which the OpenAPI document groups its endpoints.
        response: the type of a reply, for the OpenAPI document.
        request: the type of the body, a struct with `forbid_unknown_fields`; None for no body.
        description: what a caller must know beside the summary, in Markdown.
        marks: fields that only this dialect of the path has.
        error_statuses: the statuses that the handler may cause, beside those of every endpoint.
        errors: the form of the error bodies.
        always: answered also while the server drains, as health checks are.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    summary: str
    tag: str
    response: Any
    request: Any = None
    description: str = ""
    marks: tuple[str, ...] = ()
    error_statuses: tuple[HTTPStatus, ...] = ()
    errors: ErrorForm = KWISE_ERRORS
    always: bool = False
