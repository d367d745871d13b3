"""Errors cross the wire as data: a client need not read text for status, response and advice."""

import json
from types import SimpleNamespace

import msgspec
import pytest
from google.protobuf import json_format

from kwise.client import messages as client_messages
from kwise.engine.artifact.members import ensemble_reward
from kwise.engine.config import EngineConfig
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc import messages
from kwise.engine.server.http.replies import from_scored_group
from kwise.errors import (
    ConfigError,
    InvalidRequest,
    KwiseError,
    ModelFailed,
    Overloaded,
    ServiceFailed,
)
from kwise.options import MAX_UINT32
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import Reward, ScoredGroup

ERRORS: list[KwiseError] = [
    InvalidRequest("prompt", "it is empty"),
    InvalidRequest("text", "it is too long", response=0),
    ModelFailed(7),
    Overloaded(9, 9, 9, 0.25),
    ServiceFailed(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_group_or_response_keeps_what_it_is_about(error: KwiseError) -> None:
    received = client_messages.from_error(messages.from_error(error))
    assert (received.status, received.response) == (error.status, error.response)
    assert received.retry_after_s == getattr(error, "retry_after_s", None)
    assert received.message == str(error)


async def test_rewards_keep_their_members_over_grpc_and_http() -> None:
    member_values = [(0.5, -1.0, 3.25), (0.25,)]
    rewards = [
        ensemble_reward(values=values, raw=values, tokens=7, cached=True)
        for values in member_values
    ]
    plain = Reward(value=1.0, raw=2.0, tokens=3)
    scored = ScoredGroup(
        rewards=(*rewards, plain, ModelFailed()),
        model="m",
        fingerprint="f",
        precision="fp32",
        runtime="r",
    )
    message = await messages.from_scored_group(scored)
    received = client_messages.from_scored_group(
        pb.ScoredGroup.FromString(message.SerializeToString())
    )
    assert received.rewards[:-1] == (*rewards, plain)
    body = msgspec.json.encode(await from_scored_group(scored))
    assert json_format.Parse(body, pb.ScoredGroup()).rewards[:2] == message.rewards[:2]
    for reply in json.loads(body)["rewards"][2:]:
        assert not {"std", "min", "members"} & reply.keys()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_error_of_a_call_keeps_what_it_is_about(error: KwiseError) -> None:
    failed = SimpleNamespace(
        code=lambda: messages.status_code(error),
        details=lambda: str(error),
        trailing_metadata=lambda: messages.trailers(error),
    )
    received = client_messages.from_rpc_error(failed, "host:7")
    assert (received.status, received.response) == (error.status, error.response)
    assert received.retry_after_s == getattr(error, "retry_after_s", None)
    assert received.target == "host:7"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (EngineConfig, "max_batch_tokens"),
        (ServerConfig, "max_responses"),
        (ServerConfig, "max_pairs"),
    ],
)
def test_a_limit_that_the_reply_of_get_model_cannot_hold_is_refused(
    config: type, name: str
) -> None:
    config(**{name: MAX_UINT32})
    pb.GetModelResponse(**{name: MAX_UINT32})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be at most"):
        config(**{name: MAX_UINT32 + 1})
