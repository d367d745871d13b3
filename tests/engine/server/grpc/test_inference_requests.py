"""Requests of the Open Inference Protocol that are refused: each error names its field."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from kwise.engine.server.grpc.inference.parameters import _REFUSED
from kwise.protos.inference import inference_pb2 as pb
from kwise.protos.inference import inference_pb2_grpc
from tests.servers import Server

Change = Callable[[pb.ModelInferRequest], object]


@pytest.fixture(scope="module")
def stub(tiny_server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def raw_texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def raw_integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def text_request() -> pb.ModelInferRequest:
    """A request with a prompt and two responses in raw contents."""
    request = pb.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    request.inputs.add(name="responses", datatype="BYTES", shape=[2])
    request.raw_input_contents.extend([raw_texts(b"Hello"), raw_texts(b"a", b"b")])
    return request


def ids_request() -> pb.ModelInferRequest:
    """A request with two responses of two ids and one id in raw contents."""
    request = pb.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="prompt_token_ids", datatype="INT64", shape=[2])
    request.inputs.add(name="response_token_ids", datatype="INT64", shape=[3])
    request.inputs.add(name="response_lengths", datatype="INT64", shape=[2])
    request.raw_input_contents.extend(
        [raw_integers(5, 6), raw_integers(7, 8, 9), raw_integers(2, 1)]
    )
    return request


def set_shape(index: int, *shape: int) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[index].shape[:] = shape

    return change


def set_raw(index: int, raw: bytes) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.raw_input_contents[index] = raw

    return change


def set_field(index: int, **fields: Any) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        for name, value in fields.items():
            setattr(request.inputs[index], name, value)

    return change


def add_input(name: str, datatype: str, shape: list[int], raw: bytes) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)

    return change


def messages(text: bytes) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].name = "messages"
        request.raw_input_contents[0] = raw_texts(text)

    return change


def all_of(*changes: Change) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        for one in changes:
            one(request)

    return change


def typed(index: int, **contents: Any) -> Change:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[index].contents.CopyFrom(pb.InferTensorContents(**contents))

    return change


def parameter(name: str, **value: Any) -> Change:
    return lambda request: request.parameters[name].CopyFrom(pb.InferParameter(**value))


# What is done to a good request, and the error that follows.
TEXT_CASES: list[tuple[Change, str]] = [
    # Inputs
    (lambda r: r.ClearField("inputs"), "raw_input_contents: there are 2 entries and 0 inputs; "),
    (all_of(lambda r: r.ClearField("inputs"), lambda r: r.ClearField("raw_input_contents")),
     "inputs: give exactly one of prompt, messages, templated_text, prompt_token_ids; given: none"),
    (set_field(1, name="texts"), "inputs: the input 'texts' is unknown; the inputs are prompt, "),
    (set_field(0, name="x" * 100_000), "inputs: the input 'xxx"),
    (set_field(1, name="prompt"), "inputs.prompt: it is given twice"),
    (set_field(1, name="response_token_ids", datatype="INT64"),
     "inputs.responses: it is missing; prompt needs it"),
    (add_input("messages", "BYTES", [1], raw_texts(b"[]")),
     "inputs: give exactly one of prompt, messages, templated_text, prompt_token_ids; given: "
     "prompt and messages"),
    (add_input("response_lengths", "INT64", [0], b""),
     "inputs.response_lengths: it cannot be combined with prompt"),
    (set_field(1, datatype="FP32"),
     "inputs.responses.datatype: 'FP32'; this input is BYTES"),
    # Shapes. Clients of models with max_batch_size send [1, K].
    (set_shape(1, 1, 2), "inputs.responses.shape: [1, 2]; give [K]; the model has no batch "
     "dimension (max_batch_size is 0)"),
    (set_shape(1), "inputs.responses.shape: []; give [K]"),
    (set_shape(1, -1), "inputs.responses.shape: [-1]; give [K]"),
    (set_shape(0, 2), "inputs.prompt.shape: [2]; give [1]"),
    (set_shape(0, 0), "inputs.prompt.shape: [0]; give [1]"),
    (all_of(set_shape(1, 0), set_raw(1, b"")),
     "inputs.responses: there are no responses; give at least one"),
    (set_shape(1, 2049), "responses: there are 2049; the limit is 2048 (--max-responses)"),
    (set_shape(1, 2**62), "responses: there are 4611686018427387904; the limit is 2048"),
    # Raw contents. MLServer once packed all elements into one (SeldonIO/MLServer pull 409).
    (lambda r: r.raw_input_contents.pop(),
     "raw_input_contents: there are 1 entries and 2 inputs; give one entry per input"),
    (lambda r: r.raw_input_contents.append(b""),
     "raw_input_contents: there are 3 entries and 2 inputs"),
    (set_raw(1, raw_texts(b"a b")), "inputs.responses: the raw contents end before the length of "
     "element 1; shape [2] needs 2 elements"),
    (set_raw(1, raw_texts(b"a") + b"\1\0"), "inputs.responses: the raw contents end before the "
     "length of element 1"),
    (set_raw(1, raw_texts(b"a", b"bcd")[:-1]),
     "inputs.responses: the length of element 1 is 3 bytes, and 2 are left"),
    (set_raw(1, raw_texts(b"a") + b"\xff\xff\xff\xffb"),
     "inputs.responses: the length of element 1 is 4294967295 bytes, and 1 are left"),
    (set_raw(1, raw_texts(b"a", b"b", b"c")),
     "inputs.responses: 5 bytes follow the last of 2 elements in the raw contents"),
    (set_raw(0, b"Hello"), "inputs.prompt: the length of element 0 is 1819043144 bytes"),
    # Bytes that are not UTF-8 were a traceback in KServe (kserve/kserve issue 3731).
    (set_raw(1, raw_texts(b"a", b"b\xff")),
     "responses[1].text: the byte at 1 is not UTF-8"),
    (set_raw(0, raw_texts(b"\xed\xa0\x80")), "inputs.prompt: the byte at 0 is not UTF-8"),
    # Typed contents
    (typed(1, bytes_contents=[b"a", b"b"]),
     "inputs.responses.contents: raw_input_contents are given as well; give one of the two"),
    (all_of(lambda r: r.ClearField("raw_input_contents"), typed(0, bytes_contents=[b"x"])),
     "inputs.responses.contents.bytes_contents: there are 0 elements; the shape is [2]"),
    (all_of(lambda r: r.ClearField("raw_input_contents"), typed(0, bytes_contents=[b"x"]),
            typed(1, bytes_contents=[b"a"])),
     "inputs.responses.contents.bytes_contents: there are 1 elements; the shape is [2]"),
    (all_of(lambda r: r.ClearField("raw_input_contents"), typed(0, int_contents=[1])),
     "inputs.prompt.contents.int_contents: BYTES has its elements in bytes_contents"),
    # Messages
    (messages(b"Hello"), "inputs.messages: this is not a JSON array of objects with role and "),
    (messages(b"[]"), "inputs.messages: there are none; give at least one"),
    (messages(b'{"role": "user", "content": "x"}'), "inputs.messages: this is not a JSON array"),
    (messages(b'[{"role": "user"}]'), "inputs.messages: this is not a JSON array of objects with "
     "role and content: Object missing required field `content`"),
    (messages(b'[{"role": "user", "content": "x", "name": "y"}]'),
     "inputs.messages: this is not a JSON array of objects with role and content: Object contains "
     "unknown field `name`"),
    (messages(b'[{"role": "user", "content": ["x"]}]'), "inputs.messages: this is not a JSON"),
    (messages(b'[{"role": "", "content": "x"}]'), "inputs.messages[0].role: it is empty"),
    (messages(b'[{"role": "user", "content": "\\ud800"}]'), "inputs.messages: this is not a JSON"),
    (messages(b'[{"role": "human", "content": "x"}]'), "prompt.messages[0].role: "),
    # Parameters
    (parameter("priority", int64_param=3), "parameters.priority: 3; 1 is interactive"),
    (parameter("priority", string_param="1"),
     "parameters.priority: its value is in string_param; give it in uint64_param"),
    (parameter("timeout"), "parameters.timeout: its value is in no field; give it in int64_param"),
    (parameter("temperature", double_param=1), "parameters.temperature: this parameter is unknown; "
     "allowed are priority, timeout, triton_enable_empty_final_response"),
    (lambda r: r.inputs[0].parameters["content_type"].CopyFrom(
        pb.InferParameter(string_param="base64")),
     "inputs.prompt.parameters.content_type: 'base64'; texts are UTF-8"),
    (lambda r: r.inputs[1].parameters["x"].CopyFrom(pb.InferParameter(bool_param=True)),
     "inputs.responses.parameters.x: this parameter is unknown; allowed are content_type"),
    # Outputs. MLServer once ignored them (SeldonIO/MLServer issue 201).
    (lambda r: r.outputs.add(name="scores"),
     "outputs: the output 'scores' is unknown; the outputs are rewards and errors"),
    (lambda r: (r.outputs.add(name="rewards"), r.outputs.add(name="rewards")),
     "outputs.rewards: it is named twice"),
    (lambda r: r.outputs.add(name="rewards").parameters["x"].CopyFrom(
        pb.InferParameter(int64_param=1)),
     "outputs.rewards.parameters.x: this parameter is unknown; an output takes none"),
]  # fmt: skip

ID_CASES: list[tuple[Change, str]] = [
    (set_raw(0, raw_integers(5)), "inputs.prompt_token_ids: the raw contents have 8 bytes; shape "
     "[2] of INT64 needs 16"),
    (set_raw(0, struct.pack("<2i", 5, 6)), "inputs.prompt_token_ids: the raw contents have 8 "),
    (all_of(set_raw(0, b""), set_shape(0, 0)),
     "inputs.prompt_token_ids: there are none; give at least one"),
    (set_raw(2, raw_integers(2, 2)),
     "inputs.response_lengths: their sum is 4; there are 3 response_token_ids"),
    (set_raw(2, raw_integers(4, -1)),
     "inputs.response_lengths[0]: 4; there are 3 response_token_ids"),
    (set_raw(2, raw_integers(0, -1)),
     "inputs.response_lengths[1]: -1; there are 3 response_token_ids"),
    (set_raw(2, raw_integers(2**63 - 1, 2)), "inputs.response_lengths[0]: 9223372036854775807; "),
    (all_of(set_raw(2, b""), set_shape(2, 0)), "inputs.response_lengths: there are no responses"),
    (set_raw(0, raw_integers(5, -1)), "prompt.token_ids[1]: -1 is outside the vocabulary"),
    (set_raw(1, raw_integers(7, 2**40, 9)),
     "responses[0].token_ids[1]: 1099511627776 is outside the vocabulary"),
    (set_field(0, datatype="INT32"),
     "inputs.prompt_token_ids.datatype: 'INT32'; this input is INT64"),
    (set_field(2, name="x"), "inputs: the input 'x' is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("request_of", "change", "problem"),
    [(text_request, *case) for case in TEXT_CASES] + [(ids_request, *case) for case in ID_CASES],
    ids=[case[1][:60] for case in TEXT_CASES + ID_CASES],
)
def test_a_bad_request_is_refused_by_the_name_of_its_field(
    stub: Any, request_of: Callable[[], pb.ModelInferRequest], change: Change, problem: str
) -> None:
    request = request_of()
    stub.ModelInfer(request)
    change(request)
    with pytest.raises(grpc.RpcError) as failed:
        stub.ModelInfer(request)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(failed.value.details()).startswith(problem)


@pytest.mark.parametrize("name", _REFUSED)
def test_a_parameter_of_what_the_server_does_not_have_is_refused_wherever_it_stands(
    stub: Any, name: str
) -> None:
    value = pb.InferParameter(int64_param=1)
    for field in ("parameters", "inputs.prompt.parameters", "outputs.rewards.parameters"):
        request = text_request()
        request.outputs.add(name="rewards")
        places: dict[str, Any] = {
            "parameters": request,
            "inputs.prompt.parameters": request.inputs[0],
            "outputs.rewards.parameters": request.outputs[0],
        }
        places[field].parameters[name].CopyFrom(value)
        with pytest.raises(grpc.RpcError) as failed:
            stub.ModelInfer(request)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.value.details() == f"{field}.{name}: {_REFUSED[name]}"


def test_another_repository_is_refused(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other"))
    assert failed.value.details() == "repository_name: leave it empty; there is one repository"
