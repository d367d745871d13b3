"""Limits on what one client, and callers without a token, can hold open."""

import asyncio
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc import health
from kwise.protos.inference import inference_pb2, inference_pb2_grpc
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.protos.tei.v1 import tei_pb2, tei_pb2_grpc
from tests.engine.server.calls.conftest import body_of, group_of, observed_service
from tests.http_client import connected
from tests.servers import wait_until
from tests.sum_session import entered

ME = [("kwise-client", "me")]


async def test_a_client_with_too_many_calls_is_refused_over_every_protocol_and_others_are_not() -> (
    None
):
    async with observed_service() as observed:
        observed.service.limits = RequestLimits(max_calls_per_client=1)
        channel: Any = observed.channel
        score = reward_pb2_grpc.RewardServiceStub(channel).Score
        observed.session.gate.clear()
        running = score(pb.ScoreRequest(group=group_of(1)), metadata=ME)
        await entered(observed.session)

        infer = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        stream = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(iter(()), metadata=ME)
        for call in (
            score(pb.ScoreRequest(group=group_of(2)), metadata=ME),
            infer.ModelInfer(inference_pb2.ModelInferRequest(model_name="sum"), metadata=ME),
            tei_pb2_grpc.RerankStub(channel).Rerank(tei_pb2.RerankRequest(), metadata=ME),
            stream,
        ):
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers = dict(await call.trailing_metadata())
            assert trailers["grpc-retry-pushback-ms"] == "1000"
            assert "--max-calls-per-client" in await call.details()
        for path, body in (
            ("/v1/rewards", body_of(2)),
            ("/v1/rerank", {"query": "a", "documents": ["b"]}),
            ("/rerank", {"query": "a", "texts": ["b"]}),
            ("/get_reward", {"query": ["ab"], "prompts": ["a"]}),
        ):
            reply = await observed.ask("POST", path, body, kwise_client="me")
            assert (reply.status, reply.headers["retry-after"]) == (429, "1"), path
        assert (await observed.ask("GET", "/health", kwise_client="me")).status == 200

        other = score(pb.ScoreRequest(group=group_of(3)), metadata=[("kwise-client", "you")])
        observed.session.gate.set()
        assert len((await other).scored.rewards) == len((await running).scored.rewards) == 1
        await observed.until(lambda: not observed.service.calls_of)
        await score(pb.ScoreRequest(group=group_of(2)), metadata=ME)


async def test_watches_are_limited_and_checks_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_WATCHES", 2)
    async with observed_service() as observed:
        stub: Any = health_pb2_grpc.HealthStub(observed.channel)
        request = health_pb2.HealthCheckRequest()
        opened = [stub.Watch(request) for _ in range(2)]
        for watch in opened:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        refused = stub.Watch(request)
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        for watch in opened:
            watch.cancel()


async def test_connections_over_http_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(port=0, http_port=0, max_http_connections=2)
    async with observed_service(config) as observed:

        def has_room() -> bool:
            with suppress(OSError, HTTPException), connected(observed.http_port) as again:
                return again.ask("GET", "/health").status == 200
            return False

        def use_three() -> None:
            with connected(observed.http_port) as first, connected(observed.http_port) as second:
                assert first.ask("GET", "/health").status == 200
                assert second.ask("GET", "/health").status == 200
                with connected(observed.http_port) as third:
                    assert third.is_closed()
                assert first.ask("GET", "/health").status == 200
            wait_until(has_room)

        await asyncio.to_thread(use_three)
    assert "closed at once: --max-http-connections allows" in caplog.text
