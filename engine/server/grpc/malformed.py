"""Bytes that are not the message of an RPC are the caller's fault, and get INVALID_ARGUMENT.

gRPC would answer UNKNOWN and log a traceback for each of them, also for callers without a token,
because health checks are open. So messages are parsed here. A handler whose request is None refuses
the call (`observed.py`, `health.py`). Streams of kwise handle the error where they read
(`stream.py`); reflection gets a request without a field, to which it replies with an error.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message


class TolerantServer:
    """Adds handlers that parse tolerantly; passed as the server to `add_…_to_server` functions.

    Args:
        server: the server that gets the handlers.
        streamed: makes the request that a stream gets in place of one that cannot be parsed; None
            for streams that handle the error where they read.
    """

    def __init__(
        self, server: grpc.aio.Server, streamed: Callable[[], Message] | None = None
    ) -> None:
        self._server = server
        self._streamed = streamed

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Add handlers. gRPC prefers the registered ones of the same methods."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Add handlers. Unary ones get None in place of a message that cannot be parsed."""
        tolerant = {name: self._tolerant(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, tolerant)

    def _tolerant(self, handler: Any) -> Any:
        if not handler.request_streaming:
            return _tolerant(handler, lambda: None)
        return _tolerant(handler, self._streamed) if self._streamed else handler


def malformed(method: MethodDescriptor) -> str:
    """Return the error message for bytes that are not the request of a method."""
    return f"the request is not a {method.input_type.full_name}"


def _tolerant(handler: Any, substitute: Callable[[], Any]) -> Any:
    """Return a handler that gets `substitute()` in place of a message that cannot be parsed."""
    deserialize = handler.request_deserializer

    def deserialized(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError:
            return substitute()

    return handler._replace(request_deserializer=deserialized)
