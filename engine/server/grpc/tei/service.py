"""The RPCs of `tei.v1`, the protocol of Text Embeddings Inference.

`Rerank` scores the responses `texts` to the prompt `query`, and `PredictPair` one response.
`Predict` scores a whole conversation with the chat template applied. A score is the sigmoid of the
normalised reward, or the reward itself with `raw_scores`.

`truncate` changes nothing. No response is ever cut, and a query has no older turns that could be
dropped, so a text that is too long is refused.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import perf_counter_ns
from typing import Any, NoReturn

import grpc

from kwise.engine.server.call import Call
from kwise.engine.server.grpc.calls import Context, call_of, running_call
from kwise.engine.server.grpc.stream import RequestReader, RequestStream
from kwise.engine.server.grpc.tei.messages import code_of, metadata, ranks
from kwise.engine.server.samples.sample import of_candidates, of_pair, of_templated
from kwise.engine.server.samples.scores import LABEL, score_of, tei_dtype
from kwise.engine.server.samples.scoring import check_size, score_samples
from kwise.engine.server.service import RewardService
from kwise.errors import InvalidRequest, Unavailable
from kwise.options import MAX_UINT32
from kwise.protos.tei.v1 import tei_pb2 as pb
from kwise.protos.tei.v1 import tei_pb2_grpc
from kwise.version import __version__

_NO_TOKENS = "this server scores responses and does not tokenise texts for clients"


class TeiInfo(tei_pb2_grpc.InfoServicer):
    """`tei.v1.Info`."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        async with running_call(self._service, context, code_of):
            model = self._service.model(call_of(self._service, context).model)
            info, config = self._service.model_info(model.name), model.config
            return pb.InfoResponse(
                version=__version__,
                model_id=info.model,
                model_sha=info.fingerprint,
                model_dtype=tei_dtype(info.precision),
                model_type=pb.MODEL_TYPE_RERANKER,
                # The queue is limited by tokens. A request has at least one.
                max_concurrent_requests=min(config.max_queue_tokens, MAX_UINT32),
                max_input_length=info.max_tokens,
                max_batch_tokens=info.max_batch_tokens,
                max_client_batch_size=info.max_responses,
                tokenization_workers=config.tokenizer_threads,
            )


