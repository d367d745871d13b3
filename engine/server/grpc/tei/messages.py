"""Conversion between `tei.v1` messages and kwise's own types."""

from collections.abc import Iterator, Sequence
from time import perf_counter_ns

import grpc

from kwise.engine.server.grpc.messages import status_code
from kwise.engine.server.samples.scores import best_first
from kwise.engine.server.samples.scoring import ScoredSamples
from kwise.errors import KwiseError, ModelFailed
from kwise.options import MAX_UINT32
from kwise.protos.tei.v1 import tei_pb2 as pb


def code_of(error: KwiseError) -> grpc.StatusCode:
    """Return the status of an error in TEI's protocol: a failing model is FAILED_PRECONDITION."""
    if isinstance(error, ModelFailed):
        return grpc.StatusCode.FAILED_PRECONDITION
    return status_code(error)


def ranks(
    scored: ScoredSamples,
    texts: Sequence[str],
    request: pb.RerankRequest | pb.RerankStreamRequest,
) -> Iterator[pb.Rank]:
    """Yield the ranks, the best first; equal rewards in the order of the request."""
    for index, score in best_first(scored, not request.raw_scores):
        yield pb.Rank(index=index, text=texts[index] if request.return_text else None, score=score)


def metadata(started_ns: int, num_characters: int, scored: ScoredSamples) -> pb.Metadata:
    """Return the numbers of tokens and characters of a request, and its times."""
    return pb.Metadata(
        compute_chars=min(num_characters, MAX_UINT32),
        compute_tokens=scored.num_tokens,
        total_time_ns=perf_counter_ns() - started_ns,
        tokenization_time_ns=_to_ns(scored.timing.tokenizer_ms),
        queue_time_ns=_to_ns(scored.timing.queue_ms),
        inference_time_ns=_to_ns(scored.timing.model_ms),
    )


def _to_ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
