"""Clients that send too much, too slowly, or something else than a request, and those that leave.

Each fault costs its own connection at most, and the server is healthy afterwards.
"""

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kwise.client import RewardClient, RewardServiceError
from tests.engine.server.http.conftest import HttpServer
from tests.held_model import HeldModel, running_held_server
from tests.http_client import HttpConnection, ask, connected, encoded, http_port, request_bytes
from tests.servers import running_server, wait_until

GROUP = {"prompt": "p", "responses": ["a"]}
TOO_LARGE = {"prompt": "p" * 300_000, "responses": ["a"]}


@pytest.fixture(autouse=True)
def healthy(http: HttpServer) -> Iterator[None]:
    """Every test ends with a request that is answered."""
    yield
    http.assert_healthy()


@pytest.fixture
def connection(http: HttpServer) -> Iterator[HttpConnection]:
    with connected(http.port) as connection:
        yield connection


# Methods, paths and types


def test_paths_and_methods_that_do_not_exist_get_json(http: HttpServer) -> None:
    for method in ("GET", "POST", "PUT", "OPTIONS"):
        reply = ask(http.port, method, "/v1/reward")
        assert (reply.status, reply.json["error"]["code"]) == (404, "NOT_FOUND")
    assert ask(http.port, "POST", "/health/").status == 404  # no redirect: POST would become GET
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE"):
        reply = ask(http.port, method, "/v1/rewards")
        assert (reply.status, reply.headers["allow"]) == (405, "OPTIONS, POST")
        assert reply.json["error"]["message"].startswith(f"the method is {method}")


def test_head_and_options_come_by_themselves(connection: HttpConnection) -> None:
    whole = connection.ask("GET", "/v1/models")
    head = connection.ask("HEAD", "/v1/models")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    options = connection.ask("OPTIONS", "/v1/models")
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert connection.ask("HEAD", "/v1/rewards").status == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "application/json; charset=utf-16"},
        {"content_encoding": "gzip"},
    ],
)
def test_a_body_of_another_type_is_refused(http: HttpServer, headers: dict[str, str]) -> None:
    reply = http.post("/v1/rewards", GROUP, **headers)
    (name, value), *_ = headers.items()
    assert reply.status == 415
    assert f"{name.replace('_', '-')} is {value!r}" in reply.json["error"]["message"]


def test_usual_spellings_of_the_type_are_accepted(http: HttpServer) -> None:
    for given in ("application/json;charset=UTF-8", "Application/JSON"):
        assert http.post("/v1/rewards", GROUP, content_type=given).status == 200
    content = encoded(GROUP)
    head = f"POST /v1/rewards HTTP/1.1\r\nhost: h\r\ncontent-length: {len(content)}\r\n\r\n"
    with connected(http.port) as connection:
        connection.socket.sendall(head.encode() + content)
        assert connection.read().status == 200


def test_an_empty_body_is_told(http: HttpServer) -> None:
    for path in ("/v1/rewards", "/rerank", "/get_reward"):
        for body in (b"", b" \n"):
            reply = http.post(path, body)
            assert reply.status == 400
            message = reply.json["error"]["message"]
            assert message == "body: it is empty; send a JSON object"


def test_a_model_is_found_by_its_name(http: HttpServer) -> None:
    (card,) = http.get("/v1/models").json["data"]
    assert http.get(f"/v1/models/{card['id']}").json == card
    for other in ("other", "an/other", "an%2Fother"):
        reply = http.get(f"/v1/models/{other}")
        assert (reply.status, reply.json["error"]["type"]) == (404, "NotFoundError")
        assert reply.json["error"]["message"].startswith("model: ")


# Size


def test_a_body_over_the_limit_is_refused_and_the_connection_goes_on(
    connection: HttpConnection,
) -> None:
    reply = connection.ask("POST", "/v1/rewards", TOO_LARGE)
    assert reply.status == 413
    assert reply.json["error"]["message"] == (
        "the body is larger than 300000 bytes (--max-message-bytes)"
    )
    assert connection.ask("POST", "/v1/rewards", GROUP).status == 200


def test_a_body_that_declares_too_much_is_refused_before_it_is_sent(
    connection: HttpConnection,
) -> None:
    connection.send("POST", "/v1/rewards", b"", content_length="999999999")
    assert connection.read().status == 413


