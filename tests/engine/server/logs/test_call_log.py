"""The log of calls: summaries of failed and slow ones, ids, and each call at debug."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from kwise.engine.server.logs import summaries
from kwise.engine.server.logs.call_log import CallLog
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from tests.engine.server.calls.conftest import Observed, body_of, group_of, observed_service
from tests.http_client import ask, http_port
from tests.servers import running_server, wait_until
from tests.sum_session import POISON

LOGGER = "kwise.engine.server.logs.call_log"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


async def refused(observed: Observed, client: str, group: pb.Group | None = None) -> dict[str, str]:
    """Make a call that fails, and return its trailing metadata."""
    stub: Any = reward_pb2_grpc.RewardServiceStub(observed.channel)
    num_calls = len(observed.calls)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Score(pb.ScoreRequest(group=group), metadata=[("kwise-client", client)])
    # An error is sent before the handler ends, and before the call is observed.
    await observed.until(lambda: len(observed.calls) > num_calls)
    return dict(raised.value.trailing_metadata())


async def test_refusals_of_a_client_are_one_line_at_once_and_one_with_their_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with observed_service() as observed:
        call_log = CallLog(0)
        observed.service.observers.append(call_log)
        last = ""
        for _ in range(100):
            last = (await refused(observed, "mine"))["x-request-id"]
        await refused(observed, "other")
        call_log.close()
    assert [record.levelname for record in caplog.records if record.name == LOGGER] == [
        "WARNING",
        "WARNING",
        "WARNING",
    ]
    first, of_other, summary = lines(caplog)
    assert first.startswith("a call of client mine failed with INVALID_ARGUMENT (request ")
    assert "a call of client other" in of_other
    assert summary.startswith(
        "99 calls of client mine failed in 10 s with INVALID_ARGUMENT; the last (request "
        f"{last}, kwise.v1.RewardService/Score): "
    )
    assert "prompt" in summary  # the cause


async def test_a_summary_is_written_when_its_time_has_come(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "PERIOD_S", 0.01)
    async with observed_service() as observed:
        observed.service.observers.append(CallLog(0))
        while not any("calls of client mine failed in" in line for line in lines(caplog)):
            await refused(observed, "mine")
        num_lines = len(lines(caplog))
        assert 2 <= num_lines <= len(observed.calls)


async def test_one_summary_holds_the_calls_of_clients_without_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "MAX_KEYS", 2)
    async with observed_service() as observed:
        call_log = CallLog(0)
        observed.service.observers.append(call_log)
        for number in range(6):
            await refused(observed, f"client-{number}")
        call_log.close()
    assert len(lines(caplog)) == 4
    assert lines(caplog)[-1].startswith("3 calls of other clients failed in 10 s")


async def test_slow_calls_are_one_line_with_the_slowest_and_its_stages(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with observed_service() as observed:
        call_log = CallLog(1e-9)
        observed.service.observers.append(call_log)
        for response in range(5):
            body = body_of(response, response + 1)
            reply = await observed.ask("POST", "/v1/rewards", body, kwise_client="mine")
            assert reply.headers["x-request-id"]
        call_log.close()
        slowest = max(observed.calls[1:], key=lambda call: call.duration_s)
    assert len(lines(caplog)) == 2
    assert re.fullmatch(
        r"4 slow calls of client mine in 10 s \(--slow-call-s\); the slowest: request "
        rf"{slowest.request_id}, POST /v1/rewards, 2 responses, took \d\.\d s "
        r"\(tokenizer \d\.\d s, queue \d\.\d s, model \d\.\d s\)",
        lines(caplog)[1],
    )


async def test_debug_has_a_line_for_each_call_and_for_each_request_of_a_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    async with observed_service() as observed:
        observed.service.observers.append(CallLog(0))
        stub: Any = reward_pb2_grpc.RewardServiceStub(observed.channel)
        await stub.Score(
            pb.ScoreRequest(group=group_of(1, 2)), metadata=[("x-request-id", "my-id")]
        )
        requests = [pb.ScoreStreamRequest(group=group_of(response)) for response in range(3)]
        stream = stub.ScoreStream(iter(requests))
        async for _ in stream:
            pass
        stream_id = dict(await stream.trailing_metadata())["x-request-id"]
    first, *others = lines(caplog)
    assert re.fullmatch(
        r"kwise.v1.RewardService/Score OK \d+\.\d ms 2 responses of sum "
        r"\(request my-id of ipv4:127\.0\.0\.1:\d+\)",
        first,
    )
    assert len(others) == 4
    assert all(f"(request {stream_id} of " in line for line in others)


@pytest.mark.parametrize("given", ["my-id.1:2/3", "two words", "x" * 129, 'say "hi"', ""])
async def test_an_id_that_is_fit_for_the_log_is_returned_and_another_one_is_replaced(
    given: str,
) -> None:
    async with observed_service() as observed:
        bad = {"prompt": [1], "responses": [[POISON]]}
        reply = await observed.ask("POST", "/v1/rewards", bad, x_request_id=given)
        assert reply.status == 500
        returned = reply.headers["x-request-id"]
        assert (returned == given) == (given == "my-id.1:2/3")
        assert re.fullmatch(r"[A-Za-z0-9._:/+=@-]{1,128}", returned)


async def test_ids_are_made_only_for_calls_that_need_one() -> None:
    async with observed_service() as observed:
        observed.service.observers.append(CallLog(0))
        reply = await observed.ask("POST", "/v1/rewards", body_of(1))
        assert "x-request-id" not in reply.headers
        reply = await observed.ask("POST", "/v1/rewards", body_of(1), x_request_id="mine")
        assert reply.headers["x-request-id"] == "mine"


def test_a_log_in_json_has_an_object_a_line_with_the_fields_of_the_call(
    tiny_artifact: Path,
) -> None:
    options = ("--http-port", "0", "--log-format", "json", "--log-level", "debug")
    with running_server(tiny_artifact, *options) as server:
        port = http_port(server)
        body = {"prompt": "Hello", "responses": ["a", "b"]}
        assert ask(port, "POST", "/v1/rewards", body, x_request_id="one").status == 200
        assert ask(port, "POST", "/v1/rewards", {}, kwise_client="me").status == 400
        wait_until(lambda: "a call of client" in server.log.text)
    entries = [json.loads(line) for line in server.log.text.splitlines()]
    for entry in entries:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
        assert entry["level"] in ("debug", "info", "warning")
        assert entry["logger"] and entry["message"]
    (ok,) = (entry for entry in entries if entry.get("request_id") == "one")
    assert ok.pop("duration_ms") > 0
    assert {name: ok[name] for name in ("client", "model", "method", "status", "level")} == {
        "client": "127.0.0.1",
        "model": "tiny",
        "method": "POST /v1/rewards",
        "status": "OK",
        "level": "debug",
    }
    refusal = next(entry for entry in entries if entry["level"] == "warning")
    assert refusal["status"] == "INVALID_ARGUMENT"
    assert refusal["client"] == "me"
