"""The real clients of other servers against kwise's HTTP port: OpenRLHF, LLaMA-Factory and SDKs.

A test is skipped if its client is not installed. OpenRLHF and LLaMA-Factory are imported file by
file, because their packages need a GPU's libraries.
"""

import asyncio
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kwise.client import RewardClient
from tests.http_caller import EXACT, PROMPT, RESPONSES, HttpCaller
from tests.servers import running_server

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def needs(library: str) -> pytest.MarkDecorator:
    """Skip a test, and what it would set up, if a library is not installed."""
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None,
        reason=f"{library} is not installed; `make test-rl` installs what it can",
    )


@pytest.fixture(scope="module")
def caller(tiny_artifact: Path, smollm2_tokenizer: Any) -> Iterator[HttpCaller]:
    template = partial(smollm2_tokenizer.apply_chat_template, tokenize=False)
    with (
        running_server(tiny_artifact, "--http-port", "0") as server,
        RewardClient(server.address) as client,
    ):
        yield HttpCaller(server, client, template)


def module_without_packages(name: str) -> Any:
    """Import a module of a library without running the `__init__` of its packages."""
    parts = name.split(".")
    spec = importlib.util.find_spec(parts[0])
    assert spec is not None and spec.origin is not None
    packages = [".".join(parts[:end]) for end in range(1, len(parts))]
    for package in packages:
        if package not in sys.modules:
            stub = types.ModuleType(package)
            stub.__path__ = [str(Path(spec.origin).parent.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = stub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        for module in [m for m in sys.modules if m.partition(".")[0] == parts[0]]:
            del sys.modules[module]


class Engine:
    """Generates one response, in place of vLLM."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    async def generate(self, *_: Any, **__: Any) -> Any:
        output = SimpleNamespace(token_ids=self._token_ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


@pytest.fixture
def executor(caller: HttpCaller) -> Any:
    """OpenRLHF's executor, with `--reward.remote_url` set to the server."""
    agent = module_without_packages("openrlhf.utils.agent")
    return agent.SingleTurnAgentExecutor(f"http://127.0.0.1:{caller.port}/get_reward")


def execute(executor: Any, tokenizer: Any, response: str) -> Any:
    """Run one rollout of OpenRLHF's executor and return its output."""
    return asyncio.run(_execute(executor, tokenizer, response))


async def _execute(executor: Any, tokenizer: Any, response: str) -> Any:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return await executor.execute(
        prompt=tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=False
        ),
        label=None,
        sampling_params=SimpleNamespace(max_tokens=8192, logprobs=None),
        max_length=16384,
        hf_tokenizer=tokenizer,
        llm_engine=Engine([*tokenizer.encode(response, add_special_tokens=False), end]),
    )


@needs("openrlhf")
def test_openrlhf_gets_the_rewards_of_its_rollouts(
    caller: HttpCaller, executor: Any, smollm2_tokenizer: Any
) -> None:
    import torch

    async def rollouts() -> list[Any]:
        calls = (_execute(executor, smollm2_tokenizer, response) for response in RESPONSES)
        return await asyncio.gather(*calls)

    outputs = asyncio.run(rollouts())
    rewards = [output["reward"] for output in outputs]
    assert [reward for (reward,) in rewards] == pytest.approx(caller.rewards(RESPONSES), abs=EXACT)
    for output in outputs:
        assert output["scores"] == output["reward"]
        # What its generator of samples does with them.
        for value in output["extra_logs"].values():
            assert torch.tensor([value]).shape == (1,)
    assert len({tuple(output["extra_logs"]) for output in outputs}) == 1


@needs("openrlhf")
def test_openrlhf_gets_no_number_for_what_cannot_be_scored(
    executor: Any, smollm2_tokenizer: Any
) -> None:
    output = execute(executor, smollm2_tokenizer, "blue " * 4000)
    assert output["reward"] is None
    assert output["scores"] is None


@needs("llamafactory")
def test_llama_factory_gets_a_mini_batch(caller: HttpCaller) -> None:
    ppo_utils = module_without_packages("llamafactory.train.ppo.ppo_utils")
    texts = [caller.templated(response) for response in RESPONSES]
    url = f"http://127.0.0.1:{caller.port}/v1/score/evaluation"
    rewards = ppo_utils.get_rewards_from_server(url, texts)
    assert rewards.tolist() == pytest.approx(caller.rewards(RESPONSES), abs=EXACT)


def sigmoids(rewards: list[float]) -> list[float]:
    import torch

    values: list[float] = torch.tensor(rewards, dtype=torch.float64).sigmoid().tolist()
    return values


@needs("cohere")
@pytest.mark.parametrize("version", ["Client", "ClientV2"])
def test_coheres_clients_rerank(caller: HttpCaller, version: str) -> None:
    cohere = importlib.import_module("cohere")
    client = getattr(cohere, version)("no key", base_url=f"http://127.0.0.1:{caller.port}")
    answer = client.rerank(model=caller.model, query=PROMPT, documents=RESPONSES, top_n=2)
    expected = sigmoids(caller.rewards(RESPONSES))
    order = sorted(range(3), key=lambda index: -expected[index])[:2]
    assert [result.index for result in answer.results] == order
    scores = [result.relevance_score for result in answer.results]
    assert scores == pytest.approx([expected[index] for index in order], abs=EXACT)
    with pytest.raises(cohere.NotFoundError, match=r"'rerank-v3\.5' is not served here"):
        client.rerank(model="rerank-v3.5", query=PROMPT, documents=RESPONSES)
    with pytest.raises(cohere.BadRequestError, match="documents: the list is empty"):
        client.rerank(model=caller.model, query=PROMPT, documents=[])


@needs("openai")
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_openais_client_gets_rewards_as_embeddings(
    caller: HttpCaller, options: dict[str, Any]
) -> None:
    openai = importlib.import_module("openai")
    client = openai.OpenAI(api_key="no key", base_url=f"http://127.0.0.1:{caller.port}/v1")
    texts = [caller.templated(response) for response in RESPONSES]
    answer = client.embeddings.create(model=caller.model, input=texts, **options)
    rewards = [item.embedding[0] for item in answer.data]
    assert rewards == pytest.approx(caller.rewards(RESPONSES), abs=EXACT)
    with pytest.raises(openai.BadRequestError, match="dimensions: a reward has one") as raised:
        client.embeddings.create(model=caller.model, input="a", dimensions=3)
    assert raised.value.param == "dimensions"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
