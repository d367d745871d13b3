"""The standard protocols over a real socket: every rpc, reflection, and faults as in production."""

import asyncio
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kwise.client import RewardClient
from kwise.engine.server.grpc.services import SERVICES
from kwise.protos.inference import inference_pb2, inference_pb2_grpc
from kwise.protos.tei.v1 import tei_pb2, tei_pb2_grpc
from tests.held_model import HeldModel, running_held_server
from tests.servers import PATIENCE_S, Server, raw_rewards, running_server, wait_until

FOREIGN = [s.descriptor for s in SERVICES if not s.descriptor.full_name.startswith("kwise.")]
RPCS = [(service, method) for service in FOREIGN for method in service.methods]

PROGRAM = Path(__file__).parent.parent / "programs" / "serve_in_process.py"


def infer_request(*responses: str, prompt: str = "Hello", **fields: Any) -> Any:
    request = inference_pb2.ModelInferRequest(model_name="tiny", **fields)
    for name, texts in (("prompt", [prompt]), ("responses", responses)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
        tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def inference(channel: grpc.Channel) -> Any:
    return inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def channel(tiny_server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield channel


@pytest.mark.parametrize(("service", "method"), RPCS, ids=lambda value: value.name)
def test_every_rpc_answers_an_empty_request(
    channel: grpc.Channel, service: Any, method: Any
) -> None:
    """Each rpc is reached: it succeeds, names what is missing, or is not there for a reason."""
    path = f"/{service.full_name}/{method.name}"
    streams = method.client_streaming, method.server_streaming
    kind = "_".join("stream" if is_stream else "unary" for is_stream in streams)
    call: Any = getattr(channel, kind)(path)
    try:
        reply = call(iter([b""]) if method.client_streaming else b"", timeout=PATIENCE_S)
        assert len(list(reply)) == 1 if method.server_streaming else isinstance(reply, bytes)
    except grpc.RpcError as error:
        refused = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        assert error.code() in refused
        assert error.details() and "Method not found" not in str(error.details())


def test_health_and_reflection_know_every_service(channel: grpc.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    for entry in SERVICES:
        name = entry.descriptor.full_name
        reply = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        requests.append(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
    listed, *files = reflection.ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {entry.descriptor.full_name for entry in SERVICES}
    for entry, reply in zip(SERVICES, files, strict=True):
        described = {
            f"{file.package}.{service.name}"
            for data in reply.file_descriptor_response.file_descriptor_proto
            for file in [descriptor_pb2.FileDescriptorProto.FromString(data)]
            for service in file.service
        }
        assert entry.descriptor.full_name in described


@pytest.mark.parametrize("order", ["clients-first", "clients-last"])
def test_server_and_clients_live_in_one_process(tiny_artifact: Path, order: str) -> None:
    """tritonclient and tei-client define the same messages in protobuf's default pool."""
    pytest.importorskip("tritonclient")
    pytest.importorskip("tei_client")
    command = [sys.executable, str(PROGRAM), str(tiny_artifact), order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "(2,) 2\n"), done.stderr


def test_the_client_loads_neither_protocol() -> None:
    program = (
        "import kwise.client.sync, sys; print(*sorted(m for m in sys.modules if 'protos' in m))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "kwise.protos.kwise.v1" in done.stdout
    assert "kwise.protos.inference" not in done.stdout
    assert "kwise.protos.tei" not in done.stdout


# Faults


def test_a_request_that_times_out_or_leaves_costs_no_pass(
    tiny_artifact: Path, held: HeldModel
) -> None:
    """`timeout` ends the request itself (triton-inference-server/server issues 6920 and 7369)."""
    with (
        running_held_server(tiny_artifact, held, "--max-batch-tokens", "64") as server,
        grpc.insecure_channel(server.address) as channel,
        RewardClient(server.address, timeout_s=PATIENCE_S) as client,
    ):
        stub = inference(channel)
        held.hold()
        running = stub.ModelInfer.future(infer_request("first " * 60))
        held.wait_for_batches(1)
        late = infer_request("second " * 60)
        late.parameters["timeout"].int64_param = 1000
        with pytest.raises(grpc.RpcError) as failed:
            stub.ModelInfer(late)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 1000 microseconds" in str(failed.value.details())
        stream = stub.ModelStreamInfer(iter([infer_request(f"{n} " * 60) for n in range(5)]))
        rerank: Any = tei_pb2_grpc.RerankStub(channel)
        ranked = rerank.Rerank.future(tei_pb2.RerankRequest(query="q", texts=["third " * 60]))
        held.wait_for_tokenised(8)
        stream.cancel()
        ranked.cancel()
        # The first of the seven may have left before it was queued.
        wait_until(lambda: client.get_model().counters.abandoned >= 6)
        held.release()
        assert len(running.result(PATIENCE_S).raw_output_contents) == 1
        assert len(held.batches) == 1


def test_bulk_waits_behind_interactive(tiny_artifact: Path, held: HeldModel) -> None:
    with (
        running_held_server(tiny_artifact, held, "--max-batch-tokens", "64") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = inference(channel)
        held.hold()
        first = stub.ModelInfer.future(infer_request("first " * 60))
        held.wait_for_batches(1)
        bulk = infer_request("bulk " * 80)
        bulk.parameters["priority"].uint64_param = 2
        calls = [first, stub.ModelInfer.future(bulk)]
        held.wait_for_tokenised(2)
        calls.append(stub.ModelInfer.future(infer_request("interactive " * 60)))
        held.wait_for_tokenised(3)
        held.let_through(1)
        held.wait_for_batches(2)
        held.release()
        assert all(call.result(PATIENCE_S) for call in calls)
    (interactive,), (last,) = held.batches[1:]
    assert interactive < last  # the bulk response is the longer one, and came first


def test_overload_is_refused_with_advice_in_both_protocols(
    tiny_artifact: Path, held: HeldModel
) -> None:
    options = ("--max-batch-tokens", "64", "--max-queue-tokens", "1000")
    with (
        running_held_server(tiny_artifact, held, *options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = inference(channel)
        rerank: Any = tei_pb2_grpc.RerankStub(channel)
        held.hold()
        waiting = [stub.ModelInfer.future(infer_request("running " * 300))]
        held.wait_for_batches(1)
        waiting.append(stub.ModelInfer.future(infer_request("queued " * 300)))
        held.wait_for_tokenised(2)
        for call, request in (
            (stub.ModelInfer, infer_request("another " * 300)),
            (rerank.Rerank, tei_pb2.RerankRequest(query="q", texts=["another " * 300])),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                call(request)
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailers: Any = failed.value.trailing_metadata()
            assert int(dict(trailers)["grpc-retry-pushback-ms"]) >= 50
        held.release()
        assert all(call.result(PATIENCE_S) for call in waiting)


def test_a_draining_server_answers_what_it_has_and_is_not_ready(
    tiny_artifact: Path, held: HeldModel
) -> None:
    """An open stream gets its replies, and then UNAVAILABLE."""
    options = ("--max-batch-tokens", "64", "--grace-s", "3600")
    with (
        running_held_server(tiny_artifact, held, *options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = inference(channel)
        predict: Any = tei_pb2_grpc.PredictStub(channel)
        rerank: Any = tei_pb2_grpc.RerankStub(channel)
        held.hold()
        opened = OpenRequests()
        streams = [
            stub.ModelStreamInfer(opened.then([infer_request("one"), infer_request("two")])),
            predict.PredictPairStream(
                opened.then([tei_pb2.PredictPairRequest(inputs=["a", "b"])] * 2)
            ),
        ]
        ranked = rerank.RerankStream.future(
            opened.then([tei_pb2.RerankStreamRequest(query="q", text="t")])
        )
        held.wait_for_tokenised(3)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not stub.ServerReady(inference_pb2.ServerReadyRequest()).ready)
        assert stub.ServerLive(inference_pb2.ServerLiveRequest()).live
        assert not stub.ModelReady(inference_pb2.ModelReadyRequest(name="tiny")).ready
        held.release()
        for stream in streams:
            replies = [next(stream) for _ in range(2)]
            assert all(len(reply.SerializeToString()) > 20 for reply in replies)
            with pytest.raises(grpc.RpcError) as failed:
                next(stream)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert ranked.code() is grpc.StatusCode.UNAVAILABLE
        opened.close()
        assert server.process.wait(PATIENCE_S) == 0


class OpenRequests:
    """Requests of streams that stay open until `close`."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def then(self, requests: list[Any]) -> Iterator[Any]:
        yield from requests
        self._closed.wait()

    def close(self) -> None:
        self._closed.set()


def test_fuzzed_messages_are_answered_and_harm_no_other_request(tiny_artifact: Path) -> None:
    """Every rpc gets random bytes, and real requests with bytes changed, cut or repeated."""
    rng = random.Random(0)
    raw = inference_pb2.ModelInferRequest(model_name="tiny")
    raw.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    raw.inputs.add(name="responses", datatype="BYTES", shape=[2])
    raw.raw_input_contents.extend([struct.pack("<I", 2) + b"Hi", struct.pack("<II", 0, 1) + b"x"])
    ids = inference_pb2.ModelInferRequest()
    for name, numbers in (
        ("prompt_token_ids", [5, 6]), ("response_token_ids", [7, 8]), ("response_lengths", [1, 1]),
    ):  # fmt: skip
        ids.inputs.add(name=name, datatype="INT64", shape=[2])
        ids.raw_input_contents.append(struct.pack("<2q", *numbers))
    priority = infer_request("a", id="x")
    priority.parameters["priority"].uint64_param = 2
    seeds = [
        message.SerializeToString()
        for message in (
            raw, ids, priority,
            tei_pb2.RerankRequest(query="q", texts=["a", "b"]),
            tei_pb2.PredictPairRequest(inputs=["a", "b"]),
        )
    ]  # fmt: skip

    def mutated() -> bytes:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    data[at : at + 1] = rng.randbytes(1)
                case 1:
                    del data[at:]
                case 2:
                    data[at:at] = data[: rng.randrange(1, 40)]
                case 3:
                    data += rng.randbytes(rng.randrange(1, 20))
        return bytes(data)

    codes: set[str] = set()

    async def fuzz(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as opened:
            channel: Any = opened

            async def send() -> None:
                service, method = rng.choice(RPCS)
                path = f"/{service.full_name}/{method.name}"
                try:
                    if method.client_streaming:
                        requests = iter([mutated() for _ in range(3)])
                        if method.server_streaming:
                            async for _ in channel.stream_stream(path)(requests):
                                pass
                        else:
                            await channel.stream_unary(path)(requests)
                    else:
                        await channel.unary_unary(path)(mutated())
                    codes.add("OK")
                except grpc.aio.AioRpcError as error:
                    # The server has ended a stream before the client had sent all of it.
                    if error.details() != "Internal error from Core":
                        codes.add(error.code().name)

            for _ in range(20):
                await asyncio.gather(*(send() for _ in range(40)))

    with (
        running_server(tiny_artifact) as server,
        RewardClient(server.address, timeout_s=PATIENCE_S) as client,
    ):
        before = raw_rewards(client.score("Hello", ["a", "b"]))
        asyncio.run(fuzz(server.address))
        assert raw_rewards(client.score("Hello", ["a", "b"])) == before
        assert "a request failed" not in server.log.text
    # UNKNOWN is gRPC's own answer to bytes that are no message.
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNKNOWN"}
