"""One rollout in each RL library, scored as the library scores it.

A driver runs the library's own code around the adapter: `score(prompt, response)` takes the
messages of a prompt and the text of a response, and returns the reward that the library keeps. A
library that is not installed is skipped. `make test-rl` installs all of them.
"""

import asyncio
import importlib.util
import logging
import socket
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kwise.rl.command import FILES

Messages = list[dict[str, str]]
Score = Callable[[Messages, str], float]

ADAPTERS = Path(__file__).parents[2] / "rl"
# Rewards are equal within this, whatever else is in their batch.
TOLERANCE = 1e-4
# The token by which a policy ends its turn. The tokenizer of the tests has another eos_token.
END_OF_TURN = "<|im_end|>"


def require(package: str) -> None:
    """Skip the test if a package is not installed."""
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed; `make test-rl` installs it")


def library(name: str) -> ModuleType:
    """Import a library, or skip the test. Its warnings are its own matter."""
    require(name.partition(".")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


def module_by_path(name: str, path: Path) -> ModuleType:
    """Import one file, as libraries import a plugin."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def file_of(package: str, path: str) -> Path:
    """Return a file of a package that is not imported, or skip the test."""
    require(package)
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What the drivers need.

    Attributes:
        address: the server's address.
        tokenizer: the tokenizer of the policy, which has the reward model's chat template.
        directory: the directory of that tokenizer.
        options: arguments of `Scoring`.
    """

    address: str
    tokenizer: Any
    directory: Path
    options: dict[str, Any] = field(default_factory=dict)

    def prompt_ids(self, prompt: Messages) -> list[int]:
        """Return the prompt with the chat template applied, as the policy reads it."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    def response_ids(self, response: str) -> list[int]:
        """Return the tokens of a response as the policy generates them, with the end of turn."""
        ids: list[int] = self.tokenizer.encode(response, add_special_tokens=False)
        return [*ids, self.tokenizer.convert_tokens_to_ids(END_OF_TURN)]


# verl


def verl_config(rollouts: Rollouts, **changes: Any) -> Any:
    """Return verl's own configuration of rewards, with `changes`, for a worker."""
    omega = library("omegaconf").OmegaConf
    reward = omega.load(file_of("verl", "trainer/config/reward/reward.yaml"))
    config = omega.create({"actor_rollout_ref": {"model": {"tokenizer_path": None, "path": ""}}})
    config.actor_rollout_ref.model.path = str(rollouts.directory)
    config.reward = omega.merge(reward, changes)
    omega.set_struct(config, True)
    return config


def verl_worker(config: Any) -> Any:
    """Return verl's worker, in this process and without Ray's cluster."""
    module = library("verl.experimental.reward_loop.reward_loop")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module.RewardLoopWorker(config)


def verl_sample(rollouts: Rollouts, prompt: Messages, response: str, **fields: Any) -> Any:
    """Return one sample as verl's agent loop sends it to a worker."""
    import numpy as np
    import torch

    prompt_ids, response_ids = rollouts.prompt_ids(prompt), rollouts.response_ids(response)
    raw_prompt = np.empty(1, dtype=object)
    raw_prompt[0] = prompt
    return library("verl").DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([prompt_ids]),
            "responses": torch.tensor([[*response_ids, 0, 0, 0]]),
            "attention_mask": torch.tensor([[1] * len(prompt_ids + response_ids) + [0, 0, 0]]),
        },
        non_tensors={"raw_prompt": raw_prompt, "__num_turns__": np.array([2])}
        | {name: np.array([value]) for name, value in fields.items()},
    )


def verl(rollouts: Rollouts) -> Score:
    """verl's RewardLoopWorker, with the manager from the entry point."""
    worker = verl_worker(
        verl_config(
            rollouts,
            reward_manager={"name": "kwise"},
            kwise={"address": rollouts.address} | rollouts.options,
        )
    )

    def score(prompt: Messages, response: str) -> float:
        result = asyncio.run(worker.compute_score(verl_sample(rollouts, prompt, response)))
        return float(result["reward_score"])

    return score


# OpenRLHF


