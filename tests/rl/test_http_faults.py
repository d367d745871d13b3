"""OpenRLHF's and LLaMA-Factory's own HTTP clients, while a server is away, full, or refuses.

test_http_clients.py has what they get from a server that answers.
"""

import asyncio
import re
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from tests.held_model import HeldModel, running_held_server
from tests.rl.rollouts import (
    END_OF_TURN,
    TOLERANCE,
    Messages,
    Rollouts,
    execute_openrlhf,
    file_of,
    free_port,
    library,
    module_by_path,
)
from tests.servers import PATIENCE_S, Server, running_server

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own

PROMPT: Messages = [{"role": "user", "content": "Name a prime number."}]
RESPONSES = ["7", "Eight.", "", "Dunno."]
TOO_LONG = "blue " * 4000


def url_of(server: Server) -> str:
    """Return the URL of the HTTP port of a server."""
    match = re.search(r"listening on (http://[\w.]+:\d+)", server.log.text)
    assert match is not None, server.log.text
    return match[1]


def expected(server: Server, responses: list[str]) -> Any:
    """Return the rewards that kwise's own client gets."""
    with RewardClient(server.address) as client:
        return pytest.approx(list(client.score(PROMPT, responses).values), abs=TOLERANCE)


@pytest.fixture(scope="module")
def http_server(tiny_artifact: Path) -> Iterator[Server]:
    with running_server(tiny_artifact, "--http-port", "0") as server:
        yield server


@pytest.fixture
def rollouts(smollm2_tokenizer: Any, tiny_checkpoint: Path) -> Rollouts:
    return Rollouts(address="", tokenizer=smollm2_tokenizer, directory=tiny_checkpoint)


# OpenRLHF


class OpenRlhf:
    """OpenRLHF's executor for `--reward.remote_url`.

    Between two tries it waits for a second. Here it waits for `pause` instead, so that no outcome
    depends on how long a server takes to start.
    """

    def __init__(self, rollouts: Rollouts) -> None:
        self.agent = library("openrlhf.utils.agent")
        self.rollouts = rollouts
        self.pauses = 0

    async def pause(self) -> None:
        """Wait between two tries."""

    def execute(
        self, url: str, responses: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> list[dict[str, Any]]:
        """Return the outputs of rollouts, which are all scored at the same time."""

        async def sleep(_: float) -> None:
            self.pauses += 1
            await self.pause()

        timed = types.ModuleType("asyncio")
        timed.__dict__.update(asyncio.__dict__, sleep=sleep)
        monkeypatch.setattr(self.agent, "asyncio", timed)
        executor = self.agent.SingleTurnAgentExecutor([f"{url}/get_reward"])

        async def run() -> list[dict[str, Any]]:
            rollouts = [
                execute_openrlhf(executor, self.rollouts, PROMPT, text) for text in responses
            ]
            return list(await asyncio.gather(*rollouts))

        return asyncio.run(run())


@pytest.fixture
def openrlhf(rollouts: Rollouts) -> OpenRlhf:
    return OpenRlhf(rollouts)


def rewards_of(outputs: list[dict[str, Any]]) -> list[float]:
    """Return the rewards, which OpenRLHF gets as lists of one."""
    assert all(output["reward"] == output["scores"] for output in outputs)
    return [reward for output in outputs for reward in output["reward"]]


def test_openrlhf_gets_no_reward_for_what_cannot_be_scored(
    openrlhf: OpenRlhf, http_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None ends OpenRLHF's run. The others of the batch have theirs."""
    outputs = openrlhf.execute(url_of(http_server), ["7", TOO_LONG], monkeypatch)
    assert rewards_of(outputs[:1]) == expected(http_server, ["7"])
    assert outputs[1]["reward"] is None
    assert openrlhf.pauses == 5


def test_openrlhf_outlasts_a_restart(
    openrlhf: OpenRlhf, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is away at the first try, and comes back before the second."""
    options = ("--http-port", str(free_port()))
    with running_server(tiny_artifact, *options) as server:
        url = url_of(server)
        before = rewards_of(openrlhf.execute(url, ["7"], monkeypatch))
    with ExitStack() as stack:

        async def pause() -> None:
            await asyncio.to_thread(stack.enter_context, running_server(tiny_artifact, *options))

        monkeypatch.setattr(openrlhf, "pause", pause)
        after = rewards_of(openrlhf.execute(url, ["7"], monkeypatch))
        assert after == pytest.approx(before, abs=TOLERANCE)
    assert openrlhf.pauses == 1


def test_openrlhf_waits_for_a_server_that_is_overloaded(
    openrlhf: OpenRlhf, tiny_artifact: Path, held: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has room for one rollout. The others are held and not refused."""
    options = ("--http-port", "0", "--max-queue-tokens", "64")
    with (
        running_held_server(tiny_artifact, held, *options) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        held.hold()
        waiting = pool.submit(openrlhf.execute, url_of(server), RESPONSES, monkeypatch)
        held.wait_for_batches(1)
        held.release()
        outputs = waiting.result(PATIENCE_S)
        assert rewards_of(outputs) == expected(server, RESPONSES)
    assert openrlhf.pauses == 0


# LLaMA-Factory


@pytest.fixture(scope="module")
def get_rewards_from_server() -> Any:
    """LLaMA-Factory's function, from its file: the package needs an old version of TRL."""
    path = file_of("llamafactory", "train/ppo/ppo_utils.py")
    names = ["llamafactory", "llamafactory.extras", "llamafactory.train", "llamafactory.train.ppo"]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    packages = "llamafactory.extras.packages"
    try:
        sys.modules[packages] = module_by_path(packages, path.parents[2] / "extras/packages.py")
        return module_by_path("llamafactory.train.ppo.ppo_utils", path).get_rewards_from_server
    finally:
        for name in [*names, packages]:
            sys.modules.pop(name, None)


def whole_texts(rollouts: Rollouts, responses: list[str]) -> list[str]:
    """Return conversations as LLaMA-Factory decodes them from token ids."""
    token_ids = [rollouts.prompt_ids(PROMPT) + rollouts.response_ids(text) for text in responses]
    texts: list[str] = rollouts.tokenizer.batch_decode(token_ids, skip_special_tokens=False)
    assert texts[0].endswith(END_OF_TURN)
    return texts


def test_llama_factory_gets_no_reward_for_what_cannot_be_scored(
    get_rewards_from_server: Any, http_server: Server, rollouts: Rollouts
) -> None:
    """It looks for the scores in the body of the error, and the run ends."""
    url = f"{url_of(http_server)}/v1/score/evaluation"
    with pytest.raises(KeyError, match="scores"):
        get_rewards_from_server(url, whole_texts(rollouts, ["7", TOO_LONG]))
