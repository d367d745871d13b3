"""What a caller without a token gets on each port, and whose name a call has."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.client import AsyncRewardClient, Credentials, RewardClient, RewardServiceError
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc.services import SERVICES
from kwise.engine.server.http.table import ENDPOINTS
from kwise.engine.server.security.credentials import Credentials as ServerCredentials
from kwise.errors import Unauthenticated
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.rl.connection import Connection
from kwise.types import CLIENT_KEY
from tests.certificates import Authority
from tests.engine.server.security.conftest import (
    ALICE,
    BOB,
    TOKENS,
    Secured,
    credentials_of,
    status_of,
)
from tests.held_model import HeldModel, running_held_server
from tests.http_client import ask, connected, http_port
from tests.requests import score_request
from tests.servers import PATIENCE_S, running_server, wait_until

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
BODY = {"prompt": "Why?", "responses": ["So.", "Dunno."]}
OPEN_PATHS = {"/health", "/readyz", "/ping", "/livez"}
GROUP = ("Why?", ["So.", "Dunno."])


@pytest.fixture
def channel(token_server: Secured) -> Iterator[Any]:
    with grpc.insecure_channel(token_server.server.address) as opened:
        yield opened


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def all_rpcs() -> list[tuple[str, bool]]:
    """Return the path of each rpc, and whether its client streams."""
    rpcs = [
        (f"/{entry.descriptor.full_name}/{method.name}", bool(method.client_streaming))
        for entry in SERVICES
        for method in entry.descriptor.methods
    ]
    return [*rpcs, (REFLECTION, True), ("/kwise.v1.RewardService/Unknown", False)]


@pytest.mark.parametrize(("path", "streams"), all_rpcs())
def test_no_rpc_answers_without_a_token(channel: Any, path: str, streams: bool) -> None:
    """The message is not one of the rpc's, and is not parsed."""
    wrong: list[Any] = [(), bearer(f"{ALICE}x"), (*bearer(ALICE), *bearer(ALICE))]
    wrong += [(("authorization", f"Basic {ALICE}"),), (("authorization", "x" * 4000),)]
    for metadata in wrong:
        if streams:
            replies = channel.stream_stream(path)(iter([b"\xff"]), metadata=metadata)
            status = status_of(lambda replies=replies: list(replies))
        else:
            call = channel.unary_unary(path)
            status = status_of(call, b"\xff", metadata=metadata, timeout=PATIENCE_S)
        assert status is grpc.StatusCode.UNAUTHENTICATED


def test_a_valid_token_opens_every_rpc(channel: Any) -> None:
    for path, streams in all_rpcs():
        if streams:
            replies = channel.stream_stream(path)(iter(()), metadata=bearer(ALICE))
            status = status_of(lambda replies=replies: list(replies))
        else:
            status = status_of(channel.unary_unary(path), b"", metadata=bearer(BOB))
        assert status is not grpc.StatusCode.UNAUTHENTICATED


def test_health_is_open_on_both_ports(token_server: Secured, channel: Any) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="kwise.v1.RewardService")
    assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    assert next(stub.Watch(request)).status == health_pb2.HealthCheckResponse.SERVING
    for path in OPEN_PATHS:
        assert ask(token_server.port, "GET", path).status == 200


def test_only_health_is_open_over_http() -> None:
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.is_open} == OPEN_PATHS


def test_no_endpoint_answers_without_a_token(token_server: Secured) -> None:
    closed = [endpoint for endpoint in ENDPOINTS if endpoint.path not in OPEN_PATHS]
    requests: list[tuple[str, str]] = [(endpoint.method, endpoint.path) for endpoint in closed]
    requests += [("GET", "/unknown"), ("OPTIONS", "/v1/rewards"), ("PUT", "/v1/rewards")]
    requests += [("HEAD", "/v1/model"), ("GET", "//health"), ("GET", "/health/"), ("GET", "/")]
    wrong = [{}, {"authorization": f"Bearer {ALICE}x"}, {"authorization": f"Token {ALICE}"}]
    for method, path in requests:
        for headers in wrong:
            body = BODY if method == "POST" else None
            with connected(token_server.port) as connection:
                connection.send(method, path, body, **headers)
                reply = connection.read(method)
            assert reply.status == 401, (method, path, reply)
            assert reply.headers["www-authenticate"].startswith('Bearer realm="kwise"')
            is_wrong = headers.get("authorization", "").startswith("Bearer")
            assert ("invalid_token" in reply.headers["www-authenticate"]) is is_wrong
            assert ALICE not in str(reply)


