"""Make the output tensors of a reply from the rewards of a group."""

import math
import struct
from collections.abc import Callable, Sequence

import numpy as np

from kwise.engine.server.grpc.inference.parameters import check_output_parameters
from kwise.engine.server.grpc.inference.tensors import (
    ERRORS,
    MODEL_VERSION,
    OUTPUTS,
    REWARDS,
    Tensor,
    quoted,
)
from kwise.errors import InvalidRequest, KwiseError
from kwise.protos.inference import inference_pb2 as pb
from kwise.types import Reward, ScoredGroup

_Rewards = Sequence[Reward | KwiseError]


def requested_outputs(request: pb.ModelInferRequest) -> list[Tensor]:
    """Return the outputs that a request names, in its order; the rewards if it names none.

    Raises:
        InvalidRequest: an output is unknown, named twice, or has a parameter.
    """
    outputs: list[Tensor] = []
    for requested in request.outputs:
        if (tensor := OUTPUTS.get(requested.name)) is None:
            names = " and ".join(OUTPUTS)
            raise InvalidRequest(
                "outputs",
                f"the output {quoted(requested.name)} is unknown; the outputs are {names}",
            )
        if tensor in outputs:
            raise InvalidRequest(f"outputs.{tensor.name}", "it is named twice")
        check_output_parameters(requested)
        outputs.append(tensor)
    return outputs or [REWARDS]


def from_scored_group(
    scored: ScoredGroup, outputs: Sequence[Tensor], request_id: str
) -> pb.ModelInferResponse:
    """Return the reply with the requested outputs.

    The protocol cannot report an error of a single response. Therefore a response that could not be
    scored fails the request, unless the request names the output `errors`: then its reward is NaN.

    Raises:
        KwiseError: the first error of a response, if `errors` is not among the outputs.
    """
    if ERRORS not in outputs:
        for reward in scored.rewards:
            if isinstance(reward, KwiseError):
                raise reward
    reply = pb.ModelInferResponse(
        model_name=scored.model, model_version=MODEL_VERSION, id=request_id
    )
    for name in ("fingerprint", "precision", "runtime"):
        reply.parameters[name].string_param = getattr(scored, name)
    for tensor in outputs:
        reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=[len(scored.rewards)])
        reply.raw_output_contents.append(_RAW[tensor.name](scored.rewards))
    return reply


def _raw_rewards(rewards: _Rewards) -> bytes:
    """Return float32[K]: the values, NaN for a response that was not scored."""
    values = [reward.value if isinstance(reward, Reward) else math.nan for reward in rewards]
    return np.array(values, "<f4").tobytes()


def _raw_errors(rewards: _Rewards) -> bytes:
    """Return bytes[K]: the errors, empty for a response that was scored."""
    errors = [b"" if isinstance(reward, Reward) else str(reward).encode() for reward in rewards]
    return b"".join(struct.pack("<I", len(error)) + error for error in errors)


_RAW: dict[str, Callable[[_Rewards], bytes]] = {
    REWARDS.name: _raw_rewards,
    ERRORS.name: _raw_errors,
}
