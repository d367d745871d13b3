"""Every error has a status, and errors of responses say as data which response they are about."""

import pickle
from collections.abc import Iterator

import grpc
import pytest

import kwise.client
import kwise.engine.scorer
import kwise.rl.scoring  # noqa: F401
from kwise.client import RewardServiceError
from kwise.errors import (
    InvalidRequest,
    KwiseError,
    ModelFailed,
    Overloaded,
    Status,
    Unavailable,
    UnknownModel,
)


def subclasses(error: type[KwiseError]) -> Iterator[type[KwiseError]]:
    for subclass in error.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


@pytest.mark.parametrize("error", list(subclasses(KwiseError)))
def test_every_error_has_a_status(error: type[KwiseError]) -> None:
    assert isinstance(error.status, Status)


def test_the_statuses_are_those_of_grpc() -> None:
    assert {status.name for status in Status} == {code.name for code in grpc.StatusCode}
    assert all(status.name == status.value for status in Status)


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode])
def test_an_error_that_a_client_meets_has_the_status_of_its_code(code: str) -> None:
    error: KwiseError = RewardServiceError(code, "no matter")
    assert error.status is Status[code]


def test_a_code_that_grpc_does_not_define_is_unknown_and_still_told() -> None:
    error = RewardServiceError("TEAPOT", "short and stout")
    assert (error.status, error.code) == (Status.UNKNOWN, "TEAPOT")


def test_an_error_of_a_response_moves_to_another_index_with_its_message() -> None:
    for error in (InvalidRequest("text", "too long", response=3), ModelFailed(3), ModelFailed()):
        moved = error.at(5)
        assert type(moved) is type(error)
        assert moved.response == 5
        assert str(moved).startswith("responses[5]")
    assert str(ModelFailed(field="documents[3]")).startswith("documents[3]: the model failed")


def test_an_error_of_a_group_stays_one() -> None:
    for error in (InvalidRequest("prompt", "it is empty"), UnknownModel("a", "b")):
        assert error.at(5) is error
        assert error.response is None


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("text", "too long", response=3),
        UnknownModel("a", "b"),
        Overloaded(1, 2, 3, 0.5),
        ModelFailed(3),
        Unavailable.draining(),
        RewardServiceError("UNAVAILABLE", "away", target="host:1", retry_after_s=0.5, response=2),
    ],
)
def test_an_error_survives_the_way_from_a_worker_process(error: KwiseError) -> None:
    received = pickle.loads(pickle.dumps(error))
    assert type(received) is type(error)
    assert (str(received), vars(received)) == (str(error), vars(error))
    assert (received.status, received.response) == (error.status, error.response)
