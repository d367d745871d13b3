"""`kwise.v1.RewardService` over one scorer: every rpc is admit, score, reply.

A request is admitted in one place (`_scored`), where the model's name and the server's state are checked, and an error is
answered in one place (`_answer`). `_running` counts calls, so that the server knows when it may leave.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import grpc

from kwise.engine.scorer import Scorer
from kwise.engine.server import messages
from kwise.engine.server.stream import Context, GroupStream
from kwise.errors import KwiseError, Overloaded, Unavailable, UnknownModel
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import CLIENT_KEY, ScoredGroup

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class RewardService(reward_pb2_grpc.RewardServiceServicer):
    """Serves `scorer`, which may be replaced: a request is answered by the one that it met. After `drain`, new requests get
    UNAVAILABLE, running ones finish, and streams end once they have answered what they have read. `num_calls`: how many have
    arrived. `leaving`: scorers that were replaced and still answer."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.leaving: set[Scorer] = set()
        self._draining = asyncio.Event()
        self.num_calls = 0
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        self._draining.set()

    async def idle(self) -> None:
        """Until no call runs."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Answer all that waits with UNAVAILABLE."""
        await asyncio.gather(*(scorer.stop() for scorer in (self.scorer, *self.leaving)))

    async def close(self) -> None:
        await asyncio.gather(*(scorer.close() for scorer in (self.scorer, *self.leaving)))

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        with self._running():
            return messages.to_score_response(
                await _answer(self._scored(request, client_of(context)), context)
            )

    async def Rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        with self._running():
            return messages.to_rank_response(
                await _answer(self._scored(request, client_of(context)), context)
            )

    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        with self._running():
            scored = await _answer(self._scored(request, client_of(context)), context)
            return messages.to_compare_response(
                scored, [(pair.first, pair.second) for pair in request.pairs]
            )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        with self._running():
            return await _answer(self._model(request), context)

    async def ScoreStream(  # type: ignore[override]  # the generated stub knows only handlers that are iterators
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> None:
        """Replies as groups finish. A client that goes away cancels what it alone waited for."""
        with self._running():
            respond = functools.partial(self._stream_response, client_of(context))
            await _answer(GroupStream(context, respond, self._draining).run(), context)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.num_calls += 1
        self._num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    async def _stream_response(
        self, client: str, request: pb.ScoreStreamRequest
    ) -> pb.ScoreStreamResponse:
        try:
            scored = await self._scored(request.request, client)
        except KwiseError as error:
            return pb.ScoreStreamResponse(id=request.id, error=messages.to_response_error(error))
        except Exception:  # noqa: BLE001 - the stream's other groups must go on
            _LOG.exception("a group of a stream failed")
            error_message = pb.ResponseError(
                code="INTERNAL", message="internal error; the server's log has the details"
            )
            return pb.ScoreStreamResponse(id=request.id, error=error_message)
        return pb.ScoreStreamResponse(id=request.id, response=messages.to_score_response(scored))

    async def _scored(
        self, request: pb.ScoreRequest | pb.RankRequest | pb.CompareRequest, client: str
    ) -> ScoredGroup:
        self._admit(request.model)
        if isinstance(request, pb.CompareRequest):
            messages.check_pairs(request)
        return await self.scorer.score(messages.to_group(request, client))

    async def _model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        self._admit(request.model)
        return messages.to_model_response(self.scorer)

    def _admit(self, model: str) -> None:
        if self._draining.is_set():
            raise Unavailable.leaving()
        served = self.scorer.artifact.manifest.name
        if model and model != served:
            raise UnknownModel(model, served)


def client_of(context: Context) -> str:
    """Whose turn a call takes: the client that it names, as behind a proxy, or else its connection."""
    named = (value for key, value in context.invocation_metadata() or () if key == CLIENT_KEY)
    return str(next(named, "")) or context.peer()


async def _answer(work: Awaitable[_T], context: Context) -> _T:
    """The result, or the end of the call with the error's status."""
    try:
        return await work
    except Overloaded as error:
        # gRPC's retry policy obeys this trailer (gRFC A6, "pushback").
        pushback = (("grpc-retry-pushback-ms", str(messages.retry_after_ms(error))),)
        await _abort(context, error, pushback)
    except KwiseError as error:
        await _abort(context, error, ())
    except Exception:  # noqa: BLE001 - the details belong in the log, not in the reply
        _LOG.exception("a request failed")
        await context.abort(
            grpc.StatusCode.INTERNAL, "internal error; the server's log has the details"
        )
    raise AssertionError("abort raises")


async def _abort(
    context: Context, error: KwiseError, trailers: tuple[tuple[str, str], ...]
) -> NoReturn:
    await context.abort(messages.status_code(error), str(error), trailers)
    raise AssertionError("abort raises")
