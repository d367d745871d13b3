"""Open a channel of blocking gRPC to one server."""

import grpc

from kwise.client.channel import channel_options


def open_channel(
    address: str, tls: grpc.ChannelCredentials | None, authority: str = ""
) -> grpc.Channel:
    """Return a channel to a server. It connects with its first call.

    Args:
        address: HOST:PORT or a URI of gRPC.
        tls: None for a connection without TLS.
        authority: see `channel_options`.
    """
    options = channel_options(authority)
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls, options=options)
