"""`kwise.v1.RewardService` over gRPC: convert the request, call the service, convert the reply."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from kwise.engine.server.grpc import messages
from kwise.engine.server.grpc.stream import Context, GroupStream
from kwise.engine.server.service import RewardService, bugs_reported
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import CLIENT_KEY, ScoredGroup


class GrpcRewardService(reward_pb2_grpc.RewardServiceServicer):
    """The rpcs of one `RewardService`. reward.proto is their documentation."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        async with self._call(context):
            scored = await self._score(request.group, _client_of(context))
            return pb.ScoreResponse(scored=await messages.from_scored_group(scored))

    async def Rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        async with self._call(context):
            self._service.limits.check(len(request.group.responses))
            group = await messages.to_group(request.group, _client_of(context))
            ranked = await self._service.rank(group, request.group.model)
            return await messages.from_ranked_group(ranked)

    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        async with self._call(context):
            self._service.limits.check(len(request.group.responses), len(request.pairs))
            group = await messages.to_group(request.group, _client_of(context))
            pairs = await messages.to_pairs(request.pairs)
            compared = await self._service.compare(group, pairs, request.group.model)
            return await messages.from_compared_group(compared)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        async with self._call(context):
            return messages.from_model_info(self._service.model_info(request.model))

    async def ScoreStream(  # type: ignore[override]  # the generated stub knows only iterators
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> None:
        """Write replies as groups finish. If the client leaves, cancel what only it waits for."""
        client = _client_of(context)

        async def answer(request: pb.ScoreStreamRequest) -> pb.ScoreStreamResponse:
            try:
                with bugs_reported():
                    scored = await self._score(request.group, client)
                    message = await messages.from_scored_group(scored)
                    return pb.ScoreStreamResponse(id=request.id, scored=message)
            except KwiseError as error:  # the other groups of the stream go on
                return pb.ScoreStreamResponse(id=request.id, error=messages.from_error(error))

        async with self._call(context):
            await GroupStream(context, answer, self._service.draining).run()

    async def _score(self, group: pb.Group, client: str) -> ScoredGroup:
        self._service.limits.check(len(group.responses))
        return await self._service.score(await messages.to_group(group, client), group.model)

    @asynccontextmanager
    async def _call(self, context: Context) -> AsyncIterator[None]:
        """Count the call as running, and end it with the status of an error raised inside."""
        try:
            with self._service.call():
                yield
        except KwiseError as error:
            await context.abort(messages.status_code(error), str(error), messages.trailers(error))


def _client_of(context: Context) -> str:
    """Return the client that the call names (behind a proxy, say), or else its connection."""
    metadata: Any = context.invocation_metadata() or ()
    named: Iterator[Any] = (value for key, value in metadata if key == CLIENT_KEY)
    return str(next(named, "")) or context.peer()
