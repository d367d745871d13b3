"""The real clients of other servers against kwise's HTTP port: verl's loop, Cohere's and OpenAI's.

A test is skipped if its client is not installed. `test_http.py` has OpenRLHF and LLaMA-Factory.
"""

import asyncio
import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
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


@needs("verl")
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verls_classifying_loop_gets_the_rewards_of_the_messages(
    caller: HttpCaller, smollm2_tokenizer: Any, engine: str
) -> None:
    """Its configuration has no address. Whoever subclasses it sets one, and the model's name."""
    import numpy as np
    import torch

    verl = importlib.import_module("verl")
    reward_loop = importlib.import_module("verl.experimental.reward_loop.reward_loop")
    reward_model = {"enable": True, "model_path": caller.model, "rollout": {"name": engine}}
    reward = {"reward_model": reward_model, "custom_reward_function": {"path": None}}
    worker = object.__new__(reward_loop.RewardLoopWorker)
    worker.config = importlib.import_module("omegaconf").OmegaConf.create({"reward": reward})
    worker.reward_router_address = f"127.0.0.1:{caller.port}"
    worker.input_tokenizer = worker.reward_model_tokenizer = smollm2_tokenizer
    raw_prompt = np.empty(1, dtype=object)
    raw_prompt[0] = [{"role": "user", "content": PROMPT}]
    ids = smollm2_tokenizer.encode(RESPONSES[0], add_special_tokens=False)
    data = verl.DataProto.from_dict(
        tensors={
            "responses": torch.tensor([[*ids, 0, 0]]),
            "attention_mask": torch.tensor([[1] * (4 + len(ids)) + [0, 0]]),
        },
        non_tensors={"raw_prompt": raw_prompt},
    )
    score = asyncio.run(worker.compute_score(data))["reward_score"]
    assert score == pytest.approx(caller.rewards(RESPONSES[:1])[0], abs=EXACT)