def test_a_body_in_chunks_is_read_up_to_the_limit(connection: HttpConnection) -> None:
    head = request_bytes("POST", "/v1/rewards", transfer_encoding="chunked")

    def chunks(content: bytes, size: int) -> bytes:
        parts = (content[start : start + size] for start in range(0, len(content), size))
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    connection.socket.sendall(head + chunks(encoded(GROUP), 5))
    assert connection.read().status == 200
    connection.socket.sendall(head + chunks(encoded(TOO_LARGE), 1000))
    assert connection.read().status == 413
    connection.socket.sendall(head + chunks(encoded(GROUP), 1))
    assert connection.read().status == 200


def test_headers_over_the_limit_are_refused(http: HttpServer) -> None:
    line = b"GET /health HTTP/1.1\r\nhost: h\r\n"
    for endless in (b"x: " + b"y" * 2_000_000, b"x: y\r\n" * 100_000):
        with connected(http.port) as connection:
            try:
                connection.socket.sendall(line + endless)
                reply = connection.read()
            except ConnectionError:
                # The kernel reset the connection, because the client went on sending.
                continue
            assert (reply.status, reply.headers["connection"]) == (431, "close")
            assert "larger than 65536 bytes" in reply.json["error"]["message"]
    with connected(http.port) as connection:
        connection.socket.sendall(line + b"x: " + b"y" * 60_000 + b"\r\n\r\n")
        assert connection.read().status == 200
        connection.socket.sendall(line + b"x: " + b"y" * 70_000 + b"\r\n\r\n")
        assert connection.read().status == 431
        assert connection.is_closed()


def test_headers_that_arrive_in_pieces_are_counted_once(connection: HttpConnection) -> None:
    whole = request_bytes("GET", "/health", x="y" * 40_000)
    for size in (9_000, 30_000):
        for start in range(0, len(whole), size):
            connection.socket.sendall(whole[start : start + size])
            wait_until(lambda: num_unread(connection) == 0)
        assert connection.read().status == 200


def num_unread(connection: HttpConnection) -> int:
    """Return the bytes that the server's side has not read yet, from the kernel's table."""
    client = f"{connection.socket.getsockname()[1]:04X}"
    server = f"{connection.socket.getpeername()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Sent and not acknowledged on the client's side, and received and not read on the server's.
    return sum(
        int(row[4].split(":")[0 if row[1][-4:] == client else 1], 16)
        for row in rows
        if {row[1][-4:], row[2][-4:]} == {client, server}
    )


# Time


def test_a_request_that_does_not_arrive_in_time_gets_408(http: HttpServer) -> None:
    whole = request_bytes("POST", "/v1/rewards", GROUP)
    with ExitStack() as opened:
        connections = []
        for num_bytes in (1, 20, whole.index(b"\r\n\r\n") + 2, len(whole) - 1):
            connections.append(opened.enter_context(connected(http.port)))
            connections[-1].socket.sendall(whole[:num_bytes])
        # The next request of a connection has its own time.
        connections.append(opened.enter_context(connected(http.port)))
        assert connections[-1].ask("POST", "/v1/rewards", GROUP).status == 200
        connections[-1].socket.sendall(whole[:-1])
        for connection in connections:
            reply = connection.read()
            assert reply.status == 408
            assert "within 1.5 s (--http-receive-s)" in reply.json["error"]["message"]
            assert connection.is_closed()


def test_a_request_that_arrives_a_byte_at_a_time_is_ended_all_the_same(http: HttpServer) -> None:
    """Each byte would start uvicorn's own time-out anew."""
    with connected(http.port) as connection:
        connection.socket.sendall(b"POST /v1/rewards HTTP/1.1\r\nx: ")
        connection.socket.settimeout(0.01)
        while True:
            try:
                connection.socket.sendall(b"y")
                if not connection.socket.recv(1, socket.MSG_PEEK):
                    break
                connection.socket.settimeout(60)
                assert connection.read().status == 408
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break


def test_a_connection_on_which_nothing_arrives_is_closed_without_a_word(http: HttpServer) -> None:
    with connected(http.port) as connection:
        assert connection.is_closed()


def test_the_rest_of_a_refused_body_must_arrive_in_time_too(connection: HttpConnection) -> None:
    connection.send("POST", "/v1/rewards", b"{", content_length="999999999")
    assert connection.read().status == 413
    assert connection.is_closed()


def test_a_client_that_reads_no_reply_loses_its_connection_only(http: HttpServer) -> None:
    group = {"prompt": "p", "responses": [str(number) for number in range(150)]}
    http.post("/v1/rewards", group)
    with connected(http.port) as silent:
        silent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(12):  # 1 MB each, more than the kernel's buffers hold
            silent.send("POST", "/v1/comparisons", group)
        http.assert_healthy()
        wait_until(lambda: not is_connected(http, silent))


