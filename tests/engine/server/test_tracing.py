"""Traces of a real server, which a real OTLP receiver gets."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kwise.engine.server.tracing.options import wants_traces
from kwise.protos.kwise.v1 import reward_pb2 as pb
from tests.http_client import ask, http_port
from tests.servers import running_server, wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
TEXT = "my-secret-text"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it receives."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            attributes = resource.resource.attributes
            self.resources.append({a.key: a.value.string_value for a in attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A receiver and its URL."""
    receiver = Receiver()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield receiver, f"http://127.0.0.1:{port}"
        server.stop(None).wait()


def attributes_of(span: Span) -> dict[str, Any]:
    return {
        a.key: a.value.string_value if a.value.HasField("string_value") else a.value.int_value
        for a in span.attributes
    }


def request(text: str) -> pb.ScoreRequest:
    responses = [pb.Response(text=text), pb.Response(text="b")]
    return pb.ScoreRequest(group=pb.Group(prompt=pb.Prompt(text=text), responses=responses))


def test_calls_and_their_stages_reach_a_collector(
    tiny_artifact: Path, receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    received, url = receiver
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    options = ("--http-port", "0", "--otlp-endpoint", url)
    with running_server(tiny_artifact, *options) as server, server.stub() as stub:
        metadata = [("traceparent", TRACEPARENT), ("kwise-client", "me")]
        stub.Score(request(TEXT), metadata=metadata)
        body = {"prompt": TEXT, "responses": [TEXT, "b"]}
        assert ask(http_port(server), "POST", "/v1/rewards", body).status == 200
        with pytest.raises(grpc.RpcError):
            stub.Score(pb.ScoreRequest())
        stream = stub.ScoreStream(iter([pb.ScoreStreamRequest(group=request("c").group)]))
        assert len(list(stream)) == 1
    # The end of the server sends what is left.
    scores, rewards = (
        received.named("kwise.v1.RewardService/Score"),
        received.named("POST /v1/rewards"),
    )
    assert (len(scores), len(rewards)) == (2, 1)
    score = next(span for span in scores if span.trace_id.hex() == TRACE)
    assert (score.parent_span_id.hex(), score.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    assert attributes_of(score) == {
        "rpc.system": "grpc",
        "rpc.service": "kwise.v1.RewardService",
        "rpc.method": "Score",
        "rpc.grpc.status_code": 0,
        "kwise.client": "me",
        "kwise.model": "tiny",
        "kwise.responses": 2,
    }
    children = [span for span in received.spans if span.parent_span_id == score.span_id]
    children.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in children] == ["look-up", "tokenizer", "queue", "batch", "reply"]
    times = [t for span in children for t in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert score.start_time_unix_nano <= times[0]
    assert times[-1] <= score.end_time_unix_nano
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in children)
    cached = [span for span in received.spans if span.parent_span_id == rewards[0].span_id]
    assert [span.name for span in cached] == ["look-up"]
    http = attributes_of(rewards[0])
    assert http["http.route"] == "/v1/rewards" and http["http.response.status_code"] == 200
    refused = next(span for span in scores if span is not score)
    assert attributes_of(refused)["error.type"] == "INVALID_ARGUMENT"
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the caller's fault
    kinds = {
        attributes_of(span)["kwise.kind"]
        for span in received.named("kwise.v1.RewardService/ScoreStream")
    }
    assert kinds == {"stream", "streamed"}
    assert received.resources[0]["service.name"] == "kwise"
    assert received.resources[0]["deployment.environment.name"] == "test"
    assert TEXT not in str(received.spans) and TEXT not in str(received.resources)


def test_the_sampler_is_that_of_the_environment(
    tiny_artifact: Path, receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    received, url = receiver
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "rewards")
    with running_server(tiny_artifact) as server, server.stub() as stub:
        stub.Score(request("a"))
        stub.Score(request("a"), metadata=[("traceparent", TRACEPARENT)])
    wait_until(lambda: len(received.named("kwise.v1.RewardService/Score")) == 1)
    assert received.resources[0]["service.name"] == "rewards"


@pytest.mark.parametrize(
    ("endpoint", "environ", "expected"),
    [
        ("", {}, False),
        ("http://localhost:4317", {}, True),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}, True),
        ("", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317"}, True),
        ("http://localhost:4317", {"OTEL_SDK_DISABLED": "True"}, False),
        ("http://localhost:4317", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_off_unless_asked_for(
    endpoint: str, environ: dict[str, str], expected: bool
) -> None:
    assert wants_traces(endpoint, environ) is expected


def test_a_server_without_traces_does_not_load_opentelemetry() -> None:
    program = (
        "import sys, kwise.engine.server.serve, kwise.engine.server.http.port\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