class FakeEngine:
    """An engine that generates one response, in place of vLLM."""

    def __init__(self, token_ids: list[int]) -> None:
        self.token_ids = token_ids

    async def generate(self, *_: Any, **__: Any) -> Any:
        """Return the response as vLLM does."""
        output = SimpleNamespace(token_ids=self.token_ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def execute_openrlhf(executor: Any, rollouts: Rollouts, prompt: Messages, text: str) -> Any:
    """Run one rollout of OpenRLHF's executor and return its output."""
    return await executor.execute(
        prompt=rollouts.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        ),
        label="",
        sampling_params=SimpleNamespace(max_tokens=8192, logprobs=None),
        max_length=16384,
        hf_tokenizer=rollouts.tokenizer,
        llm_engine=FakeEngine(rollouts.response_ids(text)),
    )


def openrlhf(rollouts: Rollouts) -> Score:
    """OpenRLHF's SingleTurnAgentExecutor, below the agent file."""
    from kwise.rl.scoring import Scoring

    library("openrlhf.utils.agent")
    module = module_by_path("agent_module", ADAPTERS / "files" / FILES["openrlhf"])
    executor = module.AgentExecutor()
    executor.scoring = Scoring(rollouts.address, **rollouts.options)

    def score(prompt: Messages, response: str) -> float:
        output = asyncio.run(execute_openrlhf(executor, rollouts, prompt, response))
        assert output["scores"] == output["reward"]
        return float(output["reward"])

    return score


# SkyRL


def skyrl(rollouts: Rollouts) -> Score:
    """The environment as skyrl_gym makes it."""
    from kwise.rl.scoring import Scoring

    gym = library("skyrl_gym")
    if "kwise" not in gym.envs.registration.registry:
        gym.register(id="kwise", entry_point="kwise.rl.skyrl:RewardEnv")
    scoring = Scoring(rollouts.address, **rollouts.options)

    def score(prompt: Messages, response: str) -> float:
        environment = gym.make("kwise", env_config={}, extras={"max_turns": 1})
        environment.scoring = scoring
        shown, _ = environment.init(prompt)
        assert shown == prompt
        step = environment.step(response)
        assert step["done"]
        assert step["observations"] == []
        environment.close()
        return float(step["reward"])

    return score


# AReaL


