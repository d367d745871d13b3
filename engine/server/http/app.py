"""The ASGI application: find the endpoint of a request in the table, and reply with its result.

Each path is an ASGI application of its own under Starlette's router. Starlette's `Request` and
middleware are not used, because they take longer than all other work of a cached call.

A request is refused as early as possible: by path, method, content type and the size that it
declares, before its body is read. uvicorn then reads the rest of the request and throws it away,
within the time for sending a request. If the connection were closed instead, the kernel would reset
it, and the client would see an error of its socket in place of the reply.
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from kwise.engine.server.call import Call
from kwise.engine.server.calls.request_id import REQUEST_ID_KEY, accepted_request_id
from kwise.engine.server.calls.running_call import Protocol, RunningCall
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.http.errors import (
    KWISE_ERRORS,
    Problem,
    ProblemRaised,
    invalid_json,
    problem_of,
    response_of,
)
from kwise.engine.server.http.middleware.gate import TOKEN_NAME, Gate
from kwise.engine.server.http.middleware.model_path import MODEL_NAME, ModelPath
from kwise.engine.server.security.credentials import Credentials
from kwise.engine.server.service import RewardService
from kwise.errors import InvalidRequest, KwiseError, ServiceFailed, Status, Unavailable
from kwise.types import CLIENT_KEY

# The client's time-out for its request, in seconds. A request that exceeds it leaves the queue.
TIMEOUT_HEADER = "kwise-timeout-s"

_LOG = logging.getLogger(__name__)

_CLIENT_HEADER = CLIENT_KEY.encode()
_REQUEST_ID_HEADER = REQUEST_ID_KEY.encode()
_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def new_app(
    endpoints: Sequence[Endpoint],
    service: RewardService,
    max_body_bytes: int,
    credentials: Credentials,
) -> ASGIApp:
    """Return the ASGI application that answers requests of `endpoints` with `service`."""
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    routes = [
        Route(path, PathApp(entries, service, max_body_bytes)) for path, entries in by_path.items()
    ]
    router = Router(routes, redirect_slashes=False, default=_not_found)
    return ModelPath(Gate(router, endpoints, credentials) if credentials.needs_token else router)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(
        http_status=HTTPStatus.NOT_FOUND,
        status=Status.NOT_FOUND,
        message=f"the path {scope['path'][:200]!r} is unknown; GET /openapi.json lists the paths",
    )
    await response_of(problem, KWISE_ERRORS)(scope, receive, send)


class PathApp:
    """All endpoints of one path, as an ASGI application."""

    def __init__(
        self, endpoints: Sequence[Endpoint], service: RewardService, max_body_bytes: int
    ) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._by_method: dict[str, list[Dialect]] = {}
        for endpoint in endpoints:
            self._by_method.setdefault(endpoint.method, []).append(Dialect(endpoint))
        methods = {"OPTIONS", *self._by_method}
        if "GET" in methods:
            methods.add("HEAD")
            self._by_method["HEAD"] = self._by_method["GET"]
        self._allow = ", ".join(sorted(methods))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        dialects = self._by_method.get(scope["method"])
        if dialects:
            headers = dict(scope["headers"])
            method = dialects[0].endpoint.name
            client = _client_of(scope, headers)
            given = headers.get(_REQUEST_ID_HEADER, b"").decode("latin-1")
            with RunningCall(
                self._service.observers,
                method,
                Protocol.HTTP,
                client=client,
                request_id=given and accepted_request_id(given),
                headers=headers,
            ) as running:
                response = await self._answer(running, dialects, headers, scope, receive)
                if response is not None:
                    running.http_status = response.status_code
            if response is None:
                return  # the client has gone
            # The observers may have asked for the id.
            if running.has_request_id or running.status is not Status.OK:
                response.raw_headers.append((_REQUEST_ID_HEADER, running.request_id.encode()))
        else:
            response = self._other_method(scope["method"])
        if self._service.draining.is_set():
            response.raw_headers.append((b"connection", b"close"))
        await response(scope, receive, send)

    def _other_method(self, method: str) -> Response:
        if method == "OPTIONS":
            return Response(status_code=HTTPStatus.NO_CONTENT, headers={"allow": self._allow})
        problem = Problem(
            http_status=HTTPStatus.METHOD_NOT_ALLOWED,
            status=Status.UNIMPLEMENTED,
            message=f"the method is {method}; this path allows {self._allow}",
            headers={"allow": self._allow},
        )
        return response_of(problem, KWISE_ERRORS)

    async def _answer(
        self,
        running: RunningCall,
        dialects: "list[Dialect]",
        headers: Mapping[bytes, bytes],
        scope: Scope,
        receive: Receive,
    ) -> Response | None:
        """Return the reply to a request, and note its status; None if the client has gone."""
        dialect = _usual_of(dialects)
        try:
            if self._service.draining.is_set() and not dialect.endpoint.always:
                raise Unavailable.draining()
            timeout_s = _timeout_s(headers)
            model = scope.get(MODEL_NAME, "")
            if model and not self._service.draining.is_set():
                # Here, because not every endpoint reads the name. A health check would say that a
                # model serves that does not exist.
                self._service.admit(model)
            body = None
            if dialect.endpoint.request is not None:
                body = await self._read_body(headers, receive)
                if body is None:
                    running.status = Status.CANCELLED
                    return None
                if len(dialects) > 1:
                    dialect = _dialect_of(dialects, body)
            call = Call(
                service=self._service,
                client=running.client,
                model=model,
            )
            if timeout_s is None:  # most requests; the context manager of no time-out costs 2 us
                response = await self._work(dialect, call, body, scope, receive)
            else:
                async with asyncio.timeout(timeout_s):
                    response = await self._work(dialect, call, body, scope, receive)
            if response is None:
                running.status = Status.CANCELLED
            return response
        except KwiseError as error:
            problem, log_message = problem_of(error), error.log_message
            # A bug is in the log already, and so is a drain.
            running.is_logged = isinstance(error, ServiceFailed | Unavailable)
        except ProblemRaised as raised:
            problem, log_message = raised.problem, raised.log_message
        except TimeoutError:
            problem = _out_of_time()
            log_message = problem.message
        running.failed(problem.status, log_message)
        if not running.is_logged and (client := dialect.endpoint.logs_for):
            running.is_logged = True
            status = problem.http_status.value
            _LOG.warning("a call of %s failed with %d: %s", client, status, log_message)
        return response_of(problem, dialect.endpoint.errors)

    async def _read_body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the body of a request; None if the client has gone.

        Raises:
            ProblemRaised: the body is too large, or its content type is not JSON.
            InvalidRequest: the body is empty.
        """
        _check_type(headers)
        limit = self._max_body_bytes
        # uvicorn's parser has refused a length that is not a number.
        if int(headers.get(b"content-length", b"0")) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message["body"])
            num_bytes += len(parts[-1])
            if num_bytes > limit:
                raise _too_large(limit)
            if not message["more_body"]:
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                if not body or body.isspace():
                    raise InvalidRequest("body", "it is empty; send a JSON object")
                return body

    async def _work(
        self, dialect: "Dialect", call: Call, body: bytes | None, scope: Scope, receive: Receive
    ) -> Response | None:
        """Return the reply to a request whose body has been read; None if the client goes away."""
        work = asyncio.current_task()
        assert work is not None
        has_gone = False

        async def watch() -> None:
            nonlocal has_gone
            while (await receive())["type"] != "http.disconnect":
                pass
            has_gone = True
            work.cancel()

        watching = asyncio.create_task(watch())
        try:
            with self._service.call(is_limited=not dialect.endpoint.always):
                argument = scope["path_params"] if body is None else dialect.decode(body)
                return dialect.response(await dialect.endpoint.handler(call, argument))
        except asyncio.CancelledError:
            if not has_gone:
                raise
            work.uncancel()
            return None
        finally:
            watching.cancel()


