"""The inputs and outputs of the model, and the elements of the inputs of a request.

A tensor is one-dimensional, but for the output `members`. The elements of an input come in
`raw_input_contents` or typed in `contents`, as the protocol allows; a request uses one of the two.

Dimensions: K responses, P ids of the prompt, R ids of all responses together, M members.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kwise.errors import InvalidRequest
from kwise.protos.inference import inference_pb2 as pb

MODEL_VERSION = "1"  # clients of Triton read versions as integers

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of the model.

    Attributes:
        name: its name in a request.
        datatype: "BYTES", "INT64" or "FP32".
        length: the size of its first dimension; None for any.
        width: the size of its second dimension; None if it has one dimension.
    """

    name: str
    datatype: str
    length: int | None = None
    width: int | None = None

    @property
    def shape(self) -> list[int]:
        """The shape as the protocol writes it, with -1 for a dimension of any size."""
        return self.shape_of(-1 if self.length is None else self.length)

    def shape_of(self, length: int) -> list[int]:
        """Return the shape of a tensor of this length."""
        return [length] if self.width is None else [length, self.width]


PROMPT = Tensor(name="prompt", datatype="BYTES", length=1)
MESSAGES = Tensor(name="messages", datatype="BYTES", length=1)
TEMPLATED_TEXT = Tensor(name="templated_text", datatype="BYTES", length=1)
PROMPT_TOKEN_IDS = Tensor(name="prompt_token_ids", datatype="INT64")  # int64[P]
RESPONSES = Tensor(name="responses", datatype="BYTES")  # bytes[K]
RESPONSE_TOKEN_IDS = Tensor(name="response_token_ids", datatype="INT64")  # int64[R]
RESPONSE_LENGTHS = Tensor(name="response_lengths", datatype="INT64")  # int64[K], their sum is R

INPUTS = {
    tensor.name: tensor
    for tensor in (
        PROMPT,
        MESSAGES,
        TEMPLATED_TEXT,
        PROMPT_TOKEN_IDS,
        RESPONSES,
        RESPONSE_TOKEN_IDS,
        RESPONSE_LENGTHS,
    )
}

REWARDS = Tensor(name="rewards", datatype="FP32")  # float32[K]
ERRORS = Tensor(name="errors", datatype="BYTES")  # bytes[K]
STD = Tensor(name="std", datatype="FP32")  # float32[K]
MIN = Tensor(name="min", datatype="FP32")  # float32[K]


def outputs_of(num_members: int) -> dict[str, Tensor]:
    """Return the outputs of a model, by name. Those of members exist only if there are some."""
    outputs = [REWARDS, ERRORS]
    if num_members > 1:
        members = Tensor(name=MEMBERS, datatype="FP32", width=num_members)  # float32[K, M]
        outputs += [STD, MIN, members]
    return {tensor.name: tensor for tensor in outputs}


MEMBERS = "members"

# The fields of typed contents that hold the elements of each datatype.
_CONTENTS = {"BYTES": "bytes_contents", "INT64": "int64_contents"}
_LENGTH = struct.Struct("<I")


