"""A model with members over each protocol: the same rewards, members and deviations everywhere."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from kwise.client import RewardClient
from kwise.types import Reward
from tests.http_client import http_port
from tests.servers import PATIENCE_S, Server, running_server

PROMPT = "Why is the sky blue?"
RESPONSES = ["Light scatters.", "word " * 400, "No idea."]


@pytest.fixture(scope="module")
def server(members_artifact: Path) -> Iterator[Server]:
    with running_server(members_artifact, "--http-port", "0") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[RewardClient]:
    with RewardClient(server.address, timeout_s=PATIENCE_S) as client:
        yield client


def test_each_member_is_that_of_transformers_and_cached_rewards_are_the_same(
    members_checkpoint: Path, client: RewardClient
) -> None:
    """The second response is too long, and has an error in its place."""
    first, failed, last = client.score(PROMPT, RESPONSES).rewards
    again = client.rank(PROMPT, RESPONSES)
    assert isinstance(first, Reward) and isinstance(last, Reward)
    assert not isinstance(failed, Reward) and failed.over_limit
    tokenizer = transformers.AutoTokenizer.from_pretrained(members_checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(members_checkpoint)
    for reward, response, cached in zip(
        (first, last), (RESPONSES[0], RESPONSES[2]), (again.rewards[0], again.rewards[2]),
        strict=True,
    ):  # fmt: skip
        whole = [
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": response},
        ]
        token_ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
        with torch.inference_mode():
            expected = model.eval()(torch.tensor([token_ids])).logits[0].numpy()
        np.testing.assert_allclose(reward.members, expected, atol=1e-4)
        assert reward.value == pytest.approx(np.mean(reward.members))
        assert (reward.std, reward.min) == pytest.approx(
            (np.std(reward.members), min(reward.members))
        )
        assert isinstance(cached, Reward) and cached.cached
        assert (cached.members, cached.std) == (reward.members, reward.std)
    assert again.ranks[1] is None and {again.ranks[0], again.ranks[2]} == {1, 2}


def test_the_model_says_how_many_members_it_has(client: RewardClient) -> None:
    info = client.get_model()
    assert (info.num_members, info.member_means, info.member_stds) == (3, (0,) * 3, (1,) * 3)


def test_http_has_the_members_of_scored_responses_only(
    server: Server, client: RewardClient
) -> None:
    body = json.dumps({"prompt": PROMPT, "responses": RESPONSES}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{http_port(server)}/v1/rewards",
        body,
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        rewards = json.load(reply)["scored"]["rewards"]
    expected = client.score(PROMPT, RESPONSES).rewards
    for index in (0, 2):
        reward = expected[index]
        assert isinstance(reward, Reward)
        assert rewards[index]["members"] == list(reward.members)
        assert (rewards[index]["std"], rewards[index]["min"]) == (reward.std, reward.min)
    assert not {"members", "std", "min"} & rewards[1].keys()


def test_triton_gets_the_members_as_further_outputs(
    server: Server, client: RewardClient, tiny_server: Server
) -> None:
    def texts(name: str, *values: str) -> Any:
        tensor = triton.InferInput(name, [len(values)], "BYTES")
        return tensor.set_data_from_numpy(np.array([v.encode() for v in values], np.object_))

    inputs = [texts("prompt", PROMPT), texts("responses", *RESPONSES)]
    names = ("members", "std", "rewards", "min", "errors")
    outputs = [triton.InferRequestedOutput(name) for name in names]
    with triton.InferenceServerClient(server.address) as caller:
        model = caller.get_server_metadata() and client.get_model().model
        shapes = {
            tensor.name: list(tensor.shape) for tensor in caller.get_model_metadata(model).outputs
        }
        assert shapes["members"] == [-1, 3] and shapes["std"] == [-1]
        reply = caller.infer(model, inputs, outputs=outputs)
    members = reply.as_numpy("members")
    assert members.shape == (3, 3) and members.dtype == np.float32
    for index, reward in enumerate(client.score(PROMPT, RESPONSES).rewards):
        if isinstance(reward, Reward):
            assert members[index].tolist() == np.array(reward.members, np.float32).tolist()
            assert reply.as_numpy("std")[index] == np.float32(reward.std or 0)
            assert reply.as_numpy("min")[index] == np.float32(reward.min or 0)
            assert reply.as_numpy("rewards")[index] == np.float32(reward.value)
        else:
            assert np.isnan([*members[index], reply.as_numpy("std")[index]]).all()
    with triton.InferenceServerClient(tiny_server.address) as caller:
        described = caller.get_model_metadata("tiny").outputs
        assert [tensor.name for tensor in described] == ["rewards", "errors"]
        with pytest.raises(InferenceServerException, match="'std' is unknown; the outputs are"):
            caller.infer("tiny", inputs, outputs=outputs[1:2])
