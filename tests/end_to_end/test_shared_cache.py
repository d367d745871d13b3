"""Server processes that share a Redis: each reward is computed once, and Redis may fail."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from kwise.client import RewardClient
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import Counters, Reward, ScoredGroup
from tests.held_model import HeldModel, running_held_server
from tests.redis_server import RedisServer, needs_redis, running_redis
from tests.requests import score_request
from tests.servers import PATIENCE_S, Server, raw_rewards, running_server, wait_until

pytestmark = needs_redis

PROMPT, RESPONSES = "Why is the sky blue?", ["Air scatters blue light more than red.", "Dunno."]
PATIENT = ("--shared-cache-ms", "60000")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


def client_of(server: Server) -> RewardClient:
    return RewardClient(server.address, timeout_s=PATIENCE_S)


def counters(client: RewardClient) -> Counters:
    return client.get_model().counters


def wait_until_in_use(server: Server) -> None:
    wait_until(lambda: server.log.text.count(": in use") >= 2)  # for look-ups and for stores


def test_two_servers_compute_each_reward_once_and_one_that_dies_costs_a_bound(
    tiny_artifact: Path, redis: RedisServer, held: HeldModel
) -> None:
    options = ("--shared-cache", redis.url, *PATIENT)
    with (
        running_held_server(
            tiny_artifact, held, *options, "--shared-cache-claim-ms", "600000"
        ) as first,
        running_server(tiny_artifact, *options, "--shared-cache-claim-ms", "500") as other,
        client_of(first) as client,
        client_of(other) as other_client,
        first.stub() as stub,
        ThreadPoolExecutor(2) as threads,
    ):
        for server in (first, other):
            wait_until_in_use(server)
        held.hold()
        computing = threads.submit(client.score, PROMPT, RESPONSES)
        held.wait_for_batches(1)
        waiting = threads.submit(other_client.score, PROMPT, RESPONSES)
        wait_until(lambda: counters(other_client).shared_misses == 2)
        held.let_through(1)
        assert raw_rewards(waiting.result()) == raw_rewards(computing.result())
        found = counters(other_client)
        # A server that waits gives up after its own bound, so on a slow machine it computes too.
        assert found.shared_joined + found.sequences == 2
        wait_until(lambda: counters(client).shared_stored == 2)

        later = other_client.score(PROMPT, RESPONSES[::-1])
        assert all(isinstance(reward, Reward) and reward.cached for reward in later.rewards)

        # SIGKILL while it holds a claim.
        claimed = stub.Score.future(
            score_request(prompt=pb.Prompt(text=PROMPT), responses=[pb.Response(text="It is not.")])
        )
        held.wait_for_batches(2)
        with redis.client() as looker:  # the claim would hold for ten minutes
            claims = [key for key in looker.keys("kwise:*") if looker.get(key)[:1] == b"C"]
            assert [looker.pttl(key) > 0 for key in claims] == [True]
        first.process.kill()
        before = counters(other_client)
        assert len(raw_rewards(other_client.score(PROMPT, ["It is not."]))) == 1
        after = counters(other_client)
        assert after.sequences == before.sequences + 1
        assert after.shared_joined == before.shared_joined
        assert claimed.exception().code() is grpc.StatusCode.UNAVAILABLE


def test_a_redis_that_refuses_the_password_or_restarts_under_load_fails_no_request(
    tiny_artifact: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.stop()
    redis.start("--requirepass", "richtig")
    monkeypatch.setenv("KWISE_REDIS_PASSWORD", "geheim")
    with (
        running_server(tiny_artifact, "--shared-cache", redis.url, *PATIENT) as server,
        client_of(server) as client,
    ):
        wait_until(lambda: server.log.text.count("not usable") == 2)
        expected = raw_rewards(client.score(PROMPT, RESPONSES))
        found = counters(client)
        assert (found.shared_unanswered, found.shared_dropped, found.sequences) == (2, 2, 2)
        with redis.client(password="richtig") as looker:
            looker.config_set("requirepass", "geheim")
        wait_until_in_use(server)
        stopping = threading.Event()
        answered: list[ScoredGroup] = []

        def load() -> None:
            while not stopping.is_set():
                answered.append(client.score(PROMPT, [f"Answer {len(answered)}.", *RESPONSES]))

        with ThreadPoolExecutor(1) as threads:
            loading = threads.submit(load)
            try:
                for _ in range(2):
                    _wait_for(client, lambda now, then: now.shared_stored > then.shared_stored + 3)
                    redis.stop()
                    _wait_for(
                        client, lambda now, then: now.shared_unanswered > then.shared_unanswered + 3
                    )
                    redis.start("--requirepass", "geheim")
                _wait_for(client, lambda now, then: now.shared_stored > then.shared_stored + 3)
            finally:
                stopping.set()
            loading.result()
        for scored in answered:
            assert raw_rewards(scored)[1:] == expected
        found = counters(client)
        num_rewards = len(answered) + len(RESPONSES)
        looked_up = found.shared_hits + found.shared_misses + found.shared_unanswered
        assert (looked_up, found.sequences) == (num_rewards, num_rewards)
    assert "geheim" not in server.log.text and "Traceback" not in server.log.text


def _wait_for(client: RewardClient, change: Callable[[Counters, Counters], bool]) -> None:
    """Wait until `change(now, then)` is true of the counters now and those at the call."""
    then = counters(client)
    wait_until(lambda: change(counters(client), then))
