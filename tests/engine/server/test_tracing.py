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

from kwise.engine.server.tracing.options import check_endpoint, check_protocol, wants_traces
from kwise.errors import ConfigError
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
        ("http://localhost:4317", {"OTEL_TRACES_EXPORTER": "console, otlp"}, True),
    ],
)
def test_traces_are_off_unless_asked_for(
    endpoint: str, environ: dict[str, str], expected: bool
) -> None:
    assert wants_traces(endpoint, environ) is expected


@pytest.mark.parametrize("endpoint", ["", "http://collector:4317", "https://[::1]/"])
def test_an_address_of_a_collector_is_taken(endpoint: str) -> None:
    check_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4317",
        "collector",
        "ftp://collector",
        "http://",
        "http://collector:99999",
        "http://collector:0",
        "http://collector:4318/v1/traces",
        "http://collector?a=b",
    ],
)
def test_what_is_no_address_of_a_collector_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"--otlp-endpoint is .* without a path: http"):
        check_endpoint(endpoint)


def test_otlp_over_http_is_refused_unless_the_option_names_the_endpoint() -> None:
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'"):
        check_protocol("", environ)
    check_protocol("http://collector:4317", environ)
    check_protocol("", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_PROPAGATORS", "none-such"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]
)
def test_a_wrong_variable_is_one_sentence(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    expected = "kwise serve: OpenTelemetry refuses a value of its variables OTEL_"
    with (
        pytest.raises(AssertionError, match=expected),
        running_server(tiny_artifact, "--otlp-endpoint", "http://127.0.0.1:1"),
    ):
        pass


def test_a_wrong_variable_is_found_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "")  # as good as unset
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")  # smaller than a batch
    expected = r"max_queue_size\.; those that are set: OTEL_BSP_MAX_QUEUE_SIZE "
    # The directory has no artifact, which would be the first error of a load.
    with (
        pytest.raises(AssertionError, match=expected),
        running_server(tmp_path, "--otlp-endpoint", "http://127.0.0.1:1"),
    ):
        pass


def test_malformed_context_of_a_caller_is_ignored_and_not_logged(
    tiny_artifact: Path, receiver: tuple[Receiver, str]
) -> None:
    received, url = receiver
    with (
        running_server(tiny_artifact, "--otlp-endpoint", url) as server,
        server.stub() as stub,
    ):
        for key, value in [
            ("traceparent", "x"),
            ("traceparent", f"ff-{TRACE}-{PARENT}-01"),
            ("traceparent", f"00-{TRACE}-{PARENT}-01."),
            ("tracestate", "=,a=b=c,secret"),
            ("baggage", "secret,==,%ff=1"),
        ]:
            metadata = [("traceparent", TRACEPARENT)] * (key != "traceparent")
            stub.Score(request("p"), metadata=[*metadata, (key, value)])
    spans = received.named("kwise.v1.RewardService/Score")
    assert sorted(span.trace_id.hex() == TRACE for span in spans) == [False] * 3 + [True] * 2
    assert "secret" not in server.log.text and "WARNING" not in server.log.text


def test_the_stages_of_an_ensemble_are_those_of_its_members(
    tiny_artifact: Path, receiver: tuple[Receiver, str]
) -> None:
    received, url = receiver
    models = [f"{name}={tiny_artifact}" for name in "ab"]
    options = ("--ensemble", "both=a,b", "--otlp-endpoint", url)
    with running_server(models, *options) as server, server.stub() as stub:
        wanted = request("p")
        wanted.group.model = "both"
        stub.Score(wanted)
    names = sorted(span.name for span in received.spans if span.kind != Span.SPAN_KIND_SERVER)
    assert names.count("batch") == names.count("reply") == names.count("look-up") == 2


def test_a_server_without_traces_does_not_load_opentelemetry() -> None:
    program = (
        "import sys, kwise.engine.server.serve, kwise.engine.server.http.port\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
