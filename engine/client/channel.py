"""How a channel to a kwise server is set up, and what both clients agree on beside the messages."""

from json import dumps

_MAX_MESSAGE_BYTES = 64 << 20

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "kwise.v1.RewardService"}],
            # A restarting server is waited for, until the call's deadline. One that never answered is not there: the clients
            # wait for the first connection themselves, and for less.
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC's own upper limit
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", dumps(_SERVICE_CONFIG)),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # A request that does not fit this buffer is never sent again; gRPC's default is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.keepalive_time_ms", 60_000),  # a dead peer is noticed in 80 s; the server permits pings every 30 s
    ("grpc.keepalive_timeout_ms", 20_000),
]
DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_CONNECT_TIMEOUT_S = 30.0
