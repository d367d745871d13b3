"""The parameters of a request. Each is applied, or refused by its name.

A parameter that could change the answer is never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kwise.engine.server.grpc.inference.tensors import quoted
from kwise.errors import InvalidRequest
from kwise.protos.inference import inference_pb2 as pb
from kwise.types import Priority

# The levels of `priority`, numbered as in Triton: 1 is the most important.
PRIORITIES = {1: Priority.INTERACTIVE, 2: Priority.BULK}
DEFAULT_PRIORITY = 1

# The parameters of the protocol that are refused, with the reason.
NO_SHARED_MEMORY = "this server does not read shared memory; send the contents in the request"
_HTTP_ONLY = "it applies to HTTP only; over gRPC, raw_input_contents are binary already"
_NO_SEQUENCES = "requests to this model are independent and form no sequence; leave it out"
_REFUSED = {
    "shared_memory_region": NO_SHARED_MEMORY,
    "shared_memory_byte_size": NO_SHARED_MEMORY,
    "shared_memory_offset": NO_SHARED_MEMORY,
    "binary_data": _HTTP_ONLY,
    "binary_data_size": _HTTP_ONLY,
    "binary_data_output": _HTTP_ONLY,
    "sequence_id": _NO_SEQUENCES,
    "sequence_start": _NO_SEQUENCES,
    "sequence_end": _NO_SEQUENCES,
    "classification": "a reward is a number and not a class; leave out class_count",
}

# The wish for an empty last reply, for models that may send no reply at all. It has no effect,
# because each request gets one reply.
_FINAL_RESPONSE = "triton_enable_empty_final_response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The parameters of a request.

    Attributes:
        priority: the importance of the group.
        timeout_us: microseconds after which the server gives up the request; None for no limit.
    """

    priority: Priority
    timeout_us: int | None

    @classmethod
    def of(cls, request: pb.ModelInferRequest) -> "Parameters":
        """Read the parameters of a request.

        Raises:
            InvalidRequest: one of them is unknown, refused, or has a value that is not allowed.
        """
        parameters = request.parameters
        _refuse_others("parameters", parameters, ("priority", "timeout", _FINAL_RESPONSE))
        level = _integer(parameters, "priority", "uint64_param") or DEFAULT_PRIORITY
        if level not in PRIORITIES:
            raise InvalidRequest(
                "parameters.priority",
                f"{level}; 1 is interactive (the default, as is 0) and 2 is bulk",
            )
        timeout_us = _integer(parameters, "timeout", "int64_param")
        if timeout_us < 0:
            raise InvalidRequest(
                "parameters.timeout", f"{timeout_us}; give microseconds, or 0 for no limit"
            )
        return cls(priority=PRIORITIES[level], timeout_us=timeout_us or None)


def check_input_parameters(tensor: pb.ModelInferRequest.InferInputTensor) -> None:
    """Check the parameters of an input.

    MLServer's clients add `content_type` to texts. Its values "str" and "np" change nothing.

    Raises:
        InvalidRequest: one of them is unknown or refused.
    """
    field = f"inputs.{tensor.name}.parameters"
    _refuse_others(field, tensor.parameters, ("content_type",))
    if "content_type" in tensor.parameters:
        value = tensor.parameters["content_type"].string_param
        if value not in ("str", "np"):
            raise InvalidRequest(
                f"{field}.content_type",
                f"{quoted(value)}; texts are UTF-8: give 'str', or leave it out",
                is_quoting=True,
            )


def check_output_parameters(tensor: pb.ModelInferRequest.InferRequestedOutputTensor) -> None:
    """Check the parameters of a requested output.

    Raises:
        InvalidRequest: there are any, because an output takes no parameters.
    """
    _refuse_others(f"outputs.{tensor.name}.parameters", tensor.parameters, ())


def _refuse_others(
    field: str, parameters: Mapping[str, pb.InferParameter], known: tuple[str, ...]
) -> None:
    for name in parameters:
        if name in known:
            continue
        problem = _REFUSED.get(name)
        if problem is None:
            allowed = f"allowed are {', '.join(known)}" if known else "an output takes none"
            problem = f"this parameter is unknown; {allowed}"
        raise InvalidRequest(f"{field}.{name[:100]}", problem, is_quoting=True, logged_field=field)


def _integer(parameters: Mapping[str, pb.InferParameter], name: str, field: str) -> int:
    """Return the value of a parameter; 0 if it is not set."""
    if name not in parameters:
        return 0
    match parameters[name].WhichOneof("parameter_choice"):
        case "int64_param":
            return parameters[name].int64_param
        case "uint64_param":
            return parameters[name].uint64_param
        case other:
            raise InvalidRequest(
                f"parameters.{name}", f"its value is in {other or 'no field'}; give it in {field}"
            )
