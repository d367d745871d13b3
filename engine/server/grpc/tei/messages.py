"""Conversion between `tei.v1` messages and kwise's own types."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns

import grpc

from kwise.engine.server.grpc.messages import status_code
from kwise.errors import InvalidRequest, KwiseError, ModelFailed
from kwise.options import MAX_UINT32
from kwise.protos.tei.v1 import tei_pb2 as pb
from kwise.types import Conversation, Message, Reward, ScoredGroup


def code_of(error: KwiseError) -> grpc.StatusCode:
    """Return the status that TEI gives an error: a model that fails is FAILED_PRECONDITION."""
    if isinstance(error, ModelFailed):
        return grpc.StatusCode.FAILED_PRECONDITION
    return status_code(error)


@contextmanager
def fields_named(prompt: str, response: str) -> Iterator[None]:
    """Raise the engine's errors under the names of the caller's fields.

    Args:
        prompt: the field of the prompt.
        response: the field of a response, with {} for its index ("texts[{}]").
    """
    try:
        yield
    except (InvalidRequest, ModelFailed) as error:
        field = response.format(error.response)
        named: KwiseError
        if isinstance(error, ModelFailed):
            named = error if error.response is None else ModelFailed(field=field)
        elif error.response is not None:
            named = InvalidRequest(field, error.problem)
        elif error.field.startswith("prompt"):
            named = InvalidRequest(prompt, error.problem)
        elif error.field == "responses":
            named = InvalidRequest(response.partition("[")[0], error.problem)
        else:
            named = error
        named.response = error.response
        raise named from None


def user(text: str) -> Conversation:
    """Return the conversation that begins with a text of the user."""
    return (Message(role="user", content=text),)


def rewards(scored: ScoredGroup, indices: Sequence[int] = ()) -> list[Reward]:
    """Return the rewards of a group.

    Args:
        scored: the outcome of the group.
        indices: the index of each response in its stream, for errors; empty if it is the same.

    Raises:
        KwiseError: the first error of a response. As in TEI, it fails the whole request.
    """
    found: list[Reward] = []
    for index, reward in enumerate(scored.rewards):
        if isinstance(reward, KwiseError):
            raise reward.at(indices[index]) if indices else reward
        found.append(reward)
    return found


def score(reward: Reward, *, raw: bool) -> float:
    """Return the reward, or its sigmoid, computed so that a large reward does not overflow."""
    if raw:
        return reward.value
    half = math.tanh(reward.value / 2)
    return (1 + half) / 2


def ranks(
    rewards: Sequence[Reward],
    texts: Sequence[str],
    request: pb.RerankRequest | pb.RerankStreamRequest,
) -> Iterator[pb.Rank]:
    """Yield the ranks, the best first; equal rewards in the order of the request."""
    for index in sorted(range(len(rewards)), key=lambda index: -rewards[index].value):
        yield pb.Rank(
            index=index,
            text=texts[index] if request.return_text else None,
            score=score(rewards[index], raw=request.raw_scores),
        )


def metadata(started_ns: int, num_characters: int, scored: Sequence[ScoredGroup]) -> pb.Metadata:
    """Return the work of a request. Of several groups, the slowest counts."""
    rewards = [reward for group in scored for reward in group.rewards]
    timings = [group.timing for group in scored]
    return pb.Metadata(
        compute_chars=min(num_characters, MAX_UINT32),
        compute_tokens=sum(reward.tokens for reward in rewards if isinstance(reward, Reward)),
        total_time_ns=perf_counter_ns() - started_ns,
        tokenization_time_ns=_to_ns(max(timing.tokenizer_ms for timing in timings)),
        queue_time_ns=_to_ns(max(timing.queue_ms for timing in timings)),
        inference_time_ns=_to_ns(max(timing.model_ms for timing in timings)),
    )


def _to_ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
