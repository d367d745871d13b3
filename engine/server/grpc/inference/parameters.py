"""The parameters of a request: honoured, or refused by name.

A parameter that could change the answer is never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kwise.engine.server.grpc.inference.tensors import quoted
from kwise.errors import InvalidRequest
from kwise.protos.inference import inference_pb2 as pb
from kwise.types import Priority

# Levels of `priority`, as Triton counts them: 1 is the most important.
PRIORITIES = {1: Priority.INTERACTIVE, 2: Priority.BULK}
DEFAULT_PRIORITY = 1

# Why parameters of the protocol are refused, by name.
_NO_SHARED_MEMORY = "this server has no shared memory; send the contents in the request"
_HTTP_ONLY = "it belongs to HTTP; on gRPC, raw_input_contents are binary already"
_NO_SEQUENCES = "this model has no sequences; every request stands by itself"
_REFUSED = {
    "shared_memory_region": _NO_SHARED_MEMORY,
    "shared_memory_byte_size": _NO_SHARED_MEMORY,
    "shared_memory_offset": _NO_SHARED_MEMORY,
    "binary_data": _HTTP_ONLY,
    "binary_data_size": _HTTP_ONLY,
    "binary_data_output": _HTTP_ONLY,
    "sequence_id": _NO_SEQUENCES,
    "sequence_start": _NO_SEQUENCES,
    "sequence_end": _NO_SEQUENCES,
    "classification": "rewards are no classes; leave out class_count",
}

# Asks for an empty last reply from models that may send none. Here each request has one reply.
_FINAL_RESPONSE = "triton_enable_empty_final_response"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What the parameters of a request ask for.

    Attributes:
        priority: the importance of the group.
        timeout_us: microseconds after which the request is given up; None for no limit.
    """

    priority: Priority
    timeout_us: int | None

    @classmethod
    def of(cls, request: pb.ModelInferRequest) -> "Parameters":
        """Read the parameters of a request.

        Raises:
            InvalidRequest: one of them is unknown, refused, or has a value that is not allowed.
        """
        given = request.parameters
        _refuse_others("parameters", given, ("priority", "timeout", _FINAL_RESPONSE))
        level = _integer(given, "priority", "uint64_param") or DEFAULT_PRIORITY
        if level not in PRIORITIES:
            raise InvalidRequest(
                "parameters.priority",
                f"{level}; 1 is interactive (the default, as is 0) and 2 is bulk",
            )
        timeout_us = _integer(given, "timeout", "int64_param")
        if timeout_us < 0:
            raise InvalidRequest(
                "parameters.timeout", f"{timeout_us}; give microseconds, or 0 for no limit"
            )
        return cls(priority=PRIORITIES[level], timeout_us=timeout_us or None)


def check_input_parameters(given: pb.ModelInferRequest.InferInputTensor) -> None:
    """Check the parameters of an input.

    `content_type` is what MLServer's clients add to a text; "str" and "np" say what is so anyway.

    Raises:
        InvalidRequest: one of them is unknown or refused.
    """
    field = f"inputs.{given.name}.parameters"
    _refuse_others(field, given.parameters, ("content_type",))
    if "content_type" in given.parameters:
        value = given.parameters["content_type"].string_param
        if value not in ("str", "np"):
            raise InvalidRequest(
                f"{field}.content_type",
                f"{quoted(value)}; texts are UTF-8: give 'str', or leave it out",
            )


def check_output_parameters(given: pb.ModelInferRequest.InferRequestedOutputTensor) -> None:
    """Check the parameters of a requested output.

    Raises:
        InvalidRequest: there are any; none applies here.
    """
    _refuse_others(f"outputs.{given.name}.parameters", given.parameters, ())


def _refuse_others(
    field: str, given: Mapping[str, pb.InferParameter], known: tuple[str, ...]
) -> None:
    for name in given:
        if name in known:
            continue
        problem = _REFUSED.get(name)
        if problem is None:
            allowed = f"allowed are {', '.join(known)}" if known else "none is allowed here"
            problem = f"this parameter is unknown; {allowed}"
        raise InvalidRequest(f"{field}.{name[:100]}", problem)


def _integer(given: Mapping[str, pb.InferParameter], name: str, kind: str) -> int:
    """Return the value of a parameter; 0 if it is not given."""
    if name not in given:
        return 0
    match given[name].WhichOneof("parameter_choice"):
        case "int64_param":
            return given[name].int64_param
        case "uint64_param":
            return given[name].uint64_param
        case other:
            raise InvalidRequest(
                f"parameters.{name}", f"its value is in {other or 'no field'}; give it in {kind}"
            )
