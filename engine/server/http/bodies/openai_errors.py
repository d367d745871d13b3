"""Errors in OpenAI's form, which vLLM, SGLang, infinity and LLaMA-Factory use with variations."""

from http import HTTPStatus

import msgspec

from kwise.engine.server.http.errors import ErrorForm, Problem

_TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.FORBIDDEN: "PermissionDeniedError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.TOO_MANY_REQUESTS: "RateLimitError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
    HTTPStatus.GATEWAY_TIMEOUT: "TimeoutError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
}


class OpenAIErrorDetail(msgspec.Struct, kw_only=True):
    """The details of an error. `param` is the field, and `code` is the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class OpenAIError(msgspec.Struct, kw_only=True):
    """An error in OpenAI's form."""

    error: OpenAIErrorDetail


def _openai_error(problem: Problem) -> OpenAIError:
    return OpenAIError(
        error=OpenAIErrorDetail(
            message=problem.message,
            type=_TYPES.get(problem.http_status, "BadRequestError"),
            param=problem.field,
            code=problem.http_status,
        )
    )


OPENAI_ERRORS = ErrorForm(body=OpenAIError, make=_openai_error)