def is_connected(http: HttpServer, connection: HttpConnection) -> bool:
    """Return True while the server has the connection. The kernel's table tells its side."""
    port = f"{connection.socket.getsockname()[1]:04X}"
    server = f"{http.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    states = [
        row[3] for row in rows if (row[1][-4:], row[2][-4:]) == (server, port) and row[9] != "0"
    ]
    return states == ["01"]


# What is not HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        b"POST /v1/rewards HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/rewards HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/rewards HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/rewards HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/rewards HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=lambda sent: repr(sent[:60]),
)
def test_what_is_not_http_gets_400(http: HttpServer, sent: bytes) -> None:
    with connected(http.port) as connection:
        connection.socket.sendall(sent)
        reply = connection.read()
        assert reply.status == 400, reply
        assert reply.json["error"]["code"] == "INVALID_ARGUMENT"
        assert connection.is_closed()


def test_an_upgrade_that_is_not_supported_is_answered_as_a_plain_request(http: HttpServer) -> None:
    """Java's HttpClient asks for HTTP/2 this way on its first request."""
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAM"}
    assert http.post("/v1/rewards", GROUP, **headers).status == 200
    with connected(http.port) as connection:
        whole = request_bytes("POST", "/v1/rewards", GROUP, **headers)
        end_of_head = whole.index(b"\r\n\r\n") + 4
        connection.socket.sendall(whole[:end_of_head])
        connection.socket.sendall(whole[end_of_head:] + whole)
        assert [connection.read().status for _ in range(2)] == [200, 200]
    reply = ask(http.port, "GET", "/health", connection="Upgrade", upgrade="websocket")
    assert reply.status == 200


@pytest.mark.parametrize("place", range(1, 11))
def test_an_upgrade_is_ignored_wherever_its_name_is_cut(
    connection: HttpConnection, place: int
) -> None:
    headers = {"connection": "Upgrade", "upgrade": "h2c"}
    whole = request_bytes("POST", "/v1/rewards", GROUP, **headers)
    cut = whole.index(b"\r\nupgrade:") + place
    for piece in (whole[:cut], whole[cut:]):
        connection.socket.sendall(piece)
        wait_until(lambda: num_unread(connection) == 0)
    assert connection.read().status == 200


def test_a_grpc_client_of_the_http_port_is_told_and_logged(http: HttpServer) -> None:
    with (
        RewardClient(f"127.0.0.1:{http.port}", connect_timeout_s=1) as client,
        pytest.raises(RewardServiceError, match="this looks like an HTTP port: give the port for"),
    ):
        client.score("p", ["a"])
    line = "a client at 127.0.0.1 speaks HTTP/2 to the HTTP port"
    wait_until(lambda: line in http.server.log.text)
    assert http.server.log.text.count(line) == 1
    with connected(http.port) as connection:
        connection.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert "this is HTTP/2, which gRPC clients" in connection.read().json["error"]["message"]


def test_a_client_with_a_url_of_https_is_logged(http: HttpServer) -> None:
    """It cannot read the reply: curl says "wrong version number", and no more."""
    context = ssl.create_default_context()
    for _ in range(2):
        address = ("127.0.0.1", http.port)
        with socket.create_connection(address) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")
    line = "a client at 127.0.0.1 speaks TLS to the HTTP port, which has no TLS; its URL must begin"
    wait_until(lambda: line in http.server.log.text)
    assert http.server.log.text.count(line) == 1


def test_a_malformed_request_is_not_called_another_version_of_http(http: HttpServer) -> None:
    with connected(http.port) as connection:
        connection.socket.sendall(b"POST /v1/rewards HTTP/1.1\r\ncontent-length: -1\r\n\r\n")
        message = connection.read().json["error"]["message"]
    assert message.startswith("this is not a valid HTTP/1.1 request; the request line, a header")


def test_a_client_that_asks_before_it_sends_the_body_is_told_to_go_on(
    connection: HttpConnection,
) -> None:
    whole = request_bytes("POST", "/v1/rewards", GROUP, expect="100-continue")
    end_of_head = whole.index(b"\r\n\r\n") + 4
    connection.socket.sendall(whole[:end_of_head])
    assert connection.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.socket.sendall(whole[end_of_head:])
    assert connection.read().status == 200
    connection.send("POST", "/v1/rewards", b"", expect="100-continue", content_length="999999")
    assert connection.read().status == 413


# Several requests of a connection


