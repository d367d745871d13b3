"""Shared code of the RPCs of all services: the status of an error, and the client of a call."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from kwise.engine.server.base_service import BaseRewardService
from kwise.engine.server.call import Call
from kwise.engine.server.calls.running_call import current_call
from kwise.engine.server.grpc.access import TOKEN_NAME
from kwise.engine.server.grpc.messages import status_code, trailers
from kwise.engine.server.service import RewardService
from kwise.errors import KwiseError
from kwise.types import CLIENT_KEY, MODEL_KEY

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def running_call(
    service: BaseRewardService,
    context: Context,
    code_of: Callable[[KwiseError], grpc.StatusCode] = status_code,
) -> AsyncIterator[None]:
    """Count the call as running, and end it with the status of an error raised inside.

    Args:
        service: the service that answers.
        context: the gRPC call.
        code_of: returns the status of an error in the protocol of the call.
    """
    try:
        with service.call():
            yield
    except KwiseError as error:
        await context.abort(code_of(error), str(error), trailers(error))


def call_of(service: RewardService, context: Context) -> Call:
    """Return the context of a call whose messages cannot name a model: its metadata may."""
    metadata: Any = context.invocation_metadata() or ()
    named: Iterator[Any] = (value for key, value in metadata if key == MODEL_KEY)
    return Call(service=service, client=client_of(context), model=str(next(named, "")))


def client_of(context: Context) -> str:
    """Return the client of a call, for fair queueing.

    It is the name of the call's token. If calls need none, it is what the call names (behind a
    proxy, say), or else its connection.
    """
    if (call := current_call()) is not None:
        return call.client
    if name := TOKEN_NAME.get():
        return name
    metadata: Any = context.invocation_metadata() or ()
    named: Iterator[Any] = (value for key, value in metadata if key == CLIENT_KEY)
    return str(next(named, "")) or context.peer()
