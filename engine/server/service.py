"""`kwise.v1.RewardService` over one scorer: every rpc is admit, score, reply.

A request is admitted in one place (`_scored`), where the model's name and the server's state are checked, and an error is
answered in one place (`_answer`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NoReturn, TypeVar

import grpc

from kwise.engine.errors import KwiseError, Overloaded, Unavailable, UnknownModel
from kwise.engine.scorer import Scorer
from kwise.engine.server import messages
from kwise.engine.types import ScoredGroup
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
# Groups of one stream that are worked on at once; a client that sends more waits at gRPC's flow control.
_MAX_STREAM_GROUPS = 256

Context = grpc.aio.ServicerContext[Any, Any]


class RewardService(reward_pb2_grpc.RewardServiceServicer):
    """Serves `scorer`. After `drain`, new requests get UNAVAILABLE and running ones finish."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._draining = False

    def drain(self) -> None:
        self._draining = True

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        return messages.to_score_response(await _answer(self._scored(request), context))

    async def Rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        return messages.to_rank_response(await _answer(self._scored(request), context))

    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        scored = await _answer(self._scored(request), context)
        return messages.to_compare_response(scored, [(pair.first, pair.second) for pair in request.pairs])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return await _answer(self._model(request), context)

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Replies as groups finish. A client that goes away cancels what it alone waited for."""
        finished: asyncio.Queue[pb.ScoreStreamResponse | None] = asyncio.Queue()
        room = asyncio.Semaphore(_MAX_STREAM_GROUPS)
        async with asyncio.TaskGroup() as tasks:

            async def answer(request: pb.ScoreStreamRequest) -> None:
                finished.put_nowait(await self._stream_response(request))

            async def read() -> None:
                async with asyncio.TaskGroup() as groups:
                    async for request in request_iterator:
                        await room.acquire()
                        groups.create_task(answer(request))
                finished.put_nowait(None)

            tasks.create_task(read())
            while (response := await finished.get()) is not None:
                yield response
                room.release()  # only once it is written: a slow reader holds its own groups back

    async def _stream_response(self, request: pb.ScoreStreamRequest) -> pb.ScoreStreamResponse:
        try:
            scored = await self._scored(request.request)
        except KwiseError as error:
            return pb.ScoreStreamResponse(id=request.id, error=messages.to_response_error(error))
        except Exception:  # noqa: BLE001 - the stream's other groups must go on
            _LOG.exception("a group of a stream failed")
            error_message = pb.ResponseError(code="INTERNAL", message="internal error; the server's log has the details")
            return pb.ScoreStreamResponse(id=request.id, error=error_message)
        return pb.ScoreStreamResponse(id=request.id, response=messages.to_score_response(scored))

    async def _scored(self, request: pb.ScoreRequest | pb.RankRequest | pb.CompareRequest) -> ScoredGroup:
        self._admit(request.model)
        if isinstance(request, pb.CompareRequest):
            messages.check_pairs(request)
        return await self._scorer.score(messages.to_group(request))

    async def _model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        self._admit(request.model)
        return messages.to_model_response(self._scorer)

    def _admit(self, model: str) -> None:
        if self._draining:
            raise Unavailable("the server is shutting down; send the request again")
        served = self._scorer.artifact.manifest.name
        if model and model != served:
            raise UnknownModel(model, served)


async def _answer(work: Awaitable[_T], context: Context) -> _T:
    """The result, or the end of the call with the error's status."""
    try:
        return await work
    except Overloaded as error:
        # gRPC's retry policy obeys this trailer (gRFC A6, "pushback").
        pushback = (("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))),)
        await _abort(context, error, pushback)
    except KwiseError as error:
        await _abort(context, error, ())
    except Exception:  # noqa: BLE001 - the details belong in the log, not in the reply
        _LOG.exception("a request failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
    raise AssertionError("abort raises")


async def _abort(context: Context, error: KwiseError, trailers: tuple[tuple[str, str], ...]) -> NoReturn:
    await context.abort(messages.status_code(error), str(error), trailers)
    raise AssertionError("abort raises")
