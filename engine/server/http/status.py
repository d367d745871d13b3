"""Endpoints about the server itself: health, and the model that is served."""

from http import HTTPStatus

import msgspec

from kwise.engine.server.http.endpoint import Call, Endpoint, Reply


class Health(msgspec.Struct):
    """The state of the server: "SERVING", or "NOT_SERVING" while it shuts down."""

    status: str


async def _health(call: Call, _: None) -> Reply:
    if call.service.draining.is_set():
        return Reply(body=Health("NOT_SERVING"), http_status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Reply(body=Health("SERVING"))


async def _alive(call: Call, _: None) -> Health:
    return Health("SERVING")


_TAG = "server"
ENDPOINTS = (
    *(
        Endpoint(
            method="GET",
            path=path,
            handler=_health,
            summary="Say whether requests are answered: 200, or 503 while the server shuts down",
            tag=_TAG,
            response=Health,
            error_statuses=(HTTPStatus.SERVICE_UNAVAILABLE,),
            always=True,
        )
        for path in ("/health", "/readyz", "/ping")
    ),
    Endpoint(
        method="GET",
        path="/livez",
        handler=_alive,
        summary="Say that the process runs: 200",
        tag=_TAG,
        response=Health,
        always=True,
    ),
)
