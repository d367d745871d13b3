"""What is special about AReaL: its pool of processes, and its reward of 0 after 15 s."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from kwise.rl.areal import TIMEOUT_S, reward
from tests.rl.rollouts import (
    TOLERANCE,
    Messages,
    Rollouts,
    areal,
    areal_wrapper,
    file_of,
    module_by_path,
)
from tests.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore")  # AReaL's own

PROMPT: Messages = [{"role": "user", "content": "Name a prime number."}]


def test_the_dotted_name_is_a_function_that_gives_up_before_areal_does() -> None:
    wrapper = areal_wrapper()
    dynamic_import = module_by_path("dynamic_import", file_of("areal", "utils/dynamic_import.py"))
    assert dynamic_import.import_from_string("kwise.rl.areal.reward") is reward
    given_s = inspect.signature(wrapper).parameters["timeout_seconds"].default
    assert given_s - 2 > TIMEOUT_S


def test_the_pool_may_be_forked_from_a_process_that_has_called_a_server(
    tiny_server: Server, smollm2_tokenizer: Any, tiny_checkpoint: Path
) -> None:
    """A channel of gRPC that is open during a fork blocks calls in the new process for ever."""
    rollouts = Rollouts(
        address=tiny_server.address, tokenizer=smollm2_tokenizer, directory=tiny_checkpoint
    )
    with RewardClient(tiny_server.address) as client:
        (expected,) = client.score(PROMPT, ["7"]).values
        score = areal(rollouts)
        try:
            assert score(PROMPT, "7") == pytest.approx(expected, abs=TOLERANCE)
            assert client.score(PROMPT, ["7"]).values == (expected,)
        finally:
            score.close()  # type: ignore[attr-defined]