@pytest.mark.parametrize("path", ["/v1/models/any", "/v1/models/an/y"])
def test_the_errors_of_a_path_have_the_form_of_its_protocol(
    token_server: Secured, path: str
) -> None:
    assert ask(token_server.port, "GET", path).json["error"]["code"] == 401  # OpenAI's
    assert ask(token_server.port, "GET", "/v1/model").json["error"]["code"] == "UNAUTHENTICATED"


def test_a_valid_token_opens_http(token_server: Secured) -> None:
    for value in (f"Bearer {ALICE}", f"bearer  {BOB}", f"BEARER {BOB}\t"):
        reply = ask(token_server.port, "POST", "/v1/rewards", BODY, authorization=value)
        assert reply.status == 200, reply


def test_several_authorization_headers_are_refused(token_server: Secured) -> None:
    head = "\r\n".join(
        ["GET /v1/model HTTP/1.1", "host: x", *[f"authorization: Bearer {ALICE}"] * 2, "", ""]
    )
    with connected(token_server.port) as connection:
        connection.socket.sendall(head.encode())
        assert connection.read().status == 401


def test_http_refuses_before_the_body_arrives(token_server: Secured) -> None:
    """The body would be read first, up to --max-message-bytes."""
    with connected(token_server.port) as connection:
        head = "POST /v1/rewards HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n"
        connection.socket.sendall(head.encode())
        assert connection.read().status == 401


def test_grpc_refuses_before_the_message_arrives(token_server: Secured) -> None:
    """A server that received the message would answer that it is over --max-message-bytes."""
    message = bytes(65 << 20)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(token_server.server.address, options) as channel:
        call: Any = channel.unary_unary("/kwise.v1.RewardService/Score")
        assert status_of(call, message) is grpc.StatusCode.UNAUTHENTICATED
        assert status_of(call, message, metadata=bearer(ALICE)) is RESOURCE_EXHAUSTED


def test_the_clients_send_the_token_and_do_not_repeat_a_refused_call(
    token_server: Secured,
) -> None:
    address = token_server.server.address
    with RewardClient(address, credentials=Credentials(token=ALICE)) as client:
        assert len(client.score(*GROUP).values) == 2
        assert len(list(client.score_many([GROUP] * 3))) == 3
        assert client.get_model().model == "tiny"
    for credentials in (Credentials(), Credentials(token=f"{ALICE}x")):
        with RewardClient(address, credentials=credentials) as client:
            for call in (lambda c=client: c.score(*GROUP), lambda c=client: c.get_model()):
                with pytest.raises(RewardServiceError) as raised:
                    call()
                assert raised.value.code == "UNAUTHENTICATED"
            with pytest.raises(RewardServiceError, match="UNAUTHENTICATED"):
                list(client.score_many([GROUP]))


@pytest.mark.parametrize("token", ["", f"{ALICE}x"])
def test_several_servers_that_refuse_the_token_end_the_call(
    token_server: Secured, tls_server: Secured, token: str
) -> None:
    port = token_server.server.address.rpartition(":")[2]
    addresses = [f"localhost:{port}", f"127.0.0.1:{port}"]
    with (
        RewardClient(addresses, credentials=Credentials(token=token)) as client,
        pytest.raises(RewardServiceError, match="UNAUTHENTICATED"),
    ):
        client.score(*GROUP)


