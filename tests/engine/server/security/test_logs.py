"""Prompts and responses are in no log and no metric, whatever a call meets."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from kwise.engine.artifact.files import describe_file
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import CHAT_TEMPLATE
from kwise.engine.server.base_service import bugs_reported
from kwise.engine.server.grpc.services import SERVICES
from kwise.engine.server.http.table import ENDPOINTS
from kwise.errors import ServiceFailed
from kwise.protos.inference import inference_pb2
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.protos.tei.v1 import tei_pb2, tei_pb2_grpc
from tests.engine.server.security.conftest import status_of
from tests.http_client import HttpReply, ask, http_port
from tests.servers import Server, running_server, wait_until

MARK = "my-secret-text"
REFUSED = f"{MARK} refuse-me"
# The template quotes a text that it refuses. It writes every other text as the artifact's own does.
QUOTING = (
    "{% for m in messages %}{% if 'refuse-me' in m.content %}"
    "{{ raise_exception('I refuse ' ~ m.content) }}{% endif %}{% endfor %}"
)
LONG = f"{MARK} " * 4000


@pytest.fixture(scope="module")
def quoting_server(
    tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose chat template quotes the texts that it refuses."""
    artifact = tmp_path_factory.mktemp("quoting") / "tiny"
    shutil.copytree(tiny_artifact, artifact)
    template = artifact / CHAT_TEMPLATE
    template.write_text(QUOTING + template.read_text())
    manifest = read_manifest(artifact)
    files = {**manifest.files, CHAT_TEMPLATE: describe_file(template)}
    signed = msgspec.structs.replace(manifest, files=files).signed()
    (artifact / "manifest.json").write_text(signed.to_json())
    options = ("--http-port", "0", "--max-message-bytes", "200000", "--log-level", "debug")
    with running_server(artifact, *options) as server:  # debug: a line for each call
        yield server
        assert MARK not in ask(http_port(server), "GET", "/metrics").body.decode()
    assert MARK not in server.log.text


def bodies(text: str) -> list[Any]:
    """Return bodies of all families of endpoints with a text in each field, right or wrong."""
    messages = [{"role": "user", "content": text}]
    whole = [*messages, {"role": "assistant", "content": text}]
    return [
        {"prompt": text, "responses": [text, text + "."]},
        {"prompt": messages, "responses": [text], "priority": text},
        {"prompt": {"templated_text": text}, "responses": [text], "model": "tiny"},
        {"prompt": {"text": text, "messages": messages}, "responses": [[1], text]},
        {"prompt": text, "responses": [text, text], "pairs": [[0, 7]]},
        {text: text},
        {"query": [text, text], "prompts": [text, text], "labels": [text, text]},
        {"query": [text, 1]},
        {"query": text, "documents": [text, text]},
        {"query": text, "texts": [text, text], "truncate": text},
        {"model": "tiny", "messages": [text, text]},
        {"model": "tiny", "messages": whole},
        {"model": "tiny", "input": [text, whole]},
        {"model": "tiny", "text_1": text, "text_2": [text]},
        {"model": "tiny", "queries": text, "documents": [text]},
        {"inputs": [[text, text]]},
        {"prompt": text, "response": text, "label": text, "metadata": {text: text}},
        [text],
        text,
    ]


def test_no_endpoint_writes_a_text_to_the_log(quoting_server: Server) -> None:
    port = http_port(quoting_server)
    replies: list[HttpReply] = []
    for endpoint in ENDPOINTS:
        if endpoint.method == "GET":
            replies.append(ask(port, "GET", f"/{MARK}{endpoint.path.partition('{')[0]}"))
            continue
        sent = [*bodies(MARK), *bodies(REFUSED), bodies(LONG)[0]]
        sent += [json.dumps(body).encode()[:-1] for body in bodies(MARK)]  # not JSON
        sent += [json.dumps({"prompt": MARK}).encode() + b"\xff", f'{{"{MARK}'.encode()]
        sent += [{"prompt": MARK, "responses": ["x" * 300_000]}]
        replies += [ask(port, "POST", endpoint.path, body) for body in sent]
    replies.append(ask(port, "GET", f"/{MARK}"))
    replies.append(ask(port, "POST", "/v1/rewards", bodies(MARK)[0], content_type=MARK))
    replies.append(ask(port, "POST", "/v1/rewards", bodies(MARK)[0], kwise_timeout_s=MARK))
    statuses = {reply.status for reply in replies}
    assert {200, 400, 404, 413, 415} <= statuses and 500 not in statuses
    quoted = [reply for reply in replies if f"I refuse {MARK}".encode() in reply.body]
    assert len(quoted) > 10  # the client gets the message
    # The fixture reads the whole log at the end.
    wait_until(lambda: "a call of OpenRLHF failed with 400" in quoting_server.log.text)
    wait_until(lambda: "the reply has the cause, which is not" in quoting_server.log.text)


def test_no_rpc_writes_a_text_to_the_log(quoting_server: Server) -> None:
    with grpc.insecure_channel(quoting_server.address) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        rerank: Any = tei_pb2_grpc.RerankStub(channel)
        infer: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=inference_pb2.ModelInferRequest.SerializeToString,
        )
        statuses = set()
        for text in (MARK, REFUSED, LONG):
            responses = [pb.Response(text=text), pb.Response(text="")]
            group = pb.Group(prompt=pb.Prompt(text=text), responses=responses)
            statuses |= {
                status_of(stub.Score, pb.ScoreRequest(group=group)),
                status_of(stub.Rank, pb.RankRequest(group=group)),
                status_of(stub.Compare, pb.CompareRequest(group=group)),
                status_of(stub.GetModel, pb.GetModelRequest(model=text[:500])),
                status_of(rerank.Rerank, tei_pb2.RerankRequest(query=text, texts=[text])),
            }
            requests = iter([pb.ScoreStreamRequest(id=text[:100], group=group)])
            list(stub.ScoreStream(requests))
            for name in ("prompt", text[:50]):
                tensor = inference_pb2.ModelInferRequest.InferInputTensor(
                    name=name, datatype="BYTES", shape=[1]
                )
                tensor.contents.bytes_contents.append(text.encode())
                request = inference_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor])
                statuses.add(status_of(infer, request))
                request.parameters[text[:50]].bool_param = True
                statuses.add(status_of(infer, request))
        assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= statuses
        for entry in SERVICES:
            for method in entry.descriptor.methods:
                path = f"/{entry.descriptor.full_name}/{method.name}"
                if method.client_streaming:
                    call: Any = channel.stream_stream(path)
                    status_of(lambda call=call: list(call(iter([MARK.encode()]))))
                else:
                    status_of(channel.unary_unary(path), MARK.encode())


def test_a_bug_is_logged_without_the_messages_of_exceptions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ServiceFailed), bugs_reported():
        try:
            raise KeyError(MARK)
        except KeyError as error:
            raise ValueError(MARK) from error
    assert "builtins.ValueError" in caplog.text and "builtins.KeyError" in caplog.text
    assert "test_logs.py" in caplog.text
    # The lines of the source, which the traceback shows, have the name only.
    assert MARK not in caplog.text
