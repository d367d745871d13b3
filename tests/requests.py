"""Build requests of the unary rpcs from the fields of their group."""

from collections.abc import Iterable
from typing import Any

from kwise.protos.kwise.v1 import reward_pb2 as pb


def score_request(**fields: Any) -> pb.ScoreRequest:
    return pb.ScoreRequest(group=pb.Group(**fields))


def rank_request(**fields: Any) -> pb.RankRequest:
    return pb.RankRequest(group=pb.Group(**fields))


def compare_request(*, pairs: Iterable[pb.Pair] = (), **fields: Any) -> pb.CompareRequest:
    return pb.CompareRequest(group=pb.Group(**fields), pairs=pairs)
