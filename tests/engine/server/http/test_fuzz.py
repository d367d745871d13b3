"""Random requests against a running server: each is answered as HTTP says, and harms no other."""

import json
from http.client import HTTPException
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.server.http.conftest import HttpServer
from tests.http_client import ask, connected, encoded, request_bytes

GROUP = {"prompt": "p", "responses": ["a"]}
SHARED_SERVER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(max_size=20) | st.sampled_from(["", "\0", "<|im_end|>", "\U0010ffff"])
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.integers(0, 9)
scalars = st.none() | st.booleans() | numbers | texts
values: Any = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3)
)
messages = st.fixed_dictionaries({}, optional={"role": texts, "content": texts | values})
prompts = (
    texts
    | st.lists(messages | st.integers(0, 60_000), max_size=4)
    | st.fixed_dictionaries(
        {},
        optional={
            "text": texts,
            "messages": st.lists(messages, max_size=3),
            "tokenIds": st.lists(numbers, max_size=3),
            "templated_text": texts,
        },
    )
)
responses = texts | st.lists(st.integers(-1, 60_000), max_size=4) | st.just({"text": "a"})
groups = st.fixed_dictionaries(
    {"prompt": prompts | values, "responses": st.lists(responses | values, max_size=5) | values},
    optional={"priority": texts | st.integers(-1, 5), "model": texts, "pairs": values},
)
paths = st.sampled_from(["/v1/rewards", "/v1/ranks", "/v1/comparisons"])


@given(path=paths, body=groups | values | st.fixed_dictionaries({"group": groups}))
@SHARED_SERVER
def test_any_json_gets_a_result_or_an_error(http: HttpServer, path: str, body: Any) -> None:
    reply = ask(http.port, "POST", path, encoded(body))
    assert reply.status in (200, 400, 404), (reply, body)
    if reply.status == 200:
        assert len(reply.json["scored"]["rewards"]) == len((body.get("group") or body)["responses"])
    else:
        assert reply.json["error"]["message"]


@given(
    path=paths,
    start=st.integers(0, 60),
    removed=st.integers(0, 20),
    inserted=st.binary(max_size=20),
)
@SHARED_SERVER
def test_any_bytes_get_a_result_or_an_error(
    http: HttpServer, path: str, start: int, removed: int, inserted: bytes
) -> None:
    content = json.dumps({"prompt": "Why?", "responses": ["a", "é", [1, 2]]}).encode()
    changed = content[:start] + inserted + content[start + removed :]
    reply = ask(http.port, "POST", path, changed)
    assert reply.status in (200, 400), reply
    assert reply.json


@given(start=st.integers(0, 200), removed=st.integers(0, 30), inserted=st.binary(max_size=30))
@SHARED_SERVER
def test_any_bytes_on_a_connection_leave_the_server_healthy(
    http: HttpServer, start: int, removed: int, inserted: bytes
) -> None:
    whole = request_bytes("POST", "/v1/rewards", GROUP, kwise_client="fuzz")
    with connected(http.port) as connection:
        connection.socket.sendall(whole[:start] + inserted + whole[start + removed :])
        connection.socket.shutdown(1)
        try:
            reply = connection.read()
        except (HTTPException, ConnectionError):
            return  # half of a request, and the connection was closed
        assert reply.status in (200, 400, 404, 405, 413, 415), reply
        assert b"Traceback" not in reply.body


def test_the_server_is_healthy_afterwards(http: HttpServer) -> None:
    http.assert_healthy()
    assert "Traceback" not in http.server.log.text
