"""A server on a real socket whose answers a test chooses, for tests of the clients."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import grpc

from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc

DRAINING = "the server is shutting down; send the request again"


class Service(reward_pb2_grpc.RewardServiceServicer):
    """A server that returns lengths as rewards, and an error for the response "bad".

    With `draining` it refuses everything, as a server that shuts down does, and with
    `retry_after_ms` as one whose queue is full.

    Attributes:
        fingerprint: of its model.
        prompts: the prompts that it was sent, in order; each refusal counts.
    """

    def __init__(self, fingerprint: str = "f") -> None:
        self.draining = False
        self.retry_after_ms: int | None = None
        self.fingerprint = fingerprint
        self.prompts: list[str] = []

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        self.prompts.append(request.group.prompt.text)
        if self.draining:
            context.abort(grpc.StatusCode.UNAVAILABLE, DRAINING)
        if self.retry_after_ms is not None:
            advice = (("grpc-retry-pushback-ms", str(self.retry_after_ms)),)
            context.set_trailing_metadata(advice)
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        return pb.ScoreResponse(scored=self.scored(request.group))

    def Rank(self, request: pb.RankRequest, context: Any) -> pb.RankResponse:
        return pb.RankResponse(scored=self.scored(request.group))

    def Compare(self, request: pb.CompareRequest, context: Any) -> pb.CompareResponse:
        scored = self.scored(request.group)
        comparisons = [
            pb.Comparison(pair=pb.Pair(first=a, second=b), error=scored.rewards[b].error)
            if scored.rewards[b].HasField("error")
            else pb.Comparison(pair=pb.Pair(first=a, second=b), margin=1.0, win_probability=0.7)
            for a, b in combinations(range(len(scored.rewards)), 2)
        ]
        return pb.CompareResponse(scored=scored, comparisons=comparisons)

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        if request.model not in ("", "m"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"model: {request.model!r} is not served here")
        return pb.GetModelResponse(
            model="m", fingerprint=self.fingerprint, max_responses=9, max_pairs=len(self.prompts)
        )

    def ScoreStream(self, request_iterator: Any, context: Any) -> Iterator[pb.ScoreStreamResponse]:
        for item in request_iterator:
            self.prompts.append(item.group.prompt.text)
            if self.draining:
                error = pb.Error(code="UNAVAILABLE", message=DRAINING)
                yield pb.ScoreStreamResponse(id=item.id, error=error)
            else:
                yield pb.ScoreStreamResponse(id=item.id, scored=self.scored(item.group))

    def scored(self, group: pb.Group) -> pb.ScoredGroup:
        rewards = map(reward, group.responses)
        return pb.ScoredGroup(rewards=rewards, model="m", fingerprint=self.fingerprint)


def reward(response: pb.Response) -> pb.Reward:
    if response.text == "infinite":
        return pb.Reward(value=math.inf, raw=math.inf, tokens=1)
    if response.text == "bad":
        return pb.Reward(
            error=pb.Error(code="INVALID_ARGUMENT", message="the conversation is too long")
        )
    return pb.Reward(value=len(response.text), raw=len(response.text), tokens=1)


@contextmanager
def serving(port: int = 0, service: Service | None = None, address: str = "") -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    reward_pb2_grpc.add_RewardServiceServicer_to_server(service or Service(), server)
    port = server.add_insecure_port(address or f"127.0.0.1:{port}")
    server.start()
    try:
        yield address or f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
