"""Errors over HTTP: one table of statuses, and kwise's own form of an error body.

The endpoints of another protocol may have their own form and their own statuses, see `ErrorForm`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from kwise.errors import InvalidRequest, KwiseError, Overloaded, Status, Unauthenticated

# The HTTP status of each status of kwise, as google/rpc/code.proto maps them. There, CANCELLED is
# 499, which is not a standard status.
HTTP_STATUSES: Mapping[Status, HTTPStatus] = {
    Status.OK: HTTPStatus.OK,
    Status.CANCELLED: HTTPStatus.SERVICE_UNAVAILABLE,
    Status.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    Status.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Status.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Status.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Status.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Status.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Status.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Status.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Status.ABORTED: HTTPStatus.CONFLICT,
    Status.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    Status.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Status.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Status.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Status.DATA_LOSS: HTTPStatus.INTERNAL_SERVER_ERROR,
    Status.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}
# The time after which a client may repeat a request that a draining server has refused. By then,
# another server or the next process on this address answers.
_UNAVAILABLE_RETRY_S = 1.0

_PATH = re.compile(r"(?P<problem>.*) - at `(?:key in )?\$\.?(?P<path>.*)`\Z", re.DOTALL)

# msgspec's messages that quote no value, and no name that may be a text.
_PLAIN = re.compile(r"[^`']*(`[\w.$()|<>\[\], ]{1,80}`[^`']*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The error of a request, before `ErrorForm` gives it the form of a protocol.

    Attributes:
        http_status: the HTTP status.
        status: the name that gRPC has for the status.
        message: a sentence that names the field, the value and the limit.
        field: the path of the wrong field; None if the error is not about a field.
        response: the index of the wrong response; None if the error is about the whole group.
        over_limit: whether the conversation is too long for the server.
        retry_after_s: seconds after which the request may be sent again; None for never.
        headers: further headers of the reply.
    """

    http_status: HTTPStatus
    status: Status
    message: str
    field: str | None = None
    response: int | None = None
    over_limit: bool = False
    retry_after_s: float | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def retry_after(self) -> str | None:
        """The value of the header Retry-After, in whole seconds; None for no header."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))


class ProblemRaised(Exception):
    """A problem of HTTP that no `KwiseError` stands for, such as a body that is too large.

    Args:
        problem: the problem.
        log_message: its message for the log, if that of the reply quotes the request.
    """

    def __init__(self, problem: Problem, log_message: str = "") -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.log_message = log_message or problem.message


def problem_of(error: KwiseError) -> Problem:
    """Return the problem that stands for an error of the service."""
    retry_after_s = None
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s
    elif error.status is Status.UNAVAILABLE:
        retry_after_s = _UNAVAILABLE_RETRY_S
    headers = {}
    if isinstance(error, Unauthenticated):  # RFC 6750, section 3
        wrong = ', error="invalid_token"' if error.is_wrong else ""
        headers["www-authenticate"] = f'Bearer realm="kwise"{wrong}'
    return Problem(
        http_status=HTTP_STATUSES[error.status],
        status=error.status,
        message=str(error),
        field=error.field if isinstance(error, InvalidRequest) else None,
        response=error.response,
        over_limit=error.over_limit,
        retry_after_s=retry_after_s,
        headers=headers,
    )


def invalid_json(error: Exception) -> InvalidRequest:
    """Return the error of a body that msgspec refuses. The message names the field by its path."""
    # msgspec 0.22 raises UnicodeDecodeError, 0.23 an error of its own.
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):
        # The position counts from the start of a string in the body, so it does not help a client.
        return InvalidRequest("body", "it is not UTF-8")
    if isinstance(error, RecursionError):
        return InvalidRequest("body", "it is nested too deeply")
    field, problem = "body", str(error)
    if match := _PATH.match(problem):
        field, problem = match["path"] or field, match["problem"]
    return InvalidRequest(field, problem, is_quoting=not _PLAIN.fullmatch(str(error)))


class ErrorDetail(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The fields of kwise.v1.Error.

    `code` is the name of the gRPC status. `response` is the index of the response that the error is
    about, if it is about one. The client may try again after `retry_after_ms`. `over_limit` is true
    if the conversation is too long for the server.
    """

    code: str
    message: str
    retry_after_ms: int | None = None
    response: int | None = None
    over_limit: bool = False


class ErrorBody(msgspec.Struct, kw_only=True):
    """The body of an error reply of kwise's own endpoints."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorForm:
    """The form that a family of endpoints gives its errors.

    Attributes:
        body: the type of the body, for the OpenAPI document.
        make: returns the body of a problem.
        http_statuses: for some statuses of `HTTP_STATUSES`, the ones that this family has instead.
    """

    body: type[msgspec.Struct]
    make: Callable[[Problem], Any]
    http_statuses: Mapping[HTTPStatus, HTTPStatus] = dataclasses.field(default_factory=dict)


def _kwise_error(problem: Problem) -> ErrorBody:
    retry_after_s = problem.retry_after_s
    return ErrorBody(
        error=ErrorDetail(
            code=problem.status.name,
            message=problem.message,
            retry_after_ms=None if retry_after_s is None else round(1000 * retry_after_s),
            response=problem.response,
            over_limit=problem.over_limit,
        )
    )


KWISE_ERRORS = ErrorForm(body=ErrorBody, make=_kwise_error)


def response_of(problem: Problem, errors: ErrorForm) -> Response:
    """Return the error reply to a problem, in the form of a family of endpoints."""
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["retry-after"] = problem.retry_after
    return Response(
        msgspec.json.encode(errors.make(problem)),
        status_code=errors.http_statuses.get(problem.http_status, problem.http_status),
        headers=headers,
        media_type="application/json",
    )
