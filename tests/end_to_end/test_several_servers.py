"""Three servers behind one client: one is killed under load and comes back on its port."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kwise.client import ModelInfo, RewardClient
from kwise.client.messages import to_prompt
from tests.end_to_end.test_faults import free_port
from tests.held_model import HeldModel, running_held_server
from tests.real_data import read_examples
from tests.servers import PATIENCE_S, Server, raw_rewards, running_server, wait_until

EXACT = 1e-4


def test_a_server_killed_under_load_loses_nothing_and_gets_its_prompts_back(
    tiny_artifact: Path, tiny_server: Server, held: HeldModel
) -> None:
    """Its model is held, so that it dies with groups of single calls and of a stream."""
    groups: list[Any] = [(messages, responses[:3]) for messages, responses in read_examples()[:60]]
    with RewardClient(tiny_server.address, timeout_s=PATIENCE_S) as client:
        expected = [raw_rewards(client.score(*group)) for group in groups]
    victim = f"127.0.0.1:{(port := free_port())}"
    with ExitStack() as stack, ThreadPoolExecutor(9) as workers:
        others = [stack.enter_context(running_server(tiny_artifact)).address for _ in range(2)]
        options = ("--port", str(port), "--cache-bytes", "0")
        held.hold()
        server = stack.enter_context(running_held_server(tiny_artifact, held, *options))
        client = stack.enter_context(RewardClient([*others, victim], timeout_s=PATIENCE_S))
        client.wait_until_ready(PATIENCE_S)
        wait_until(lambda: len(client.servers.usable) == 3)
        own = [
            number
            for number, (prompt, _) in enumerate(groups)
            if client.servers.pick(client.servers.key(to_prompt("prompt", prompt))) == victim
        ]
        calls = [workers.submit(client.score, *groups[number]) for number in (own * 8)[:8]]
        stream = workers.submit(lambda: list(client.score_many(groups * 2)))
        held.wait_for_batches(1)
        assert not any(call.done() for call in calls)
        server.process.kill()
        server.process.wait()
        held.release()
        for number, call in zip((own * 8)[:8], calls, strict=True):
            assert raw_rewards(call.result(PATIENCE_S)) == pytest.approx(
                expected[number], abs=EXACT
            )
        results = list(map(raw_rewards, stream.result(PATIENCE_S)))
        assert len(results) == 2 * len(groups)
        for result, rewards in zip(results, expected * 2, strict=True):
            assert result == pytest.approx(rewards, abs=EXACT)

        assert client.servers.usable == tuple(others)
        stack.enter_context(running_server(tiny_artifact, "--port", str(port)))
        not_own = next(number for number in range(len(groups)) if number not in own)

        def is_back() -> bool:
            client.score(*groups[not_own])  # each call asks the servers that are due
            return victim in client.servers.usable

        wait_until(is_back)
        before = {address: sequences(client, address) for address in [*others, victim]}
        assert before[victim] == 0
        for group, rewards in zip(groups, expected, strict=True):
            assert raw_rewards(client.score(*group)) == pytest.approx(rewards, abs=EXACT)
        assert sequences(client, victim) == sum(len(groups[number][1]) for number in own)
        assert [sequences(client, address) for address in others] == [
            before[address] for address in others
        ], "the other servers have the rewards of their own prompts cached"


def sequences(client: RewardClient, address: str) -> int:
    """Return the number of conversations that a server's model has computed."""
    model = client.get_models()[address]
    assert isinstance(model, ModelInfo)
    return model.counters.sequences