def test_the_clients_take_all_from_the_environment(
    tls_server: Secured, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do the commands and the RL adapters. A DNS name is checked, not the address found."""
    address = tls_server.server.address
    monkeypatch.setenv("KWISE_TOKEN", ALICE)
    monkeypatch.setenv("KWISE_TLS_CA", str(authority.cert))

    async def score() -> int:
        async with AsyncRewardClient(f"dns:///{address}") as client:
            return len((await client.score(*GROUP)).values)

    assert asyncio.run(score()) == 2
    with RewardClient(f"dns:///{address}") as client:
        assert len(client.score(*GROUP).values) == 2
    blocking = Connection(address).blocking()
    assert len(blocking.score(*GROUP).values) == 2
    blocking.close()
    command = [sys.executable, "-m", "kwise", "score", "--server", address, "--json"]
    command += ["--prompt", "Why?", "--response", "So."]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("KWISE_TOKEN", f"{ALICE}x")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "UNAUTHENTICATED" in done.stderr and ALICE not in done.stderr


def test_tls_of_a_client_with_the_name_of_another_host_is_refused(
    tls_server: Secured, authority: Authority
) -> None:
    """The certificate is for localhost and 127.0.0.1, and 127.0.0.2 is this machine too."""
    port = tls_server.server.address.rpartition(":")[2]
    credentials = credentials_of(authority.cert, token=ALICE)
    with (
        RewardClient(f"127.0.0.2:{port}", credentials=credentials, connect_timeout_s=1) as client,
        pytest.raises(RewardServiceError, match="UNAVAILABLE"),
    ):
        client.score(*GROUP)


def test_the_tokens_name_is_the_client_whatever_the_call_says(
    tiny_artifact: Path, tmp_path: Path, held: HeldModel
) -> None:
    """A client may queue as many tokens as are left free. Alice has the half of the queue.

    Her next group is refused, also if it claims to be somebody else's. Bob's is accepted, although
    it claims to be hers.
    """
    token_file = tmp_path / "tokens"
    token_file.write_text(TOKENS)
    options = ("--token-file", str(token_file), "--http-port", "0", "--max-queue-tokens", "300")
    with running_held_server(tiny_artifact, held, *options) as server, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        port = http_port(server)
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)

        def long(text: str) -> pb.ScoreRequest:
            return score_request(
                prompt=pb.Prompt(text=f"{text} " * 100), responses=[pb.Response(text="So.")]
            )

        def status(token: str, claimed: str, text: str) -> int:
            body = {"prompt": f"{text} " * 100, "responses": ["So."]}
            headers = {"authorization": f"Bearer {token}", "kwise_client": claimed}
            timed = {"kwise_timeout_s": "0.05"} if token == BOB else {}
            return ask(port, "POST", "/v1/rewards", body, **headers, **timed).status

        held.hold()
        first = stub.Score.future(long("one"), metadata=bearer(ALICE))
        held.wait_for_batches(1)
        second = stub.Score.future(long("two"), metadata=bearer(ALICE))
        held.wait_for_tokenised(2)
        claim = ((CLIENT_KEY, "bob"),)
        refused = status_of(stub.Score, long("three"), metadata=(*bearer(ALICE), *claim))
        assert refused is RESOURCE_EXHAUSTED
        assert status(ALICE, "bob", "four") == 429
        assert status(BOB, "alice", "five") == 504  # it waits for the model
        third = stub.Score.future(long("six"), metadata=(*bearer(BOB), (CLIENT_KEY, "alice")))
        held.wait_for_tokenised(4)
        held.release()
        for call in (first, second, third):
            assert len(call.result(PATIENCE_S).scored.rewards) == 1


def test_tokens_are_reread_and_a_broken_file_keeps_the_earlier_ones(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    token_file = tmp_path / "tokens"
    token_file.write_text(TOKENS)
    options = ("--token-file", str(token_file), "--http-port", "0")
    with running_server(tiny_artifact, *options) as server, ExitStack() as stack:
        port = http_port(server)
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)

        def status(token: str) -> int:
            return ask(port, "GET", "/v1/model", authorization=f"Bearer {token}").status

        def grpc_status(token: str) -> grpc.StatusCode:
            return status_of(stub.GetModel, pb.GetModelRequest(), metadata=bearer(token))

        assert (status(ALICE), status(BOB)) == (200, 200)
        new = tmp_path / "new"
        new.write_text(f"alice:{ALICE}\n")
        new.replace(token_file)
        wait_until(lambda: status(BOB) == 401)
        assert grpc_status(BOB) is grpc.StatusCode.UNAUTHENTICATED
        assert (status(ALICE), grpc_status(ALICE)) == (200, grpc.StatusCode.OK)
        token_file.write_text(f"alice {BOB}\n")
        wait_until(lambda: "the earlier tokens stay in use" in server.log.text)
        assert (status(ALICE), status(BOB)) == (200, 401)
        assert BOB not in server.log.text and ALICE not in server.log.text


def test_refusals_fill_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    time_s = 0.0
    credentials = ServerCredentials(ServerConfig(token_file=path), now=lambda: time_s)
    for _ in range(1000):
        credentials.log_refusal("1.2.3.4", Unauthenticated("the call has no token"))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("1 call had no valid token")
    time_s = 10.0
    credentials.log_refusal("1.2.3.4", Unauthenticated("the call has no token"))
    assert caplog.messages[1].startswith("1000 calls had no valid token")
