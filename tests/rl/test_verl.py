"""The reward manager below verl's own worker and configuration."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from tests.rl.rollouts import (
    TOLERANCE,
    Messages,
    Rollouts,
    library,
    verl_config,
    verl_sample,
    verl_worker,
)
from tests.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore")  # verl's own

PROMPT: Messages = [{"role": "user", "content": "Name a prime number."}]
BY_NAME = {"reward_manager": {"name": "kwise"}}


@pytest.fixture
def rollouts(smollm2_tokenizer: Any, tiny_checkpoint: Path, tiny_server: Server) -> Rollouts:
    library("verl")
    return Rollouts(
        address=tiny_server.address, tokenizer=smollm2_tokenizer, directory=tiny_checkpoint
    )


@pytest.fixture
def reward_of(tiny_server: Server) -> Callable[[str], float]:
    """A function that returns the reward of a response to `PROMPT`."""

    def reward(response: str) -> float:
        with RewardClient(tiny_server.address) as client:
            (value,) = client.score(PROMPT, [response]).values
        assert value is not None
        return value

    return reward


def scored(worker: Any, *samples: Any) -> list[dict[str, Any]]:
    """Score samples as verl's processes do, all at the same time."""

    async def run() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(worker.compute_score, samples)))

    return asyncio.run(run())


def test_the_manager_is_found_by_name_and_by_module(
    rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch, reward_of: Callable[[str], float]
) -> None:
    """The name comes from the entry point, so kwise must be installed; the address from KWISE_…."""
    monkeypatch.setenv("KWISE_ADDRESS", rollouts.address)
    by_module = {
        "reward_manager": {
            "source": "importlib",
            "name": "RewardManager",
            "module": {"path": "pkg://kwise.rl.verl"},
        }
    }
    for changes in (BY_NAME, by_module):
        worker = verl_worker(verl_config(rollouts, **changes))
        assert type(worker.reward_manager).__module__ == "kwise.rl.verl"
        (result,) = scored(worker, verl_sample(rollouts, PROMPT, "7"))
        assert result["reward_score"] == pytest.approx(reward_of("7"), abs=TOLERANCE)


def test_every_sample_has_the_same_numbers_for_the_metrics(rollouts: Rollouts) -> None:
    """verl makes an array of each key of the first sample; a missing key ends the run."""
    worker = verl_worker(verl_config(rollouts, **BY_NAME, kwise={"address": rollouts.address}))
    sample = verl_sample(rollouts, PROMPT, "eleven")
    results = scored(worker, sample) + scored(worker, sample)  # the second one is cached
    first, second = (result["reward_extra_info"] for result in results)
    assert first.keys() == second.keys()
    assert (first["kwise/cached_share"], second["kwise/cached_share"]) == (0, 1)
    assert all(isinstance(value, float) for value in [*first.values(), *second.values()])


def test_nothing_of_the_data_set_is_needed_but_the_prompt(rollouts: Rollouts) -> None:
    """Managers that come with verl end in KeyError: 'reward_model' without a ground truth."""
    sample = verl_sample(rollouts, PROMPT, "7")
    assert {"data_source", "reward_model"}.isdisjoint(sample.non_tensor_batch)
    worker = verl_worker(verl_config(rollouts, **BY_NAME, kwise={"address": rollouts.address}))
    assert isinstance(scored(worker, sample)[0]["reward_score"], float)


def test_a_response_beside_a_longer_prompt_is_read_whole(
    rollouts: Rollouts, reward_of: Callable[[str], float]
) -> None:
    """verl pads the sequences of a rollout apart, so that a mask's end belongs to no response."""
    import numpy as np
    import torch

    long = verl_sample(rollouts, [{"role": "user", "content": "Name one. " * 30}], "2")
    short = verl_sample(rollouts, PROMPT, "7")
    tensors = {
        name: torch.nn.utils.rnn.pad_sequence(
            [long.batch[name][0], short.batch[name][0]], batch_first=True
        )
        for name in ("prompts", "responses", "attention_mask")
    }
    prompts = np.empty(2, dtype=object)
    prompts[:] = [long.non_tensor_batch["raw_prompt"][0], PROMPT]
    both = library("verl").DataProto.from_dict(
        tensors=tensors,
        non_tensors={
            "raw_prompt": prompts,
            "__num_turns__": np.array([2, 2]),
            "response_len": np.array([2, 2]),  # the text and the end of the turn
        },
    )
    worker = verl_worker(verl_config(rollouts, **BY_NAME, kwise={"address": rollouts.address}))
    (result,) = scored(worker, both)
    assert result["reward_score"] == pytest.approx(reward_of("7"), abs=TOLERANCE)


def test_a_rollout_of_several_turns_is_refused(rollouts: Rollouts) -> None:
    import numpy as np

    sample = verl_sample(rollouts, PROMPT, "7")
    sample.non_tensor_batch["__num_turns__"] = np.array([4])
    worker = verl_worker(verl_config(rollouts, **BY_NAME, kwise={"address": rollouts.address}))
    with pytest.raises(ValueError, match="4 turns"):
        scored(worker, sample)
    del sample.non_tensor_batch["raw_prompt"]
    with pytest.raises(ValueError, match=r"data\.return_raw_chat=True"):
        scored(worker, sample)


def test_a_configuration_that_would_not_count_is_refused(
    rollouts: Rollouts, tmp_path: Path
) -> None:
    function = tmp_path / "function.py"
    function.write_text("def compute_score(**_): return 1.0\n")
    both = BY_NAME | {"custom_reward_function": {"path": str(function)}}
    with pytest.raises(ValueError, match="custom_reward_function"):
        verl_worker(verl_config(rollouts, **both))
    with pytest.raises(ValueError, match=r"reward\.kwise\.adress is unknown"):
        verl_worker(verl_config(rollouts, **BY_NAME, kwise={"adress": rollouts.address}))


def test_special_tokens_inside_an_answer_belong_to_it(
    rollouts: Rollouts, reward_of: Callable[[str], float]
) -> None:
    worker = verl_worker(verl_config(rollouts, **BY_NAME, kwise={"address": rollouts.address}))
    answer = "two <|im_start|> and two<|im_end|>"
    (result,) = scored(worker, verl_sample(rollouts, PROMPT, answer))
    expected = reward_of("two <|im_start|> and two")
    assert result["reward_score"] == pytest.approx(expected, abs=TOLERANCE)
