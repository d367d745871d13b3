"""`kwise.v1.RewardService` over gRPC: convert the request, call the service, convert the reply."""

from collections.abc import AsyncIterator

from kwise.engine.server.base_service import BaseRewardService
from kwise.engine.server.grpc import messages
from kwise.engine.server.grpc.calls import (
    Context,
    client_of,
    model_of,
    named_in_metadata,
    running_call,
)
from kwise.engine.server.grpc.stream import RequestStream
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import ScoredGroup


class GrpcRewardService(reward_pb2_grpc.RewardServiceServicer):
    """The RPCs of one reward service. reward.proto is their documentation."""

    def __init__(self, service: BaseRewardService) -> None:
        self._service = service

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        async with running_call(self._service, context):
            model = model_of(request.group.model, named_in_metadata(context))
            scored = await self._score(request.group, client_of(context), model)
            return pb.ScoreResponse(scored=await messages.from_scored_group(scored))

    async def Rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        async with running_call(self._service, context):
            self._service.limits.check(len(request.group.responses))
            group = await messages.to_group(request.group, client_of(context))
            model = model_of(request.group.model, named_in_metadata(context))
            ranked = await self._service.rank(group, model)
            return await messages.from_ranked_group(ranked)

    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        async with running_call(self._service, context):
            self._service.limits.check(len(request.group.responses), len(request.pairs))
            group = await messages.to_group(request.group, client_of(context))
            pairs = await messages.to_pairs(request.pairs)
            model = model_of(request.group.model, named_in_metadata(context))
            compared = await self._service.compare(group, pairs, model)
            return await messages.from_compared_group(compared)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        async with running_call(self._service, context):
            model = model_of(request.model, named_in_metadata(context))
            return messages.from_model_info(await self._service.describe(model))

    async def ScoreStream(  # type: ignore[override]  # the generated stub knows only iterators
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> None:
        """Write replies as groups finish. If the client leaves, cancel its unfinished groups."""
        client, in_metadata = client_of(context), named_in_metadata(context)

        async def answer(request: pb.ScoreStreamRequest) -> pb.ScoreStreamResponse:
            try:
                with self._service.streamed_request():
                    model = model_of(request.group.model, in_metadata)
                    scored = await self._score(request.group, client, model)
                    message = await messages.from_scored_group(scored)
                    return pb.ScoreStreamResponse(id=request.id, scored=message)
            except KwiseError as error:  # the other groups of the stream go on
                return pb.ScoreStreamResponse(id=request.id, error=messages.from_error(error))

        async with running_call(self._service, context):
            await RequestStream(
                context, pb.ScoreStreamRequest, answer, self._service.draining, in_order=False
            ).run()

    async def _score(self, group: pb.Group, client: str, model: str) -> ScoredGroup:
        self._service.limits.check(len(group.responses))
        return await self._service.score(await messages.to_group(group, client), model)
