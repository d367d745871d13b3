"""Make the output tensors of a reply from the rewards of a group."""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np

from kwise.engine.server.grpc.inference.parameters import check_output_parameters
from kwise.engine.server.grpc.inference.tensors import (
    ERRORS,
    MEMBERS,
    MIN,
    MODEL_VERSION,
    REWARDS,
    STD,
    Tensor,
    outputs_of,
    quoted,
)
from kwise.errors import InvalidRequest, KwiseError
from kwise.protos.inference import inference_pb2 as pb
from kwise.types import Reward, ScoredGroup

_Rewards = Sequence[Reward | KwiseError]


def requested_outputs(request: pb.ModelInferRequest, num_members: int) -> list[Tensor]:
    """Return the outputs that a request names, in its order; the rewards if it names none.

    Args:
        num_members: the members of the model, 1 if it has none.

    Raises:
        InvalidRequest: an output is unknown, named twice, or has a parameter.
    """
    outputs: list[Tensor] = []
    known = outputs_of(num_members)
    for requested in request.outputs:
        if (tensor := known.get(requested.name)) is None:
            *names, last = known
            raise InvalidRequest(
                "outputs",
                f"the output {quoted(requested.name)} is unknown; the outputs are "
                f"{', '.join(names)} and {last}",
                is_quoting=True,
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
        shape = tensor.shape_of(len(scored.rewards))
        reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        reply.raw_output_contents.append(_RAW[tensor.name](scored.rewards, tensor))
    return reply


def _raw_rewards(rewards: _Rewards, _: Tensor) -> bytes:
    """Return float32[K]: the values, NaN for a response that was not scored."""
    return _raw_floats(reward.value if isinstance(reward, Reward) else None for reward in rewards)


def _raw_std(rewards: _Rewards, _: Tensor) -> bytes:
    """Return float32[K]: the standard deviations of the members, NaN where there is no reward."""
    return _raw_floats(reward.std if isinstance(reward, Reward) else None for reward in rewards)


def _raw_min(rewards: _Rewards, _: Tensor) -> bytes:
    """Return float32[K]: the smallest value of a member, NaN where there is no reward."""
    return _raw_floats(reward.min if isinstance(reward, Reward) else None for reward in rewards)


def _raw_members(rewards: _Rewards, tensor: Tensor) -> bytes:
    """Return float32[K, M]: the values of the members, NaN where there is no reward."""
    no_reward = (math.nan,) * (tensor.width or 0)
    members = (reward.members if isinstance(reward, Reward) else no_reward for reward in rewards)
    return _raw_floats(chain.from_iterable(members))


def _raw_floats(numbers: Iterable[float | None]) -> bytes:
    return np.array([math.nan if n is None else n for n in numbers], "<f4").tobytes()


def _raw_errors(rewards: _Rewards, _: Tensor) -> bytes:
    """Return bytes[K]: the errors, empty for a response that was scored."""
    errors = [b"" if isinstance(reward, Reward) else str(reward).encode() for reward in rewards]
    return b"".join(struct.pack("<I", len(error)) + error for error in errors)


_RAW: dict[str, Callable[[_Rewards, Tensor], bytes]] = {
    REWARDS.name: _raw_rewards,
    ERRORS.name: _raw_errors,
    STD.name: _raw_std,
    MIN.name: _raw_min,
    MEMBERS: _raw_members,
}
