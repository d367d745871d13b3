"""The deployment that takes requests: `kwise.v1.RewardService` on top of the replicas.

Ray's gRPC proxy sends each call to a replica of the ingress. The ingress computes nothing: it
converts messages, sends each group to the replica of its prompt, and sends it again if that replica
dies. A proxy that called the replicas directly would save a hop. It would send all groups of a
stream to one replica, and would answer INTERNAL if that one died.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from ray import serve  # pyright: ignore[reportMissingImports]

from kwise.cluster.service.grpc_context import Aborted, ProxiedContext
from kwise.cluster.service.remote_service import RemoteService
from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.grpc.rewards import GrpcRewardService
from kwise.protos.kwise.v1 import reward_pb2 as pb

_REQUESTS: dict[str, type[Message]] = {
    "Score": pb.ScoreRequest,
    "Rank": pb.RankRequest,
    "Compare": pb.CompareRequest,
    "GetModel": pb.GetModelRequest,
}


class Ingress:
    """One replica of the ingress. The methods are the RPCs, called by Ray's proxy.

    Args:
        replicas: the handle of the deployment of `RewardReplica`.
        models: the names of the models. The first answers requests that name none.
        limits: the largest request that is accepted.
    """

    def __init__(self, replicas: Any, models: Sequence[str], limits: RequestLimits) -> None:
        self._rpcs = GrpcRewardService(RemoteService(replicas, models, limits))

    async def Score(self, request: bytes, grpc_context: Any) -> Message:
        return await self._unary("Score", request, grpc_context)

    async def Rank(self, request: bytes, grpc_context: Any) -> Message:
        return await self._unary("Rank", request, grpc_context)

    async def Compare(self, request: bytes, grpc_context: Any) -> Message:
        return await self._unary("Compare", request, grpc_context)

    async def GetModel(self, request: bytes, grpc_context: Any) -> Message:
        return await self._unary("GetModel", request, grpc_context)

    async def ScoreStream(
        self, request_stream: AsyncIterator[bytes], grpc_context: Any
    ) -> AsyncIterator[Message]:
        context: Any = ProxiedContext(grpc_context, _parsed(request_stream))
        rpc = asyncio.create_task(self._rpcs.ScoreStream(context, context))
        async for reply in context.replies(rpc):
            yield reply

    async def _unary(self, name: str, request: bytes, grpc_context: Any) -> Message:
        """Return the reply. With an error, its status is set, and the reply is not read.

        Ray would drop the trailing metadata of a call that raises.
        """
        context = ProxiedContext(grpc_context)
        with suppress(Aborted):
            try:
                message = _parse(_REQUESTS[name], request)
            except DecodeError:
                problem = f"the request is not a {_REQUESTS[name].DESCRIPTOR.full_name}"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
            reply: Message = await getattr(self._rpcs, name)(message, context)
            return reply
        return Empty()


async def _parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for request in requests:
        yield _parse(pb.ScoreStreamRequest, request)


def _parse(kind: type[Message], request: bytes) -> Any:
    """Return the message, with the model of Ray's metadata `multiplexed_model_id` if it names none.

    Raises:
        DecodeError: the bytes are not such a message.
    """
    message: Any = kind.FromString(request)
    named = message if kind is pb.GetModelRequest else message.group
    named.model = named.model or serve.get_multiplexed_model_id()
    return message