class TeiPredict(tei_pb2_grpc.PredictServicer):
    """`tei.v1.Predict`."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        async with running_call(self._service, context, code_of):
            return await self._predict([request.inputs], request, call_of(self._service, context))

    async def PredictPair(
        self, request: pb.PredictPairRequest, context: Context
    ) -> pb.PredictResponse:
        async with running_call(self._service, context, code_of):
            return await self._predict(request.inputs, request, call_of(self._service, context))

    async def PredictStream(  # type: ignore[override]  # the stub knows only iterators
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Context
    ) -> None:
        call = call_of(self._service, context)

        async def answer(request: pb.PredictRequest) -> pb.PredictResponse:
            with self._service.streamed_request():
                return await self._predict([request.inputs], request, call)

        await self._answer_stream(context, pb.PredictRequest, answer)

    async def PredictPairStream(  # type: ignore[override]  # the stub knows only iterators
        self, request_iterator: AsyncIterator[pb.PredictPairRequest], context: Context
    ) -> None:
        call = call_of(self._service, context)

        async def answer(request: pb.PredictPairRequest) -> pb.PredictResponse:
            with self._service.streamed_request():
                return await self._predict(request.inputs, request, call)

        await self._answer_stream(context, pb.PredictPairRequest, answer)

    async def _answer_stream(
        self,
        context: Context,
        request_type: type[Any],
        answer: Callable[[Any], Awaitable[pb.PredictResponse]],
    ) -> None:
        """Answer in order. As in TEI, the first request that fails ends the stream."""
        async with running_call(self._service, context, code_of):
            await RequestStream(
                context, request_type, answer, self._service.draining, in_order=True
            ).run()

    async def _predict(
        self,
        inputs: Sequence[str],
        request: pb.PredictRequest | pb.PredictPairRequest,
        call: Call,
    ) -> pb.PredictResponse:
        started_ns = perf_counter_ns()
        match inputs:
            case [text]:
                samples = of_templated([text], ["inputs"])
            case [first, second]:
                samples = [of_pair(first, second, "inputs[0]", "inputs[1]")]
            case _:
                raise InvalidRequest("inputs", f"there are {len(inputs)} texts; give one or two")
        if not any(inputs):
            raise InvalidRequest("inputs", "the text is empty")
        scored = await score_samples(call, samples)
        value = score_of(scored.rewards[0], not request.raw_scores)
        return pb.PredictResponse(
            predictions=[pb.Prediction(score=value, label=LABEL)],
            metadata=metadata(started_ns, sum(map(len, inputs)), scored),
        )


class TeiRerank(tei_pb2_grpc.RerankServicer):
    """`tei.v1.Rerank`.

    Args:
        service: the service that scores.
        max_message_bytes: the limit on one message, and on all messages of one stream together,
            because they are answered together.
    """

    def __init__(self, service: RewardService, max_message_bytes: int) -> None:
        self._service = service
        self._max_stream_bytes = max_message_bytes

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        async with running_call(self._service, context, code_of):
            started_ns = perf_counter_ns()
            call = call_of(self._service, context)
            if not request.texts:
                raise InvalidRequest("texts", "there are none; give at least one")
            check_size(call, "texts", len(request.texts))
            samples = of_candidates(request.query, request.texts, ("query", "texts"))
            scored = await score_samples(call, samples)
            num_characters = len(request.query) * len(samples) + sum(map(len, request.texts))
            return pb.RerankResponse(
                ranks=ranks(scored, request.texts, request),
                metadata=metadata(started_ns, num_characters, scored),
            )

    async def RerankStream(
        self, request_iterator: AsyncIterator[pb.RerankStreamRequest], context: Context
    ) -> pb.RerankResponse:
        """Score the texts of all queries, and rank all of them together."""
        async with running_call(self._service, context, code_of):
            started_ns = perf_counter_ns()
            call = call_of(self._service, context)
            requests = await self._read(context, call)
            if not requests:
                raise InvalidRequest("requests", "there are none; send at least one")
            samples = [
                of_pair(r.query, r.text, f"requests[{index}].query", f"requests[{index}].text")
                for index, r in enumerate(requests)
            ]
            scored = await score_samples(call, samples)
            num_characters = sum(len(request.query) + len(request.text) for request in requests)
            return pb.RerankResponse(
                ranks=ranks(scored, [request.text for request in requests], requests[0]),
                metadata=metadata(started_ns, num_characters, scored),
            )

    async def _read(self, context: Context, call: Call) -> list[pb.RerankStreamRequest]:
        """Return all requests of a stream.

        Raises:
            InvalidRequest: they exceed a limit, or one of them is malformed.
            Unavailable: the server drains.
        """
        ends = {self._service.draining: Unavailable.draining}
        reader = RequestReader(context, pb.RerankStreamRequest, ends)
        requests: list[pb.RerankStreamRequest] = []
        num_bytes = 0
        try:
            while (request := await reader.read()) is not None:
                requests.append(request)
                num_bytes += request.ByteSize()
                check_size(call, "requests", len(requests))
                if num_bytes > self._max_stream_bytes:
                    raise InvalidRequest(
                        "requests",
                        f"together they have more than {self._max_stream_bytes} bytes, the limit "
                        f"of one message (--max-message-bytes)",
                    )
        finally:
            await reader.close()
        return requests


class TeiTokenize(tei_pb2_grpc.TokenizeServicer):
    """`tei.v1.Tokenize`, which this server does not have."""

    async def Tokenize(self, request: pb.EncodeRequest, context: Context) -> NoReturn:
        await _no_tokens(context)

    async def TokenizeStream(  # type: ignore[override]  # the stub knows only iterators
        self, request_iterator: AsyncIterator[pb.EncodeRequest], context: Context
    ) -> None:
        await _no_tokens(context)

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> NoReturn:
        await _no_tokens(context)

    async def DecodeStream(  # type: ignore[override]  # the stub knows only iterators
        self, request_iterator: AsyncIterator[pb.DecodeRequest], context: Context
    ) -> None:
        await _no_tokens(context)


async def _no_tokens(context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_TOKENS)
