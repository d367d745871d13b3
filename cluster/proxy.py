"""Register `kwise.v1.RewardService` with Ray's gRPC proxy, for `grpc_servicer_functions`.

The generated function would make the proxy parse each request and pickle the message. kwise's
messages cannot be pickled, because they name the module kwise.v1.reward_pb2, which lies in
kwise.protos here. With the functions of this module the proxy passes bytes on, which also costs
less: the ingress parses them.
"""

from typing import Any

import grpc

from kwise.protos.kwise.v1 import reward_pb2

_SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"]

# By (the client streams, the server streams). No arguments: neither parses nor serialises.
_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def add_RewardServiceServicer_to_server(servicer: Any, server: Any) -> None:
    """Add the RPCs to Ray's proxy, which replaces the methods of `servicer` by its own."""
    handlers: dict[str, Any] = {
        method.name: _HANDLERS[method.client_streaming, method.server_streaming](
            getattr(servicer, method.name)
        )
        for method in _SERVICE.methods
    }
    handler = grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)
    server.add_generic_rpc_handlers((handler,))
