"""Errors cross the wire as data: a client need not read text for status, response and advice."""

from types import SimpleNamespace

import pytest

from kwise.client import messages as client_messages
from kwise.engine.config import EngineConfig
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.grpc import messages
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