def test_pipelined_requests_are_answered_in_order(http: HttpServer) -> None:
    with connected(http.port) as connection:
        requests = [
            request_bytes("POST", "/v1/rewards", {"prompt": f"{n}", "responses": ["a"] * (n + 1)})
            for n in range(20)
        ]
        requests.insert(5, request_bytes("GET", "/nowhere"))
        requests.insert(9, request_bytes("POST", "/v1/rewards", b"x"))
        connection.socket.sendall(b"".join(requests))
        replies = [connection.read() for _ in requests]
        assert replies.pop(9).status == 400
        assert replies.pop(5).status == 404
        counts = [len(reply.json["scored"]["rewards"]) for reply in replies]
        assert counts == list(range(1, 21))


def test_http_1_0_and_connection_close_are_obeyed(http: HttpServer) -> None:
    for sent in (
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    ):
        with connected(http.port) as connection:
            connection.socket.sendall(sent)
            assert connection.read().status == 200
            assert connection.is_closed()


# Work that nobody waits for, and clients


def test_work_ends_with_its_client_or_its_time(tiny_artifact: Path, held: HeldModel) -> None:
    """A client that closes or resets its connection, closes half of it, or whose time is over."""
    options = ("--http-port", "0", "--cache-bytes", "0")

    def group(number: int) -> dict[str, object]:
        return {"prompt": f"Leave {number}.", "responses": ["a", "b"]}

    with running_held_server(tiny_artifact, held, *options) as server:
        port = http_port(server)

        def num_abandoned() -> int:
            return int(ask(port, "GET", "/v1/model").json["counters"]["abandoned"])

        held.hold()
        with connected(port) as first:
            first.send("POST", "/v1/rewards", {"prompt": "Held.", "responses": ["a"]})
            held.wait_for_batches(1)
            leaving = [HttpConnection(port) for _ in range(3)]
            for number, connection in enumerate(leaving):
                connection.send("POST", "/v1/rewards", group(number))
            held.wait_for_tokenised(4)
            assert num_abandoned() == 0
            leaving[0].socket.close()
            wait_until(lambda: num_abandoned() == 2)
            reset_at_close = struct.pack("ii", 1, 0)
            leaving[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_at_close)
            leaving[1].socket.close()
            wait_until(lambda: num_abandoned() == 4)
            leaving[2].socket.shutdown(socket.SHUT_WR)
            wait_until(lambda: num_abandoned() == 6)
            assert leaving[2].is_closed()
            leaving[2].socket.close()
            late = ask(port, "POST", "/v1/rewards", group(3), kwise_timeout_s="0.2")
            assert (late.status, late.json["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
            wait_until(lambda: num_abandoned() == 8)
            held.release()
            assert first.read().status == 200
        assert ask(port, "POST", "/v1/rewards", group(4), kwise_timeout_s="100").status == 200


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "1s", ""])
def test_a_time_that_is_not_one_is_refused(http: HttpServer, given: str) -> None:
    reply = http.post("/v1/rewards", GROUP, kwise_timeout_s=given)
    assert reply.status == 400
    assert f"header kwise-timeout-s: it is {given!r}" in reply.json["error"]["message"]


def test_a_client_is_who_it_says_or_its_address(tiny_artifact: Path, held: HeldModel) -> None:
    """A client may queue as many tokens as are free, so a second group of the same one is refused.

    Both of its groups come on connections of their own.
    """
    options = ("--http-port", "0", "--max-queue-tokens", "1024")
    large = {"prompt": "word " * 300, "responses": ["a"]}
    with running_held_server(tiny_artifact, held, *options) as server:
        port = http_port(server)
        held.hold()
        with connected(port) as running, connected(port) as first, connected(port) as second:
            running.send("POST", "/v1/rewards", GROUP)
            held.wait_for_batches(1)
            first.send("POST", "/v1/rewards", large)
            held.wait_for_tokenised(2)
            small = {"prompt": "word " * 250 + "q", "responses": ["a"]}
            refused = ask(port, "POST", "/v1/rewards", small)
            assert refused.status == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 10
            error = refused.json["error"]
            assert error["code"] == "RESOURCE_EXHAUSTED"
            assert 50 <= error["retry_after_ms"] <= 10_000
            second.send("POST", "/v1/rewards", small, kwise_client="another")
            held.wait_for_tokenised(3)
            held.release()
            assert [c.read().status for c in (running, first, second)] == [200] * 3


def test_a_port_that_is_taken_is_told(http: HttpServer, tiny_artifact: Path) -> None:
    options = ("--http-port", str(http.port))
    with (
        pytest.raises(AssertionError) as raised,
        running_server(tiny_artifact, *options),
    ):
        raise NotImplementedError
    assert (
        f"kwise serve: --host 127.0.0.1 --http-port {http.port}: cannot listen there: Address "
        "already in use; stop the other server, or choose another --http-port"
    ) in str(raised.value)