class Dialect:
    """An endpoint with the decoder of its bodies."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._decoder = None if endpoint.request is None else msgspec.json.Decoder(endpoint.request)

    def decode(self, body: bytes) -> Any:
        """Return the struct of a body.

        Raises:
            InvalidRequest: the body is not JSON, or a field is missing, unknown, or of the wrong
                type.
        """
        assert self._decoder is not None, "endpoints without a body do not get one"
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid_json(error) from None

    def response(self, result: Any) -> Response:
        """Return the reply with the result of a handler."""
        if not isinstance(result, Reply):
            return Response(_encode(result), media_type="application/json")
        body = result.body if isinstance(result.body, bytes) else _encode(result.body)
        return Response(
            body,
            status_code=result.http_status,
            headers={"content-type": result.content_type, **result.headers},
        )


def _usual_of(dialects: Sequence[Dialect]) -> Dialect:
    """Return the dialect whose form an error has if the body does not tell the dialect.

    It is the one that gets the bodies without marks, because most clients of the path speak it.
    """
    return next((d for d in reversed(dialects) if not d.endpoint.marks), dialects[0])


def _dialect_of(dialects: Sequence[Dialect], body: bytes) -> Dialect:
    """Return the dialect in which a body is written.

    Raises:
        InvalidRequest: the body has no field that marks a dialect.
    """
    try:
        fields = _decode_fields(body).keys()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_json(error) from None
    for dialect in dialects:
        if not fields.isdisjoint(dialect.endpoint.marks):
            return dialect
    usual = _usual_of(dialects)
    if usual.endpoint.marks:
        choices = (f"{' or '.join(d.endpoint.marks)} ({d.endpoint.tag})" for d in dialects)
        raise InvalidRequest("body", f"it has none of the fields {', '.join(choices)}")
    return usual


def _client_of(scope: Scope, headers: Mapping[bytes, bytes]) -> str:
    """Return the client of a request, for fair queueing.

    It is the name of the request's token. If requests need none, it is what the request names, or
    else the address of its connection. The port of the address is left out, because many HTTP
    clients open a connection per call.
    """
    if name := scope.get(TOKEN_NAME):
        return str(name)
    if named := headers.get(_CLIENT_HEADER):
        return named.decode("latin-1")
    return str(scope["client"][0]) if scope["client"] else ""


def _timeout_s(headers: Mapping[bytes, bytes]) -> float | None:
    value = headers.get(TIMEOUT_HEADER.encode())
    if value is None:
        return None
    with suppress(ValueError):
        seconds = float(value)
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    raise InvalidRequest(
        f"header {TIMEOUT_HEADER}",
        f"it is {value[:50].decode('latin-1')!r}; it must be a number of seconds over 0",
        is_quoting=True,
    )


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    content_type = headers.get(b"content-type", b"application/json").decode("latin-1")
    media_type, _, parameters = content_type.lower().partition(";")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if media_type.strip() != "application/json" or (
        "charset" in parameters and "utf-8" not in parameters and "utf8" not in parameters
    ):
        problem = f"content-type is {content_type[:100]!r}; it must be application/json in UTF-8"
    elif encoding.lower() != "identity":
        problem = f"content-encoding is {encoding[:100]!r}; send the body without one"
    else:
        return
    raise ProblemRaised(
        Problem(
            http_status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            status=Status.INVALID_ARGUMENT,
            message=problem,
        ),
        "the content type or encoding is not that of plain JSON in UTF-8",
    )


def _out_of_time() -> Problem:
    return Problem(
        http_status=HTTPStatus.GATEWAY_TIMEOUT,
        status=Status.DEADLINE_EXCEEDED,
        message=f"the request was not answered within its {TIMEOUT_HEADER}",
    )


def _too_large(limit: int) -> ProblemRaised:
    return ProblemRaised(
        Problem(
            http_status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            status=Status.RESOURCE_EXHAUSTED,
            message=f"the body is larger than {limit} bytes (--max-message-bytes)",
        )
    )
