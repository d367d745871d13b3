"""The options of a server: where it listens, how it ends, and how large a request may be."""

from dataclasses import dataclass
from pathlib import Path

from kwise.engine.server.logs.options import LogFormat, LogLevel
from kwise.engine.server.tracing.options import check_endpoint
from kwise.errors import ConfigError
from kwise.options import MAX_SECONDS, MAX_UINT32, check_bounds, option

RECEIVE_S = 60.0
_MAX_HTTP_CONNECTIONS = 16_384
# Options that need an HTTP port, with their defaults.
HTTP_OPTIONS = {"http_receive_s": RECEIVE_S, "max_http_connections": _MAX_HTTP_CONNECTIONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The options of one server.

    Raises:
        ConfigError: an option is out of its range, or does not suit another; names the option.
    """

    host: str = option(
        "127.0.0.1",
        "address to listen on; one that other machines reach, such as 0.0.0.0 for all networks, "
        "needs --token-file, --tls-client-ca or --insecure",
    )
    port: int = option(
        50051, "TCP port; 0 takes a free one and prints it", minimum=0, maximum=65535
    )
    http_port: int | None = option(
        None,
        "TCP port for HTTP, next to gRPC; 0 takes a free one and prints it; off unless it is given",
        minimum=0,
        maximum=65535,
    )
    http_receive_s: float = option(
        RECEIVE_S,
        "seconds that an HTTP client gets to send one request, and to read its reply",
        exclusive_minimum=0,
        maximum=MAX_SECONDS,
    )
    max_message_bytes: int = option(
        64 << 20, "largest request and reply, in bytes", minimum=1 << 10, maximum=(1 << 31) - 1
    )
    # A request is read and answered in slices. Only the look-up of its cached rewards is one step,
    # during which the event loop serves no other request: 1 ms for 2,000 responses.
    max_responses: int = option(2048, "responses of one request", minimum=1, maximum=MAX_UINT32)
    # A pair costs 4 us of the event loop, in slices, and 28 bytes of the reply, which protobuf
    # writes in one step: 10 ms for 100,000 pairs.
    max_pairs: int = option(
        50_000,
        "pairs of one Compare; all pairs of 316 responses are 49,770",
        minimum=1,
        maximum=MAX_UINT32,
    )
    ensemble: tuple[str, ...] = option(
        (),
        "NAME=MODEL,MODEL...: a model whose reward is the mean of those of other models of this "
        "server; replies say how far they disagree",
    )
    # Off by default: the queue limits what a client's calls cost, and a step of an RL library may
    # send thousands of calls at once.
    max_calls_per_client: int | None = option(
        None,
        "calls of one client in flight; more are refused. Off unless it is given",
        minimum=1,
        maximum=MAX_UINT32,
    )
    max_http_connections: int = option(
        _MAX_HTTP_CONNECTIONS,
        "HTTP connections that are open at once; more are closed",
        minimum=1,
        maximum=MAX_UINT32,
    )
    tls_cert: Path | None = option(
        None, "file with the certificate chain of the server in PEM, for TLS on both ports"
    )
    tls_key: Path | None = option(None, "file with the private key of --tls-cert in PEM")
    tls_client_ca: Path | None = option(
        None,
        "file with the certificates of the authorities of clients in PEM: clients need a "
        "certificate of one of them",
    )
    token_file: Path | None = option(
        None,
        "file with one NAME:TOKEN a line: calls need the header 'authorization: Bearer TOKEN'",
    )
    admin_token_file: Path | None = option(
        None,
        "file with one NAME:TOKEN a line for those who may load and unload models (kwise models); "
        "without it, the models cannot be changed",
    )
    insecure: bool = option(
        False, "listen on an address that other machines reach, and answer everybody"
    )
    log_level: LogLevel = option(
        LogLevel.INFO, "least important lines to log; debug has a line for each call"
    )
    log_format: LogFormat = option(
        LogFormat.TEXT, "form of the log: text, or one JSON object a line"
    )
    # Half of 60 s, after which many clients and proxies give up.
    slow_call_s: float = option(
        30.0,
        "seconds from which on a call is slow, which the log says in summary; 0 for never",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    otlp_endpoint: str = option(
        "",
        "URL of an OpenTelemetry collector that takes traces over OTLP/gRPC, such as "
        "http://localhost:4317; the variables OTEL_* hold as well",
    )
    grace_s: float = option(
        30.0,
        "seconds that running requests get to finish after SIGTERM",
        minimum=0,
        maximum=MAX_SECONDS,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        check_endpoint(self.otlp_endpoint)
        if self.port and self.port == self.http_port:
            raise ConfigError(
                f"--http-port: {self.http_port} is --port as well; give two different ports"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together; give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("--tls-client-ca is for TLS; give --tls-cert and --tls-key too")
