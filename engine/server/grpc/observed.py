"""Observe each RPC of a service: enter a `RunningCall` around its handler.

The handlers are wrapped once, when they are added to the server. An interceptor would do this for
each call, and takes several times as long.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from kwise.engine.server.base_service import BaseRewardService
from kwise.engine.server.calls.request_id import REQUEST_ID_KEY
from kwise.engine.server.calls.running_call import CallKind, Protocol, RunningCall
from kwise.engine.server.grpc.calls import Context, client_of, metadata_of, request_id_of
from kwise.engine.server.grpc.malformed import malformed
from kwise.errors import Status

# gRPC cancels a call both if its deadline passes and if its client cancels it. The client's
# deadline passes before the server's, by the time that the request took to arrive.
_DEADLINE_SLACK_S = 0.1

Handler = Callable[[Any, Context], Awaitable[Any]]


def observed(servicer: Any, descriptor: ServiceDescriptor, service: BaseRewardService) -> Any:
    """Return an object with the RPCs of a servicer, whose calls the service's observers are told.

    Args:
        servicer: implements the RPCs of `descriptor` as coroutine functions.
        descriptor: the definition of the service.
        service: has the observers.
    """
    handlers = {
        method.name: _observed(getattr(servicer, method.name), method, service)
        for method in descriptor.methods
    }
    return SimpleNamespace(**handlers)


def _observed(handler: Handler, method: MethodDescriptor, service: BaseRewardService) -> Handler:
    name = f"{method.containing_service.full_name}/{method.name}"
    # RerankStream has one reply, so it is not a stream of requests that are answered one by one.
    kind = CallKind.STREAM if method.server_streaming else CallKind.UNARY
    observers = service.observers

    async def rpc(request: Any, context: Any) -> Any:
        metadata = metadata_of(context)
        client, request_id = client_of(context, metadata), request_id_of(metadata)
        with RunningCall(
            observers,
            name,
            Protocol.GRPC,
            kind,
            client=client,
            request_id=request_id,
            headers=metadata,
        ) as call:
            try:
                if request is None:
                    call.failed(Status.INVALID_ARGUMENT, malformed(method))
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, call.problem)
                reply = await handler(request, context)
            except grpc.aio.AbortError:
                if call.status is None:  # a servicer aborts the RPCs that it does not implement
                    call.failed(Status[_code_of(context).name], "")
                raise
            except asyncio.CancelledError:
                left_s: float | None = context.time_remaining()  # None without a deadline
                if left_s is not None and left_s < _DEADLINE_SLACK_S:
                    call.status = Status.DEADLINE_EXCEEDED
                raise
        # The observers may have asked for the id.
        if call.has_request_id:
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return reply

    return rpc


def _code_of(context: Any) -> grpc.StatusCode:
    """Return the status that a handler has ended its call with."""
    code = context.code()
    return next(status for status in grpc.StatusCode if code in (status, status.value[0]))