def areal_wrapper() -> Any:
    """Return AReaL's class AsyncRewardWrapper, from its file."""
    path = file_of("areal", "api/reward_api.py")
    # `import areal` needs much that the file does not: a scheduler, servers, Ray.
    for name in ("areal", "areal.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["areal.utils"].logging = logging  # type: ignore[attr-defined]
    try:
        return module_by_path("reward_api", path).AsyncRewardWrapper
    finally:
        del sys.modules["areal"], sys.modules["areal.utils"]


def areal(rollouts: Rollouts) -> Score:
    """AReaL's AsyncRewardWrapper, with a pool of one process."""
    wrapper_class = areal_wrapper()
    wrapper = wrapper_class(module_for_areal(rollouts), 60, max_workers=1)

    def score(prompt: Messages, response: str) -> float:
        prompt_ids, response_ids = rollouts.prompt_ids(prompt), rollouts.response_ids(response)
        return float(
            asyncio.run(
                wrapper(
                    rollouts.tokenizer.decode(prompt_ids),
                    rollouts.tokenizer.decode(response_ids),
                    prompt_ids,
                    response_ids,
                    messages=prompt,
                    answer="4",
                )
            )
        )

    score.close = wrapper_class._atexit_shutdown_all  # type: ignore[attr-defined]
    return score


def module_for_areal(rollouts: Rollouts) -> Callable[..., float]:
    """Return a function of a module, as a user with other options writes it."""
    from kwise.rl.areal import RewardFunction

    module = types.ModuleType("rewards_of_a_user")
    function = RewardFunction(rollouts.address, **rollouts.options)

    def reward(*arguments: Any, **row: Any) -> float:
        return function(*arguments, **row)

    reward.__module__, reward.__qualname__ = module.__name__, "reward"
    module.reward = reward  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module  # the pool is forked, so it has the module as well
    return reward


# verifiers


def verifiers_trace(*messages: Any, **fields: Any) -> Any:
    """Return the trace of a rollout with these messages."""
    vf = library("verifiers.v1")
    graph, trace = library("verifiers.v1.graph"), library("verifiers.v1.trace")
    agent = library("verifiers.v1.configs.agent")
    nodes = [
        graph.MessageNode(parent=index - 1 if index else None, message=message)
        for index, message in enumerate(messages)
    ]
    return trace.Trace(
        task=trace.TraceTask(type="Task", data=vf.TaskData()),
        agent=trace.AgentInfo(config=agent.AgentConfig()),
        nodes=nodes,
        **fields,
    )


def verifiers_score(trace: Any, function: str) -> float:
    """Score a trace with a task whose configuration names a reward function."""
    vf = library("verifiers.v1")
    config = {"rewards": {"kwise": {"fn": function, "weight": 0.5}}}
    asyncio.run(vf.Task(vf.TaskData(), vf.TaskConfig.model_validate(config)).score(trace))
    return float(trace.rewards["kwise"].score)


def verifiers(rollouts: Rollouts) -> Score:
    """verifiers' Task.score, with a reward from the configuration."""
    vf_types = library("verifiers.v1.types")
    from kwise.rl.verifiers import RewardFunction

    module = types.ModuleType("kwise_rewards_of_a_user")
    module.reward = RewardFunction(  # type: ignore[attr-defined]
        rollouts.address, **rollouts.options
    )
    sys.modules[module.__name__] = module
    classes = {"system": vf_types.SystemMessage, "user": vf_types.UserMessage}

    def score(prompt: Messages, response: str) -> float:
        trace = verifiers_trace(
            *(classes[message["role"]](content=message["content"]) for message in prompt),
            vf_types.AssistantMessage(content=response),
        )
        return verifiers_score(trace, f"{module.__name__}:reward")

    return score


# ms-swift


def ms_swift(rollouts: Rollouts) -> Score:
    """ms-swift's compute_rewards_per_func, with the plugin as ms-swift imports it."""
    data, algorithm = library("swift.rl_core.data"), library("swift.rl_core.grpo_algorithm")
    import_external_file = library("swift.utils").import_external_file
    resolve_reward_funcs = library("swift.rlhf_trainers.utils").resolve_reward_funcs
    from kwise.rl.scoring import Scoring

    path = sys.path[:]
    try:
        import_external_file(str(ADAPTERS / "files" / FILES["ms-swift"]))
    finally:
        sys.path[:] = path
    functions, _ = resolve_reward_funcs(["kwise"], args=SimpleNamespace())
    functions[0].scoring = Scoring(rollouts.address, **rollouts.options)

    def score(prompt: Messages, response: str) -> float:
        sample = data.GRPOSample(
            messages=[*prompt, {"role": "assistant", "content": response}],
            extra={"solution": "4"},
            prompt_id="prompt",
            request_id="request",
        )
        rewards = algorithm.compute_rewards_per_func([sample], functions, None, "cpu")
        return float(rewards[0, 0])

    return score


# Shapes of libraries that are not installed


@dataclass
class SlimeSample:
    """The fields of slime's Sample that a reward function reads."""

    prompt: str | Messages
    response: str
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def slime(rollouts: Rollouts) -> Score:
    """slime's call of a custom reward function; slime itself is not on PyPI."""
    from kwise.rl.slime import RewardFunction

    function = RewardFunction(rollouts.address, **rollouts.options)

    def score(prompt: Messages, response: str) -> float:
        text = rollouts.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        # slime keeps the end of turn in the text: no_stop_trim, and special tokens are not skipped.
        sample = SlimeSample(text, response + END_OF_TURN)
        args = SimpleNamespace(apply_chat_template=True, custom_rm_path="kwise.rl.slime.reward")
        reward = asyncio.run(function(args, sample, evaluation=False))
        assert isinstance(reward, float)
        return reward

    return score


# By library, its driver and the package that it needs; None for the shape of a call.
DRIVERS: dict[str, tuple[Callable[[Rollouts], Score], str | None]] = {
    "verl": (verl, "verl"),
    "openrlhf": (openrlhf, "openrlhf"),
    "skyrl": (skyrl, "skyrl_gym"),
    "areal": (areal, "areal"),
    "verifiers": (verifiers, "verifiers"),
    "ms-swift": (ms_swift, "swift"),
    "slime": (slime, None),
}
