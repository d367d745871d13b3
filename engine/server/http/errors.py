"""Errors over HTTP: one table of statuses, and kwise's own form of an error body.

A family of foreign bodies may have its own form and its own choice of statuses, see `ErrorForm`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from kwise.errors import InvalidRequest, KwiseError, Overloaded, Status

# The HTTP status of each status of kwise. It follows google.api.http's table.
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
# When a client may send again what a server that drains has refused: another server, or the next
# process on this address, answers by then.
_UNAVAILABLE_RETRY_S = 1.0

_PATH = re.compile(r"(?P<problem>.*) - at `(?:key in )?\$\.?(?P<path>.*)`\Z", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request was not answered, before a family gives it its own form.

    Attributes:
        http_status: the HTTP status.
        status: the name that gRPC has for the status.
        message: names the field, the value and the limit.
        field: the path of the field that is wrong; None if it is not about a field.
        response: the index of the response that the error is about; None if about the group.
        retry_after_s: seconds after which the request may be sent again; None for never.
        headers: further headers of the reply.
    """

    http_status: HTTPStatus
    status: Status
    message: str
    field: str | None = None
    response: int | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def retry_after(self) -> str | None:
        """The value of the header Retry-After, which is in whole seconds; None without one."""
        return None if self.retry_after_s is None else str(max(1, math.ceil(self.retry_after_s)))


class ProblemRaised(Exception):
    """A problem of HTTP that has no `KwiseError`, such as a body that is too large."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_of(error: KwiseError) -> Problem:
    """Return the problem that an error of the service is."""
    retry_after_s = None
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s
    elif error.status is Status.UNAVAILABLE:
        retry_after_s = _UNAVAILABLE_RETRY_S
    return Problem(
        http_status=HTTP_STATUSES[error.status],
        status=error.status,
        message=str(error),
        field=error.field if isinstance(error, InvalidRequest) else None,
        response=error.response,
        retry_after_s=retry_after_s,
    )


def invalid_json(error: Exception) -> InvalidRequest:
    """Return the error of a body that msgspec refuses. The message names the field by its path."""
    if isinstance(error, UnicodeDecodeError):
        # The position is one within a string of the body, which says nothing to the client.
        return InvalidRequest("body", "it is not UTF-8")
    if isinstance(error, RecursionError):
        return InvalidRequest("body", "it is nested too deeply")
    if match := _PATH.match(str(error)):
        return InvalidRequest(match["path"] or "body", match["problem"])
    return InvalidRequest("body", str(error))


class ErrorDetail(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The fields of kwise.v1.Error.

    `code` is the name of the gRPC status. `response` is the index of the response that the error is
    about, if it is about one. `retry_after_ms` says when there should be room.
    """

    code: str
    message: str
    retry_after_ms: int | None = None
    response: int | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    """The body of each reply of kwise's own endpoints that is not a success."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorForm:
    """The form that a family of endpoints gives its errors.

    Attributes:
        body: the type of the body, for the OpenAPI document.
        make: returns the body of a problem.
        http_statuses: statuses that this family has in place of those of `HTTP_STATUSES`.
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
        )
    )


KWISE_ERRORS = ErrorForm(body=ErrorBody, make=_kwise_error)
