"""An entry of the table of HTTP endpoints.

The routes (`app.py`) and the OpenAPI document (`openapi.py`) come from the same entries. To add a
protocol, write structs for its bodies, a handler, and entries.
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
        body: bytes, or an object that msgspec encodes as JSON.
    """

    body: Any
    http_status: HTTPStatus = HTTPStatus.OK
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


# A handler returns the reply: a `Reply`, or an object that msgspec encodes as JSON. It runs within
# `service.call()`, and is cancelled when the client goes away or its time-out passes. It raises
# `KwiseError`.
Handler = Callable[[Call, Any], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path, with one form of body.

    Several entries may have the same method and path: the dialects of several protocols. The first
    entry that has a field of the body among its `marks` gets the request. If none has, the last
    entry without marks gets it.

    Attributes:
        method: GET or POST. HEAD and OPTIONS are added automatically.
        path: the path, without a trailing slash. "{model:path}" is a parameter, as in Starlette.
        handler: answers a request. Its second argument is the decoded body, or a dict of the path's
            parameters if the endpoint has no body.
        summary: a line for the OpenAPI document.
        tag: the protocol, by which the OpenAPI document groups its endpoints.
        response: the type of a reply, for the OpenAPI document.
        request: the type of the body, a struct with `forbid_unknown_fields`; None for no body.
        description: further facts that a caller must know, in Markdown.
        marks: fields that only this dialect of the path has.
        error_statuses: the statuses that the handler may cause, in addition to those of every
            endpoint.
        errors: the form of the error bodies.
        logs_for: a client that does not show its user why a call failed. The server logs each
            failure in its place. "" logs nothing.
        always: True if the endpoint also answers while the server drains, as a health check does.
        is_open: True if the endpoint answers callers without a token, as a health check does.
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
    logs_for: str = ""
    always: bool = False
    is_open: bool = False

    @property
    def name(self) -> str:
        """The method and the path, "POST /v1/rewards"."""
        return f"{self.method} {self.path}"
