"""The state of a `score_many` call: order, refusals, servers that go away and come back."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.client import RewardServiceError, messages
from kwise.client.flight import Flight, is_interrupted
from kwise.client.several.servers import Servers
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import ScoredGroup

AWAY = RewardServiceError("UNAVAILABLE", "gone")
MODEL = "f"


def flight_of(
    num_groups: int, servers: Servers, now: Callable[[], float], window_groups: int = 4
) -> Flight:
    requests = (messages.to_group("", str(number), ["a"], "bulk") for number in range(num_groups))
    return Flight(requests, 10.0, servers, window_groups, now=now)


class OneServer:
    """A flight to one server, with a clock that the test sets."""

    def __init__(self, num_groups: int = 1) -> None:
        self.clock = 0.0
        self.flight = flight_of(num_groups, Servers(["host:7"]), lambda: self.clock)
        (self.sent,) = self.flight.send()["host:7"]

    def refuse(self, **error: Any) -> bool:
        reply = pb.ScoreStreamResponse(id=self.sent.id, error=pb.Error(message="x", **error))
        return self.flight.accept("host:7", reply)


@given(
    num_groups=st.integers(0, 30),
    num_servers=st.integers(1, 3),
    choices=st.randoms(use_true_random=False),
)
def test_every_group_is_answered_once_and_in_order_whatever_the_servers_do(
    num_groups: int, num_servers: int, choices: Any
) -> None:
    """Replies come in any order, are refused, or are lost with their stream or server."""
    clock = 0.0
    servers = Servers([f"host:{port + 1}" for port in range(num_servers)], lambda: clock)
    flight = flight_of(num_groups, servers, lambda: clock)
    answered: list[str] = []
    owed: dict[str, list[pb.ScoreStreamRequest]] = {}  # on the streams, by address
    while True:
        for address in servers.to_ask():
            servers.asked(address, AWAY if choices.random() < 0.3 else None, MODEL)
        if servers.usable:
            servers.settle()
        for address, requests in flight.send().items():
            assert servers.alone or address in servers.usable
            owed.setdefault(address, []).extend(requests)
        assert sum(map(len, owed.values())) <= 4 * num_servers
        if (result := flight.pop()) is not None:
            assert isinstance(result, ScoredGroup)
            answered.append(result.model)
            continue
        if flight.done:
            break
        if not any(owed.values()):
            assert flight.wait_s is not None
            clock += min(flight.wait_s, 1.0) + 1e-6
            flight.resume()
            continue
        address = choices.choice([address for address in owed if owed[address]])
        if choices.random() < 0.1:
            del owed[address]
            flight.broken(address, choices.choice([AWAY, None]))
            continue
        request = owed[address].pop(choices.randrange(len(owed[address])))
        if choices.random() < 0.3:
            code = choices.choice(["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
            error = pb.Error(code=code, message="full", retry_after_ms=50)
            reply = pb.ScoreStreamResponse(id=request.id, error=error)
        else:
            scored = pb.ScoredGroup(model=request.group.prompt.text, fingerprint=MODEL)
            reply = pb.ScoreStreamResponse(id=request.id, scored=scored)
        if flight.accept(address, reply):
            assert not owed.pop(address)
    assert answered == [str(number) for number in range(num_groups)]


def test_only_a_broken_stream_is_followed_by_another() -> None:
    """A stream that broke during a write ended `score_many` with INTERNAL.

    grpc.aio reports that in place of the server's UNAVAILABLE.
    """
    assert is_interrupted(RewardServiceError("UNAVAILABLE", "gone"))
    assert is_interrupted(RewardServiceError("INTERNAL", "Internal error from Core"))
    assert not is_interrupted(RewardServiceError("INTERNAL", "the model failed on this group"))
    assert not is_interrupted(RewardServiceError("INVALID_ARGUMENT", "prompt"))
    with pytest.raises(RewardServiceError, match="INVALID_ARGUMENT"):
        OneServer().flight.broken("host:7", RewardServiceError("INVALID_ARGUMENT", "prompt"))


def test_an_error_of_one_group_is_its_result() -> None:
    one = OneServer()
    assert not one.refuse(code="INTERNAL")
    assert isinstance(one.flight.pop(), RewardServiceError)
    assert not one.flight.send()
    assert one.flight.done


def test_the_servers_advice_is_obeyed() -> None:
    """Streams came back after a fifth of a second, whatever the server said."""
    one = OneServer()
    assert one.refuse(code="RESOURCE_EXHAUSTED", retry_after_ms=3000)
    assert one.flight.wait_s is not None
    assert 3.0 <= one.flight.wait_s <= 3.75
    assert not one.flight.send()
    one.clock = 3.76
    assert one.flight.send() == {"host:7": [one.sent]}


def test_a_server_that_refuses_gets_no_new_groups_until_its_stream_has_answered_all() -> None:
    flight = flight_of(9, Servers(["host:7"]), lambda: 0.0)
    sent = flight.send()["host:7"]
    full = pb.Error(code="RESOURCE_EXHAUSTED", message="full", retry_after_ms=50)
    assert [
        flight.accept("host:7", pb.ScoreStreamResponse(id=request.id, error=full))
        for request in sent
    ] == [False, False, False, True]
    assert not flight.room


def test_refusals_are_no_progress_and_the_pauses_grow_until_time_is_out() -> None:
    one = OneServer()
    pauses = []
    for _ in range(4):
        assert one.refuse(code="UNAVAILABLE")
        assert not one.flight.send()
        assert one.flight.wait_s is not None
        pauses.append(one.flight.wait_s)
        one.clock += one.flight.wait_s
        assert one.flight.send() == {"host:7": [one.sent]}
    assert pauses[0] <= 0.2 < pauses[3]
    one.flight.check_time()
    one.refuse(code="UNAVAILABLE")
    one.clock = 10.0
    with pytest.raises(RewardServiceError) as raised:
        one.flight.check_time()
    assert str(raised.value) == (
        "DEADLINE_EXCEEDED at host:7: no group was answered for 10 s; 1 are unanswered; "
        "the last refusal was UNAVAILABLE: x"
    )
