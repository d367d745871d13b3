"""Rewards from several servers, in threads, event loops and processes."""

import asyncio
import multiprocessing
import pickle
from typing import Any

import pytest

from kwise.rl.result import ModelChanged
from kwise.rl.scoring import Scoring
from tests.length_server import Service, serving

PROMPTS = [f"prompt {number}" for number in range(20)] * 2
RESPONSES = ["a"] * 20 + ["bc"] * 20
VALUES = [1.0] * 20 + [2.0] * 20


def in_thread(scoring: Scoring) -> list[float]:
    return scoring.score(PROMPTS, RESPONSES).values


def in_loop(scoring: Scoring) -> list[float]:
    return asyncio.run(scoring.score_async(PROMPTS, RESPONSES)).values


CALLS = pytest.mark.parametrize("call", [in_thread, in_loop])


@CALLS
def test_a_batch_is_split_among_the_servers_by_prompt(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = [Service(), Service()]
    with serving(service=services[0]) as first, serving(service=services[1]) as second:
        monkeypatch.setenv("KWISE_ADDRESS", f"{first},{second}")
        for scoring in (Scoring(), Scoring([second, first])):
            assert call(scoring) == VALUES
    assert all(service.prompts for service in services)
    assert not set(services[0].prompts) & set(services[1].prompts)


@CALLS
def test_a_model_that_all_servers_change_is_noticed(call: Any) -> None:
    services = [Service("old"), Service("old")]
    with serving(service=services[0]) as first, serving(service=services[1]) as second:
        scoring = Scoring([first, second])
        call(scoring)
        services[0].fingerprint = "new"
        assert call(scoring) == VALUES, "the other server has the old model"
        services[1].fingerprint = "new"
        with pytest.raises(ModelChanged, match=f"{first}, {second}") as raised:
            call(scoring)
    assert (raised.value.old, raised.value.new) == ("old", "new")


def test_the_client_of_the_next_event_loop_knows_who_is_away() -> None:
    """An address that never answers cost each step of a run five seconds."""
    with serving() as first, serving() as second:
        scoring = Scoring([first, second, "127.0.0.1:9"])
        assert in_loop(scoring) == VALUES

        async def usable() -> tuple[bool, tuple[str, ...]]:
            async with scoring._connection.of_running_loop() as client:
                return client.servers.is_known, client.servers.usable

        assert asyncio.run(usable()) == (True, (first, second))


def score_in_child(pickled: bytes) -> list[float]:
    scoring: Scoring = pickle.loads(pickled)
    assert in_loop(scoring) == VALUES
    return in_thread(scoring)


def test_a_spawned_process_has_its_own_clients() -> None:
    services = [Service(), Service()]
    with serving(service=services[0]) as first, serving(service=services[1]) as second:
        scoring = Scoring([first, second])
        assert in_thread(scoring) == VALUES
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(score_in_child, (pickle.dumps(scoring),)) == VALUES
    assert not set(services[0].prompts) & set(services[1].prompts)
