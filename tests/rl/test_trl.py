"""Whole runs of TRL's trainers on the CPU against a real server.

TRL takes seconds to import and admits a new version of transformers, so it is not in the `dev`
extra: `make test-rl` installs it.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from kwise.rl.trl import AsyncRewardFunction, RewardFunction
from kwise.types import TemplatedText
from tests.servers import Server

trl = pytest.importorskip("trl", reason="TRL is not installed; `make test-rl` installs it")
pytestmark = pytest.mark.filterwarnings("default")

USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = ["Why is the sky blue?", "Name a prime number.", "Name a fruit."]
EXACT = 1e-4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A tiny language model with random weights and a real tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("policy") / "policy"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(smollm2_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    smollm2_tokenizer.save_pretrained(path)
    return path


class Recorded:
    """A reward function that keeps what TRL gave to it and got from it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.calls: list[tuple[list[Any], list[Any], list[float | None]]] = []

    def keep(self, prompts: list[Any], completions: list[Any], rewards: Any) -> Any:
        self.calls.append((list(prompts), list(completions), rewards))
        return rewards


class RecordedSync(Recorded):
    def __call__(self, **columns: Any) -> Any:
        return self.keep(columns["prompts"], columns["completions"], self.function(**columns))


class RecordedAsync(Recorded):
    async def __call__(self, **columns: Any) -> Any:
        rewards = await self.function(**columns)
        return self.keep(columns["prompts"], columns["completions"], rewards)


def train(
    trainer: str, policy: Path, tmp_path: Path, function: Any, prompts: list[Any], **options: Any
) -> list[dict[str, Any]]:
    """Run two steps and return what the trainer logged."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    config = getattr(trl, f"{trainer}Config")(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    rows = Dataset.from_dict({"prompt": prompts, "answer": ["…"] * len(prompts)})
    made = getattr(trl, f"{trainer}Trainer")(
        model=str(policy), reward_funcs=function, args=config, train_dataset=rows
    )
    made.train()
    return [entry for entry in made.state.log_history if "reward" in entry]


@pytest.mark.parametrize("trainer", ["GRPO", "RLOO"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("is_plain", [False, True], ids=["conversational", "plain"])
def test_a_run_trains_on_the_rewards_of_a_direct_client(
    trainer: str,
    is_async: bool,
    is_plain: bool,
    policy: Path,
    tmp_path: Path,
    tiny_server: Server,
) -> None:
    prompts: list[Any] = [
        USER.format(question) if is_plain else [{"role": "user", "content": question}]
        for question in QUESTIONS
    ]
    kind, recorder = (
        (AsyncRewardFunction, RecordedAsync) if is_async else (RewardFunction, RecordedSync)
    )
    function = recorder(kind(tiny_server.address))
    logged = train(trainer, policy, tmp_path, function, prompts)
    assert len(logged) == len(function.calls) == 2
    with RewardClient(tiny_server.address) as client:
        for entry, (asked, completions, rewards) in zip(logged, function.calls, strict=True):
            assert len(rewards) == 4
            expected: list[Any] = []
            for prompt, completion in zip(asked, completions, strict=True):
                response = completion if is_plain else completion[0]["content"]
                prompt = TemplatedText(text=prompt) if is_plain else prompt
                expected += client.score(prompt, [response]).values
            assert rewards == pytest.approx(expected, abs=EXACT)
            mean = sum(expected) / len(expected)
            assert entry["rewards/kwise/mean"] == pytest.approx(mean, abs=EXACT)
            assert entry["kwise/mean_tokens"] > 0
            assert entry["kwise/num_errors"] == 0
            assert entry["kwise/latency_s"] > 0


def test_a_response_that_cannot_be_scored_is_left_out_of_the_run(
    policy: Path, tmp_path: Path, tiny_server: Server
) -> None:
    function = RecordedSync(RewardFunction(tiny_server.address, on_error="none"))
    scored = function.function

    def with_a_long_one(**columns: Any) -> Any:
        columns["completions"] = ["word " * 3000, *columns["completions"][1:]]
        return scored(**columns)

    with_a_long_one.__name__ = "kwise"
    function.function = with_a_long_one
    prompts = [USER.format(question) for question in QUESTIONS]
    logged = train("GRPO", policy, tmp_path, function, prompts)
    for entry, (_, _, rewards) in zip(logged, function.calls, strict=True):
        assert rewards[0] is None
        others = [reward for reward in rewards[1:] if reward is not None]
        assert entry["rewards/kwise/mean"] == pytest.approx(sum(others) / 3, abs=EXACT)
        assert entry["kwise/num_errors"] == 1
        assert entry["grad_norm"] == entry["grad_norm"]  # not NaN


def test_the_command_line_takes_the_dotted_name(
    policy: Path, tmp_path: Path, tiny_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        json.dumps({"prompt": [{"role": "user", "content": question}]}) for question in QUESTIONS
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    monkeypatch.setenv("KWISE_ADDRESS", tiny_server.address)
    options = f"""--model_name_or_path {policy} --dataset_name {tmp_path / "data"}
        --output_dir {tmp_path / "run"} --reward_funcs kwise.rl.trl.reward --use_cpu --bf16 false
        --report_to none --per_device_train_batch_size 4 --num_generations 2 --max_steps 1
        --max_completion_length 6 --logging_steps 1 --save_strategy no --disable_tqdm true"""
    command = [sys.executable, "-m", "trl.scripts.grpo", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rewards/kwise/mean" in done.stdout


def test_async_grpo_can_pickle_and_name_the_functions(tiny_server: Server) -> None:
    from trl.trainer.utils import (  # pyright: ignore[reportMissingImports]
        get_callable_name,
        is_async_callable,
    )

    for kind in (RewardFunction, AsyncRewardFunction):
        function = pickle.loads(pickle.dumps(kind(tiny_server.address, name="judge")))
        assert get_callable_name(function) == "judge"
        assert is_async_callable(function) is (kind is AsyncRewardFunction)