def quoted(name: str) -> str:
    """Return a client's name for an error message. It is cut, so that it fits into a status."""
    return repr(name[:100])


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one request. Shapes and datatypes are checked; contents are not read yet."""

    _contents: dict[str, tuple[int, bytes | pb.InferTensorContents]]

    @classmethod
    def of(cls, request: pb.ModelInferRequest, check: Callable[..., None]) -> "Inputs":
        """Return the inputs of a request, after `check` has accepted each.

        Raises:
            InvalidRequest: an input is unknown, given twice, has a wrong datatype or shape, or its
                contents are missing or given in two ways.
        """
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise InvalidRequest(
                "raw_input_contents",
                f"there are {len(raw)} entries and {len(request.inputs)} inputs; give one entry "
                f"per input, or typed contents in all of them",
            )
        contents: dict[str, tuple[int, bytes | pb.InferTensorContents]] = {}
        for index, received in enumerate(request.inputs):
            if (tensor := INPUTS.get(received.name)) is None:
                names = ", ".join(INPUTS)
                raise InvalidRequest(
                    "inputs",
                    f"the input {quoted(received.name)} is unknown; the inputs are {names}",
                    is_quoting=True,
                )
            if tensor.name in contents:
                raise InvalidRequest(f"inputs.{tensor.name}", "it is given twice")
            check(received)
            length = _length(tensor, received)
            if raw and received.contents.ByteSize():
                raise InvalidRequest(
                    f"inputs.{tensor.name}.contents",
                    "raw_input_contents are given as well; give one of the two",
                )
            if not raw:
                _check_contents(tensor, received.contents, length)
            contents[tensor.name] = length, raw[index] if raw else received.contents
        return cls(contents)

    @property
    def names(self) -> list[str]:
        """The names of the inputs, in the order of the request."""
        return list(self._contents)

    def length(self, tensor: Tensor) -> int:
        """Return the number of elements of an input of the request."""
        return self._contents[tensor.name][0]

    def texts(self, tensor: Tensor) -> Sequence[bytes]:
        """Return the elements of an input of BYTES.

        Raises:
            InvalidRequest: there are more or fewer elements than the shape says.
        """
        length, contents = self._contents[tensor.name]
        if isinstance(contents, bytes):
            return _split(tensor, contents, length)
        return contents.bytes_contents

    def numbers(self, tensor: Tensor) -> Int64:
        """Return the elements of an input of INT64 as int64[length].

        Raises:
            InvalidRequest: there are more or fewer elements than the shape says.
        """
        length, contents = self._contents[tensor.name]
        if not isinstance(contents, bytes):
            return np.array(contents.int64_contents, np.int64)
        if len(contents) != 8 * length:
            raise InvalidRequest(
                f"inputs.{tensor.name}",
                f"the raw contents have {len(contents)} bytes; shape [{length}] of INT64 needs "
                f"{8 * length}",
            )
        return np.frombuffer(contents, "<i8").astype(np.int64, copy=False)


def _length(tensor: Tensor, received: pb.ModelInferRequest.InferInputTensor) -> int:
    field = f"inputs.{tensor.name}"
    if received.datatype != tensor.datatype:
        raise InvalidRequest(
            f"{field}.datatype",
            f"{quoted(received.datatype)}; this input is {tensor.datatype}",
            is_quoting=True,
        )
    expected = "K" if tensor.length is None else str(tensor.length)
    shape = list(received.shape)
    if tensor.datatype == "BYTES" and len(shape) == 2 and shape[1] == 1:
        shape.pop()  # MLServer's clients send a list of N texts as [N, 1]
    if len(shape) != 1:
        hint = "; the model has no batch dimension (max_batch_size is 0)" if len(shape) == 2 else ""
        raise InvalidRequest(f"{field}.shape", f"{shape[:8]}; give [{expected}]{hint}")
    (length,) = shape
    if length < 0 or tensor.length not in (None, length):
        raise InvalidRequest(f"{field}.shape", f"[{length}]; give [{expected}]")
    return length


def _check_contents(tensor: Tensor, contents: pb.InferTensorContents, length: int) -> None:
    field = f"inputs.{tensor.name}.contents"
    expected = _CONTENTS[tensor.datatype]
    for descriptor, _ in contents.ListFields():
        if descriptor.name != expected:
            raise InvalidRequest(
                f"{field}.{descriptor.name}", f"{tensor.datatype} has its elements in {expected}"
            )
    if (num_elements := len(getattr(contents, expected))) != length:
        raise InvalidRequest(
            f"{field}.{expected}", f"there are {num_elements} elements; the shape is [{length}]"
        )


def _split(tensor: Tensor, raw: bytes, length: int) -> list[bytes]:
    """Split raw BYTES into elements: each is its length as uint32, little-endian, and its data."""
    field = f"inputs.{tensor.name}"
    elements: list[bytes] = []
    start = 0
    for index in range(length):
        if start + _LENGTH.size > len(raw):
            raise InvalidRequest(
                field,
                f"the raw contents end before the length of element {index}; shape [{length}] "
                f"needs {length} elements, each with its length in 4 bytes before it",
            )
        (num_bytes,) = _LENGTH.unpack_from(raw, start)
        start += _LENGTH.size
        if start + num_bytes > len(raw):
            raise InvalidRequest(
                field,
                f"the length of element {index} is {num_bytes} bytes, and {len(raw) - start} are "
                f"left in the raw contents",
            )
        elements.append(raw[start : start + num_bytes])
        start += num_bytes
    if start != len(raw):
        raise InvalidRequest(
            field,
            f"{len(raw) - start} bytes follow the last of {length} elements in the raw contents",
        )
    return elements
