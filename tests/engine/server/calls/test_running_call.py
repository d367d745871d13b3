"""Observers are told of each call once, with what it was and how it ended."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest

from kwise.engine.server.calls.running_call import CallKind, Protocol, RunningCall
from kwise.engine.server.grpc.services import SERVICES
from kwise.errors import Status
from kwise.protos.inference import inference_pb2, inference_pb2_grpc
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.protos.tei.v1 import tei_pb2, tei_pb2_grpc
from tests.engine.server.calls.conftest import Observed, body_of, group_of
from tests.servers import PATIENCE_S
from tests.sum_session import POISON, entered

SCORE = "kwise.v1.RewardService/Score"


def facts(call: RunningCall) -> tuple[str, Protocol, CallKind, str, Status | None, int]:
    return call.method, call.protocol, call.kind, call.model, call.status, call.num_responses


def is_whole(call: RunningCall) -> bool:
    return call.kind is not CallKind.STREAMED


async def test_a_call_over_grpc_is_observed_with_its_client(observed: Observed) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(observed.channel)
    await stub.Score(pb.ScoreRequest(group=group_of(1, 2)), metadata=[("kwise-client", "me")])
    (call,) = observed.calls
    assert facts(call) == (SCORE, Protocol.GRPC, CallKind.UNARY, "sum", Status.OK, 2)
    assert call.client == "me"
    assert call.duration_s > 0


async def test_a_call_over_http_is_observed_with_its_client(observed: Observed) -> None:
    reply = await observed.ask("POST", "/v1/rewards", body_of(1, 2, 3), kwise_client="me")
    assert reply.status == 200, reply
    (call,) = observed.calls
    method = "POST /v1/rewards"
    assert facts(call) == (method, Protocol.HTTP, CallKind.UNARY, "sum", Status.OK, 3)
    assert call.client == "me"
    assert call.duration_s > 0


async def test_each_request_of_a_stream_is_observed_and_the_stream_at_its_end(
    observed: Observed,
) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(observed.channel)
    groups = [group_of(1, 2), pb.Group(), group_of(POISON)]
    requests = [pb.ScoreStreamRequest(id=str(i), group=group) for i, group in enumerate(groups)]
    assert len([reply async for reply in stub.ScoreStream(iter(requests))]) == 3
    method = "kwise.v1.RewardService/ScoreStream"
    assert {facts(call) for call in observed.calls} == {
        (method, Protocol.GRPC, CallKind.STREAMED, "sum", Status.OK, 2),
        (method, Protocol.GRPC, CallKind.STREAMED, "", Status.INVALID_ARGUMENT, 0),
        (method, Protocol.GRPC, CallKind.STREAMED, "sum", Status.INTERNAL, 1),
        (method, Protocol.GRPC, CallKind.STREAM, "", Status.OK, 0),
    }
    assert observed.calls[-1].kind is CallKind.STREAM


@pytest.mark.parametrize("path", ["ModelStreamInfer", "PredictStream"])
async def test_a_failed_request_of_another_protocols_stream_is_observed(
    observed: Observed, path: str
) -> None:
    if path == "PredictStream":
        predict = tei_pb2_grpc.PredictStub(observed.channel).PredictStream
        with pytest.raises(grpc.aio.AioRpcError):
            [reply async for reply in predict(iter([tei_pb2.PredictRequest()]))]
        stream_status = Status.INVALID_ARGUMENT  # the first request that fails ends the stream
    else:
        infer = inference_pb2_grpc.GRPCInferenceServiceStub(observed.channel).ModelStreamInfer
        request = inference_pb2.ModelInferRequest(model_name="sum")
        [reply async for reply in infer(iter([request]))]
        stream_status = Status.OK
    await observed.until(lambda: len(observed.calls) == 2)  # an error is sent before
    streamed, stream = observed.calls
    assert (streamed.kind, streamed.status) == (CallKind.STREAMED, Status.INVALID_ARGUMENT)
    assert (stream.kind, stream.status) == (CallKind.STREAM, stream_status)


@pytest.mark.parametrize(
    ("path", "body", "http_status", "status"),
    [
        ("/v1/rewards", b"{", 400, Status.INVALID_ARGUMENT),
        ("/v1/rewards", {"prompt": [1], "responses": [[POISON]]}, 500, Status.INTERNAL),
        ("/v1/rewards", {**body_of(1), "model": "other"}, 404, Status.NOT_FOUND),
    ],
)
async def test_an_error_over_http_is_observed(
    observed: Observed, path: str, body: object, http_status: int, status: Status
) -> None:
    assert (await observed.ask("POST", path, body)).status == http_status
    assert [call.status for call in observed.calls] == [status]


async def test_a_call_that_its_client_cancels_is_observed_as_cancelled(observed: Observed) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(observed.channel)
    observed.session.gate.clear()
    call = stub.Score(pb.ScoreRequest(group=group_of(1)))
    await entered(observed.session)
    call.cancel()
    await observed.until(lambda: len(observed.calls) == 1)
    assert observed.calls[0].status is Status.CANCELLED


async def test_a_call_whose_deadline_passes_is_observed_as_that(observed: Observed) -> None:
    stub = reward_pb2_grpc.RewardServiceStub(observed.channel)
    observed.session.gate.clear()
    while not observed.calls:  # the deadline may pass before the call has arrived
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Score(pb.ScoreRequest(group=group_of(1)), timeout=0.05)
    assert observed.calls[0].status is Status.DEADLINE_EXCEEDED


async def test_the_time_out_of_an_http_request_is_observed(observed: Observed) -> None:
    observed.session.gate.clear()
    reply = await observed.ask("POST", "/v1/rewards", body_of(1), kwise_timeout_s="0.05")
    assert reply.status == 504
    assert [call.status for call in observed.calls] == [Status.DEADLINE_EXCEEDED]


def code_of(address: str, name: str, client_streams: bool) -> grpc.StatusCode:
    """Send an empty message to an rpc. Return the status of the call.

    grpc.aio reports INTERNAL if a stream ends while it writes (grpc/grpc#36066), so this is the
    synchronous client.
    """
    with grpc.insecure_channel(address) as opened, suppress(grpc.RpcError):
        channel: Any = opened
        if client_streams:
            call = channel.stream_stream(f"/{name}")(iter([b""]), timeout=PATIENCE_S)
        else:
            call = channel.unary_stream(f"/{name}")(b"", timeout=PATIENCE_S)
        list(call)
    return call.code()


async def test_each_rpc_is_observed_under_its_own_name(observed: Observed) -> None:
    for service in SERVICES:
        for method in service.descriptor.methods:
            name = f"{service.descriptor.full_name}/{method.name}"
            observed.calls.clear()
            streams = bool(method.client_streaming)
            code = await asyncio.to_thread(code_of, observed.grpc_address, name, streams)
            # An error is sent before the handler ends, and before the call is observed.
            await observed.until(lambda: observed.calls[-1:] and is_whole(observed.calls[-1]))
            assert {call.method for call in observed.calls} == {name}
            assert observed.calls[-1].status is Status[code.name], name


async def test_a_bug_in_a_request_of_a_stream_is_observed_as_internal(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(observed.service, "score", broken)
    stub = reward_pb2_grpc.RewardServiceStub(observed.channel)
    requests = iter([pb.ScoreStreamRequest(group=group_of(1))])
    (reply,) = [reply async for reply in stub.ScoreStream(requests)]
    assert reply.error.code == "INTERNAL", reply
    assert [call.status for call in observed.calls] == [Status.INTERNAL, Status.OK]
    assert "please report this as a bug" in caplog.text


async def test_a_broken_observer_costs_no_call(
    observed: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: RunningCall) -> None:
        raise ZeroDivisionError

    observed.service.observers.insert(0, broken)
    reply = await observed.ask("POST", "/v1/rewards", body_of(1))
    assert reply.status == 200
    assert len(observed.calls) == 1
    assert "an observer of calls failed" in caplog.text
