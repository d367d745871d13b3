"""Malformed requests get an error, and harm no other caller.

Each test attacks one server, whose whole log is read at the end.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kwise.client import Credentials, RewardServiceError
from kwise.client.admin import AdminClient
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc.health import MAX_NAME_CHARACTERS
from kwise.engine.server.grpc.services import ADMIN, HEALTH, SERVICES
from kwise.engine.server.security.credentials import Credentials as ServerCredentials
from kwise.errors import ConfigError, Status, Unauthenticated
from tests.engine.server.security.conftest import ALICE, TOKENS, Secured, status_of
from tests.http2 import Http2Connection
from tests.http_client import connected, http_port
from tests.servers import PATIENCE_S, running_server

ROOT = "root-0123456789abcdef"
MARK = "my-secret-text"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
TRACEPARENT = f"00-{'1' * 32}-{'2' * 16}-01"


@pytest.fixture(scope="module")
def attacked(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with tokens, administrators and traces. Nothing receives the traces."""
    directory = tmp_path_factory.mktemp("attacked")
    callers, admins = directory / "callers", directory / "admins"
    callers.write_text(TOKENS)
    admins.write_text(f"root:{ROOT}\n")
    options = ["--http-port", "0", "--token-file", str(callers), "--admin-token-file", str(admins)]
    options += ["--log-format", "json", "--log-level", "debug"]
    with running_server([f"tiny={tiny_artifact}"], *options, *_traced()) as server:
        yield Secured(server=server, port=http_port(server), token_file=callers)
        assert server.process.poll() is None
    messages = [json.loads(line) for line in server.log.text.splitlines()]
    assert not [message for message in messages if "Traceback" in str(message)]
    for secret in (MARK, ALICE, ROOT):
        assert secret not in server.log.text


def _traced() -> list[str]:
    return ["--otlp-endpoint", "http://127.0.0.1:1"]


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def port_of(secured: Secured) -> int:
    return int(secured.server.address.rpartition(":")[2])


def test_bytes_that_are_no_message_are_the_callers_fault(attacked: Secured) -> None:
    descriptors: list[Any] = [*(entry.descriptor for entry in SERVICES), ADMIN, HEALTH]
    with grpc.insecure_channel(attacked.server.address) as channel:
        for descriptor in descriptors:
            metadata = bearer(ROOT if descriptor is ADMIN else ALICE)
            if descriptor is HEALTH:
                metadata = ()
            for method in descriptor.methods:
                call: Any = channel.stream_stream(f"/{descriptor.full_name}/{method.name}")
                replies = call(iter([b"\xff"]), metadata=metadata, timeout=PATIENCE_S)
                status = status_of(lambda replies=replies: list(replies))
                expected = [grpc.StatusCode.INVALID_ARGUMENT]
                if method.client_streaming:  # its handler may end the call before it reads
                    expected.append(grpc.StatusCode.UNIMPLEMENTED)
                assert status in expected, method.full_name
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        reflect: Any = channel.stream_stream(path)
        (reply,) = reflect(iter([b"\xff"]), metadata=bearer(ALICE))
        parsed = reflection_pb2.ServerReflectionResponse.FromString(reply)
        assert parsed.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = stub.ServerReflectionInfo(iter([request]), metadata=bearer(ALICE))
        assert len(listed.list_services_response.service) == len(descriptors) + 1


@pytest.mark.parametrize("key", ["kwise-client", "x-request-id", "authorization", "traceparent"])
@pytest.mark.parametrize(
    "method", ["kwise.v1.RewardService/GetModel", "grpc.health.v1.Health/Check"]
)
def test_metadata_that_is_not_utf_8_is_not_logged(attacked: Secured, key: str, method: str) -> None:
    for token in ([], [("authorization", f"Bearer {ALICE}".encode())]):
        with Http2Connection(port_of(attacked)) as connection:
            connection.call(f"/{method}", [*token, (key, MARK.encode() + b"\xff\x80")])
            connection.wait_for_headers()


