"""The Open Inference Protocol with Triton's own client against a real server."""

import json
import struct
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from kwise.client import RewardClient
from kwise.protos.inference import inference_pb2 as pb
from kwise.protos.inference import inference_pb2_grpc
from kwise.types import Message, ScoredGroup, TemplatedText
from tests.servers import PATIENCE_S, Server, running_server

PROMPT = "Why is the sky blue?"
RESPONSES = ["Light scatters.", "No idea.", "Die Luft streut blaues Licht: λ⁻⁴."]
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": PROMPT},
]


@pytest.fixture(scope="module")
def client(tiny_server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(tiny_server.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(tiny_server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def own_client(tiny_server: Server) -> Iterator[RewardClient]:
    with RewardClient(tiny_server.address, timeout_s=PATIENCE_S) as client:
        yield client


def texts(name: str, *values: str) -> Any:
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    return tensor.set_data_from_numpy(np.array([v.encode() for v in values], np.object_))


def integers(name: str, values: list[int]) -> Any:
    return triton.InferInput(name, [len(values)], "INT64").set_data_from_numpy(
        np.array(values, np.int64)
    )


def text_inputs(*responses: str, prompt: str = PROMPT) -> list[Any]:
    return [texts("prompt", prompt), texts("responses", *responses)]


def refused(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    """Return the status and the message with which a call of Triton's client fails."""
    with pytest.raises(InferenceServerException) as failed:
        call(*arguments, **options)
    return failed.value.status().removeprefix("StatusCode."), failed.value.message()


def values(scored: object) -> list[np.float32]:
    assert isinstance(scored, ScoredGroup)
    return [np.float32(value) for value in scored.values if value is not None]


# Rewards


def test_rewards_are_those_of_kwises_own_client(client: Any, own_client: RewardClient) -> None:
    turns = [Message(**turn) for turn in TURNS]
    templated = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    prompt_ids, response_ids = [1, 4093, 198, 19556], [[5, 6, 7], [8], [9, 10]]
    forms: list[tuple[list[Any], ScoredGroup]] = [
        (text_inputs(*RESPONSES), own_client.score(PROMPT, RESPONSES)),
        (
            [texts("messages", json.dumps(TURNS)), texts("responses", *RESPONSES)],
            own_client.score(turns, RESPONSES),
        ),
        (
            [texts("templated_text", templated), texts("responses", *RESPONSES)],
            own_client.score(TemplatedText(text=templated), RESPONSES),
        ),
        (
            [
                integers("response_lengths", [len(ids) for ids in response_ids]),
                integers("prompt_token_ids", prompt_ids),
                integers("response_token_ids", [token for ids in response_ids for token in ids]),
            ],
            own_client.score(prompt_ids, response_ids),
        ),
    ]
    for inputs, expected in forms:
        reply = client.infer("tiny", inputs)
        rewards = reply.as_numpy("rewards")
        assert rewards.dtype == np.float32 and rewards.shape == (3,)
        assert rewards.tolist() == values(expected)
        assert reply.get_response().parameters["fingerprint"].string_param == expected.fingerprint


def test_texts_may_have_the_shape_that_mlservers_clients_give_them(client: Any) -> None:
    columns = []
    for tensor in text_inputs(*RESPONSES):
        tensor.set_shape([*tensor.shape(), 1])
        columns.append(tensor)
    expected = client.infer("tiny", text_inputs(*RESPONSES)).as_numpy("rewards").tolist()
    assert client.infer("tiny", columns).as_numpy("rewards").tolist() == expected


def test_a_text_that_looks_like_json_is_a_text(client: Any, own_client: RewardClient) -> None:
    prompt = json.dumps(TURNS)
    reply = client.infer("tiny", text_inputs("Yes.", prompt=prompt))
    assert reply.as_numpy("rewards").tolist() == values(own_client.score(prompt, ["Yes."]))


def test_the_reply_has_the_id_the_model_and_the_outputs_in_the_order_of_the_request(
    client: Any,
) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in ("errors", "rewards")]
    reply = client.infer("tiny", text_inputs("a", "b"), outputs=outputs, request_id="r-7")
    message = reply.get_response()
    assert (message.id, message.model_name, message.model_version) == ("r-7", "tiny", "1")
    assert [output.name for output in message.outputs] == ["errors", "rewards"]
    assert len(message.raw_output_contents) == 2
    assert reply.as_numpy("errors").tolist() == [b"", b""]
    only_rewards = client.infer("tiny", text_inputs("a", "b"), model_version="1").get_response()
    assert [output.name for output in only_rewards.outputs] == ["rewards"]


def test_typed_contents_are_read_and_answered_in_raw_contents(
    stub: Any, own_client: RewardClient
) -> None:
    """Clients of Go and grpcurl send them (triton-inference-server/server issue 2937)."""
    request = pb.ModelInferRequest(model_name="tiny")
    for name, given in (("prompt", [PROMPT]), ("responses", RESPONSES)):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(given)])
        tensor.contents.bytes_contents.extend(text.encode() for text in given)
        tensor.parameters["content_type"].string_param = "str"  # as MLServer's clients say
    reply = stub.ModelInfer(request)
    expected = values(own_client.score(PROMPT, RESPONSES))
    assert list(struct.unpack("<3f", reply.raw_output_contents[0])) == expected
    ids = pb.ModelInferRequest(model_name="tiny")
    for name, numbers in (
        ("prompt_token_ids", [5, 6]), ("response_token_ids", [7]), ("response_lengths", [1, 0]),
    ):  # fmt: skip
        tensor = ids.inputs.add(name=name, datatype="INT64", shape=[len(numbers)])
        tensor.contents.int64_contents.extend(numbers)
    assert len(stub.ModelInfer(ids).raw_output_contents[0]) == 2 * 4


def test_a_response_that_cannot_be_scored_fails_the_call_unless_errors_are_asked_for(
    client: Any, own_client: RewardClient
) -> None:
    inputs = text_inputs("Yes.", "word " * 4000, "No.")
    status, message = refused(client.infer, "tiny", inputs)
    assert status == "INVALID_ARGUMENT" and message.startswith("responses[1]")
    outputs = [triton.InferRequestedOutput(name) for name in ("rewards", "errors")]
    reply = client.infer("tiny", inputs, outputs=outputs)
    rewards, errors = reply.as_numpy("rewards"), reply.as_numpy("errors")
    assert np.isnan(rewards).tolist() == [False, True, False]
    assert rewards[[0, 2]].tolist() == values(own_client.score(PROMPT, ["Yes.", "No."]))
    assert errors.tolist() == [b"", message.encode(), b""]


def test_priority_and_timeout_are_honoured_or_refused(client: Any, stub: Any) -> None:
    inputs = text_inputs("a")
    for priority in (0, 1, 2):
        client.infer("tiny", inputs, priority=priority, timeout=0)
    assert refused(client.infer, "tiny", inputs, priority=2**63) == (
        "INVALID_ARGUMENT",
        "parameters.priority: 9223372036854775808; 1 is interactive (the default, as is 0) and 2 "
        "is bulk",
    )
    status, message = refused(client.infer, "tiny", inputs, timeout=-1)
    assert status == "INVALID_ARGUMENT" and message.startswith("parameters.timeout: -1")
    status, message = refused(client.infer, "tiny", text_inputs("never seen before"), timeout=1)
    assert (status, message) == (
        "DEADLINE_EXCEEDED",
        "parameters.timeout: the rewards were not there within 1 microseconds; allow more time",
    )


# Streams


class Stream:
    """A stream of Triton's client, which reports replies and errors by a callback."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.replies: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        client.start_stream(lambda result, error: self.replies.put((result, error)))

    def send(self, *inputs: Any, model: str = "tiny", **options: Any) -> None:
        self._client.async_stream_infer(model, list(inputs), **options)

    def close(self) -> None:
        self._client.stop_stream()


def test_a_stream_answers_in_order_and_goes_on_after_errors(
    tiny_server: Server, own_client: RewardClient
) -> None:
    with triton.InferenceServerClient(tiny_server.address) as client:
        stream = Stream(client)
        stream.send(*text_inputs("a long one " * 50), request_id="0")
        stream.send(*text_inputs("b"), model="other", request_id="1")
        stream.send(texts("prompt", "x"), request_id="2")
        stream.send(*text_inputs("c"), request_id="3", enable_empty_final_response=True)
        replies = [stream.replies.get(timeout=PATIENCE_S) for _ in range(4)]
        stream.close()
    assert [error is None for _, error in replies] == [True, False, False, True]
    assert "'other' is not served here" in str(replies[1][1])
    assert "inputs.responses: it is missing" in str(replies[2][1])
    for index, response in ((0, "a long one " * 50), (3, "c")):
        result = replies[index][0]
        message = result.get_response()
        assert message.id == str(index)
        # Clients of decoupled models wait for this (triton-inference-server/server issue 6463).
        assert message.parameters["triton_final_response"].bool_param
        expected = values(own_client.score(PROMPT, [response]))
        assert result.as_numpy("rewards").tolist() == expected


def test_the_error_of_a_stream_names_its_request_and_status(stub: Any) -> None:
    requests = [pb.ModelInferRequest(model_name="other", id="x"), pb.ModelInferRequest(id="y")]
    replies = list(stub.ModelStreamInfer(iter(requests)))
    found = [(r.infer_response.id, r.infer_response.parameters["status"].string_param)
             for r in replies]  # fmt: skip
    assert found == [("x", "NOT_FOUND"), ("y", "INVALID_ARGUMENT")]
    assert all(reply.error_message for reply in replies)


# Description


def test_health(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2") and not client.is_model_ready("other")
    assert [model.name for model in client.get_model_repository_index().models] == ["tiny"]


@pytest.mark.parametrize(
    "rpc", ["get_model_metadata", "get_model_config", "get_inference_statistics"]
)
def test_another_model_or_version_is_not_found(client: Any, rpc: str) -> None:
    assert refused(getattr(client, rpc), "other")[0] == "NOT_FOUND"
    assert refused(getattr(client, rpc), "tiny", "2") == (
        "NOT_FOUND",
        "model: 'tiny, version 2' is not served here; this server has 'tiny, version 1'",
    )
    assert refused(client.infer, "tiny", text_inputs("a"), model_version="2")[0] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("rpc", "arguments"),
    [
        ("load_model", ["tiny"]),
        ("unload_model", ["tiny"]),
        ("get_system_shared_memory_status", []),
        ("register_system_shared_memory", ["a", "/a", 8]),
        ("unregister_system_shared_memory", []),
        ("get_cuda_shared_memory_status", []),
        ("register_cuda_shared_memory", ["a", b"YQ==", 0, 8]),
        ("unregister_cuda_shared_memory", []),
        ("get_trace_settings", []),
        ("update_trace_settings", ["tiny", {"trace_level": ["OFF"]}]),
        ("get_log_settings", []),
        ("update_log_settings", [{"log_info": True}]),
    ],
)
def test_what_the_server_does_not_have_is_unimplemented(
    client: Any, rpc: str, arguments: list[Any]
) -> None:
    status, message = refused(getattr(client, rpc), *arguments)
    assert status == "UNIMPLEMENTED" and message


def test_what_perf_analyzer_reads_agrees(client: Any) -> None:
    """Metadata, configuration and statistics, as perf_analyzer combines them.

    It failed on servers without ModelConfig (SeldonIO/seldon-core issue 3648). It reads versions as
    integers, refuses an input of the configuration that is not in the metadata, and reads
    statistics only if they are among the extensions.
    """
    metadata = client.get_model_metadata("tiny")
    config = client.get_model_config("tiny").config
    assert "statistics" in client.get_server_metadata().extensions
    assert [int(version) for version in metadata.versions] == [1]
    types = {"BYTES": "TYPE_STRING", "INT64": "TYPE_INT64", "FP32": "TYPE_FP32"}
    for described, configured in (
        (metadata.inputs, config.input), (metadata.outputs, config.output),
    ):  # fmt: skip
        assert [(t.name, types[t.datatype], list(t.shape)) for t in described] == [
            (t.name, type(t).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[
                t.data_type
            ].name, list(t.dims)) for t in configured
        ]  # fmt: skip
    assert config.max_batch_size == 0 and not config.model_transaction_policy.decoupled
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.priority_levels == 2
    assert config.response_cache.enable
    for name, version in (("tiny", "1"), ("tiny", ""), ("", "")):
        (model,) = client.get_inference_statistics(name, version).model_stats
        assert (model.name, model.version) == ("tiny", "1")


def test_statistics_count_each_group_once(tiny_artifact: Any) -> None:
    """Three groups are computed, two come from the cache, and one is refused."""
    with (
        running_server(tiny_artifact) as server,
        triton.InferenceServerClient(server.address) as client,
        RewardClient(server.address, timeout_s=PATIENCE_S) as own_client,
    ):

        def stats() -> Any:
            return client.get_inference_statistics("tiny").model_stats[0]

        assert stats().last_inference == 0
        client.infer("tiny", text_inputs("a", "b"))
        client.infer("tiny", text_inputs("c"))
        own_client.score(PROMPT, ["d"])  # the statistics are those of the model, not of a protocol
        client.infer("tiny", text_inputs("a"))
        client.infer("tiny", text_inputs("d", "c"))
        turns = json.dumps([{"role": "assistant", "content": "It ends with an assistant's turn."}])
        inputs = [texts("messages", turns), texts("responses", "e")]
        assert refused(client.infer, "tiny", inputs)[0] == "INVALID_ARGUMENT"
        found = stats()
    assert found.last_inference > 1.7e12
    assert (found.inference_count, found.execution_count) == (4, 3)
    durations = {
        field.name: getattr(found.inference_stats, field.name)
        for field in found.inference_stats.DESCRIPTOR.fields
    }
    assert {name: duration.count for name, duration in durations.items()} == {
        "success": 5, "fail": 1, "queue": 5, "compute_input": 3, "compute_infer": 3,
        "compute_output": 3, "cache_hit": 2, "cache_miss": 3,
    }  # fmt: skip
    assert all(duration.ns > 0 for duration in durations.values())
    assert durations["success"].ns > durations["compute_infer"].ns
