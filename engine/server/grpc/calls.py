"""Shared code of the RPCs of all services: the status of an error, and the client of a call."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc

from kwise.engine.server.base_service import BaseRewardService
from kwise.engine.server.call import Call
from kwise.engine.server.calls.request_id import REQUEST_ID_KEY, accepted_request_id
from kwise.engine.server.calls.running_call import current_call
from kwise.engine.server.grpc.access import TOKEN_NAME
from kwise.engine.server.grpc.messages import status_code, trailers
from kwise.engine.server.service import RewardService
from kwise.errors import InvalidRequest, KwiseError, ServiceFailed
from kwise.types import CLIENT_KEY, MODEL_KEY

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = Sequence[tuple[str, str | bytes]]


class running_call(AbstractAsyncContextManager[None]):  # noqa: N801 - used as a function
    """Count the call as running, and end it with the status of an error raised inside.

    Args:
        service: the service that answers.
        context: the gRPC call.
        code_of: returns the status of an error in the protocol of the call.
    """

    __slots__ = ("_code_of", "_context", "_counted")

    def __init__(
        self,
        service: BaseRewardService,
        context: Context,
        code_of: Callable[[KwiseError], grpc.StatusCode] = status_code,
    ) -> None:
        self._context = context
        self._code_of = code_of
        self._counted = service.call()

    async def __aenter__(self) -> None:
        try:
            self._counted.__enter__()
        except KwiseError as error:
            await self._abort(error)

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self._counted.__exit__(kind, error, traceback)
        except ServiceFailed as failed:
            error = failed
        if isinstance(error, KwiseError):
            await self._abort(error)

    async def _abort(self, error: KwiseError) -> None:
        metadata = trailers(error)
        if (call := current_call()) is not None:
            call.failed(error.status, error.log_message)
            metadata += ((REQUEST_ID_KEY, call.request_id),)
        await self._context.abort(self._code_of(error), str(error), metadata)


def call_of(service: RewardService, context: Context) -> Call:
    """Return the context of a call whose messages cannot name a model: its metadata may."""
    return Call(service=service, client=client_of(context), model=named_in_metadata(context))


def named_in_metadata(context: Context) -> str:
    """Return the model that the metadata of a call names; "" if it names none."""
    call = current_call()
    return value_of(MODEL_KEY, metadata_of(context) if call is None else call.headers)


def model_of(name: str, in_metadata: str) -> str:
    """Return the model that must answer a message; "" for the first that was loaded.

    Args:
        name: what the message says; "" if it says nothing.
        in_metadata: what the metadata of its call says.

    Raises:
        InvalidRequest: the two name two models.
    """
    if name and in_metadata and name != in_metadata:
        raise InvalidRequest(
            "model",
            f"it is {name[:100]!r}, and the metadata {MODEL_KEY} names {in_metadata[:100]!r}",
            is_quoting=True,
        )
    return name or in_metadata


def client_of(context: Context, metadata: Metadata | None = None) -> str:
    """Return the client of a call, for fair queueing.

    It is the name of the call's token. If calls need none, it is what the call names (behind a
    proxy, say), or else its connection.
    """
    if metadata is None:
        if (call := current_call()) is not None:
            return call.client
        metadata = metadata_of(context)
    if name := TOKEN_NAME.get():
        return name
    return value_of(CLIENT_KEY, metadata) or context.peer()


def request_id_of(metadata: Metadata) -> str:
    """Return the id that a caller has given a call; "" without one."""
    given = value_of(REQUEST_ID_KEY, metadata)
    return given and accepted_request_id(given)


def value_of(key: str, metadata: Metadata) -> str:
    """Return the first value of a key of the metadata; "" without one."""
    for name, value in metadata:
        if name == key:
            return str(value)
    return ""


def metadata_of(context: Any) -> Metadata:
    """Return the metadata that a call came with."""
    return context.invocation_metadata() or ()