@pytest.mark.parametrize(
    "headers",
    [
        {"baggage": ",".join([MARK] * 100)},
        {"baggage": MARK * 1000},
        {"baggage": f"{MARK}=\xff"},
        {"traceparent": TRACEPARENT, "tracestate": f"{MARK} {MARK}"},
        {"traceparent": TRACEPARENT, "tracestate": "a=1," * 2000},
        {"traceparent": MARK * 1000},
    ],
)
def test_headers_of_traces_that_are_malformed_are_not_logged(
    attacked: Secured, headers: dict[str, str]
) -> None:
    with connected(attacked.port) as connection:
        lines = {"host": "x", "authorization": f"Bearer {ALICE}", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.socket.sendall(f"GET /v1/model HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        assert connection.read().status == 200


def test_a_path_that_names_a_model_opens_no_closed_path(attacked: Secured) -> None:
    def status(path: str, token: str = "") -> int:
        with connected(attacked.port) as connection:
            head = f"authorization: Bearer {token}\r\n" if token else ""
            request = f"GET {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n"
            connection.socket.sendall(request.encode("latin-1"))
            return connection.read().status

    assert status("/models/tiny/health") == 200
    assert status("/models/tiny/metrics", ALICE) == 200
    for name in ("other", "..", "%2e%2e", "%C3%A9", "%ff", "tin%00", "x" * 5000):
        assert status(f"/models/{name}/health") == 404, name  # it was 200, as if it served
        assert status(f"/models/{name}/metrics", ALICE) == 404, name
    for path in (
        "/models/tiny/metrics",
        "/models/tiny/models/tiny/health",
        "/models/tiny/health/../metrics",
        "/models/tiny%2fhealth",
        "/models/tiny/%6detrics",
        "/models//health",
        "/models/tiny//health",
        "/models/tiny/health%2f..%2fmetrics",
        "/%6dodels/tiny/metrics",
        "//models/tiny/health",
        "http://x/models/tiny/metrics",
        "/health%0a",
        "/health;/metrics",
    ):
        assert status(path) == 401, path


def test_a_long_name_of_a_service_is_refused(attacked: Secured) -> None:
    """A watch would keep it in memory for as long as it is open."""
    with grpc.insecure_channel(attacked.server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for size, expected in (
            (MAX_NAME_CHARACTERS, grpc.StatusCode.NOT_FOUND),
            (MAX_NAME_CHARACTERS + 1, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            request = health_pb2.HealthCheckRequest(service="x" * size)
            assert status_of(stub.Check, request) is expected
        watch = stub.Watch(request, timeout=PATIENCE_S)
        assert status_of(next, watch) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watch_that_ends_or_is_not_read_keeps_no_other_from_changes(tiny_artifact: Path) -> None:
    """With the servicer of grpcio-health-checking, the second one also kept the server from ending.

    Neither needs a token.
    """
    with running_server(tiny_artifact) as server:
        port = int(server.address.rpartition(":")[2])
        with (
            Http2Connection(port, window=0) as unread,
            grpc.insecure_channel(server.address) as channel,
        ):
            unread.call("/grpc.health.v1.Health/Watch")
            unread.wait_for_headers()
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            watch, other = (stub.Watch(request, timeout=PATIENCE_S) for _ in range(2))
            assert (next(watch).status, next(other).status) == (SERVING, SERVING)
            other.cancel()
            assert status_of(next, other) is grpc.StatusCode.CANCELLED
            assert stub.Check(request).status == SERVING  # by now the server knows
            server.process.send_signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            assert server.process.wait(PATIENCE_S) == 0


def test_tricks_with_the_directory_of_an_artifact_are_refused(
    attacked: Secured, tmp_path: Path
) -> None:
    pipe, device, loop, folder = (tmp_path / name for name in ("pipe", "device", "loop", "folder"))
    for directory in (pipe, device, loop, folder):
        directory.mkdir()
    os.mkfifo(pipe / "manifest.json")
    (device / "manifest.json").symlink_to("/dev/zero")
    (loop / "manifest.json").symlink_to("manifest.json")
    (folder / "manifest.json").mkdir()
    credentials = Credentials(token=ROOT)
    with AdminClient(
        attacked.server.address, timeout_s=PATIENCE_S, credentials=credentials
    ) as administrator:
        for artifact, expected in (
            *((str(path), Status.FAILED_PRECONDITION) for path in (pipe, device, loop, folder)),
            ("/etc", Status.FAILED_PRECONDITION),
            ("/" + "x" * 300, Status.INVALID_ARGUMENT),  # longer than a name may be
            ("/x" * 3000, Status.INVALID_ARGUMENT),  # longer than a path may be
            ("/a\0b", Status.INVALID_ARGUMENT),
            ("/a\nb", Status.INVALID_ARGUMENT),
            ("/etc/passwd", Status.INVALID_ARGUMENT),
            ("../etc", Status.INVALID_ARGUMENT),
        ):
            with pytest.raises(RewardServiceError) as raised:
                administrator.load_model("x", artifact)
            assert raised.value.status is expected, (artifact[:50], raised.value)
        assert [model.model for model in administrator.list_models()] == ["tiny"]


def test_a_token_is_a_callers_or_an_administrators(tmp_path: Path) -> None:
    callers, admins = tmp_path / "callers", tmp_path / "admins"
    callers.write_text(f"alice:{ALICE}\n")
    admins.write_text(f"root:{ROOT}\n")
    config = ServerConfig(token_file=callers, admin_token_file=admins)
    credentials = ServerCredentials(config)
    header = [f"Bearer {ROOT}"]
    assert credentials.admin_name_of(header) == "root"
    callers.write_text(f"alice:{ROOT}\n")
    with pytest.raises(ConfigError, match="administrators tokens of their own"):
        ServerCredentials(config)
    with pytest.raises(ConfigError, match="administrators tokens of their own"):
        ServerCredentials(ServerConfig(token_file=admins, admin_token_file=admins))
    credentials.reread()
    assert credentials.name_of(header) == "alice"
    with pytest.raises(Unauthenticated, match="not that of an administrator"):
        credentials.admin_name_of(header)
