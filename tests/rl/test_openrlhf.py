"""What is special about OpenRLHF: errors that it would swallow, and texts made from token ids."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from kwise.rl.command import FILES
from kwise.rl.scoring import Scoring
from tests.rl.rollouts import (
    ADAPTERS,
    TOLERANCE,
    Messages,
    Rollouts,
    execute_openrlhf,
    library,
    module_by_path,
)
from tests.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore")  # OpenRLHF's own

PROMPT: Messages = [{"role": "user", "content": "Draw a rabbit and a hat: 🐇🎩"}]


@pytest.fixture
def agent() -> Any:
    """The module of the agent file, as OpenRLHF loads it."""
    library("openrlhf.utils.agent")
    return module_by_path("agent_module", ADAPTERS / "files" / FILES["openrlhf"])


@pytest.fixture
def rollouts(tiny_server: Server, smollm2_tokenizer: Any, tiny_checkpoint: Path) -> Rollouts:
    return Rollouts(
        address=tiny_server.address, tokenizer=smollm2_tokenizer, directory=tiny_checkpoint
    )


def test_extra_logs_are_numbers_with_the_same_keys(agent: Any, rollouts: Rollouts) -> None:
    """OpenRLHF makes a tensor of each; a text ends the run."""
    executor = agent.AgentExecutor()
    executor.scoring = Scoring(rollouts.address)
    outputs = [
        asyncio.run(execute_openrlhf(executor, rollouts, PROMPT, text)) for text in ("🐇", "🎩")
    ]
    keys = [output["extra_logs"].keys() for output in outputs]
    assert keys[0] == keys[1]
    assert all(isinstance(number, float) for number in outputs[0]["extra_logs"].values())


def test_images_are_refused(agent: Any, rollouts: Rollouts) -> None:
    executor = agent.AgentExecutor()
    with pytest.raises(ValueError, match="images"):
        asyncio.run(
            executor.execute(prompt="", hf_tokenizer=rollouts.tokenizer, images=["rabbit.png"])
        )


def test_a_token_that_the_response_shares_with_the_prompt_changes_no_reward(
    agent: Any, rollouts: Rollouts
) -> None:
    """The bytes of one character may be several tokens, with the end of the prompt in between."""
    tokenizer = rollouts.tokenizer
    ids = rollouts.prompt_ids(PROMPT) + rollouts.response_ids("🐇")
    split = next(
        index for index in range(len(ids)) if tokenizer.decode(ids[:index]).endswith("\ufffd")
    )
    output = {"observation_tokens": ids, "action_ranges": [(split, len(ids))]}
    prompt, response = agent._texts(tokenizer, output)
    with RewardClient(rollouts.address) as client:
        expected = client.score(PROMPT, ["🐇"]).values
        assert client.score(prompt, [response]).values == pytest.approx(expected, abs=TOLERANCE)


def test_the_shape_of_the_agents_method_is_that_of_openrlhf(agent: Any) -> None:
    import inspect

    base: Callable[..., Any] = agent.SingleTurnAgentExecutor.execute
    assert {"hf_tokenizer", "images"} <= inspect.signature(base).parameters.keys()
