"""The service on Ray Serve: real processes, a real proxy, kwise's own client."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from kwise import RewardClient
from kwise.client.errors import RewardServiceError
from kwise.engine.artifact.manifest import read_manifest
from kwise.errors import KwiseError
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import Reward, ScoredGroup
from tests.cluster.processes import ray_processes
from tests.servers import PATIENCE_S, Server, raw_rewards, wait_until

RESPONSES = ["Air scatters blue light.", "Because it likes blue.", "Dunno."]
GROUPS = [(f"Question {number}: why is the sky blue?", RESPONSES) for number in range(24)]


@pytest.fixture(scope="module")
def expected(application: int, tiny_server: Server) -> list[list[float]]:
    """The rewards of GROUPS from a single process."""
    with RewardClient(tiny_server.address, timeout_s=PATIENCE_S) as client:
        return [raw_rewards(client.score(*group)) for group in GROUPS]


def is_close(values: list[float], expected: list[float]) -> bool:
    return values == pytest.approx(expected, abs=1e-4)


def infos(model: str) -> list[Any]:
    """Describe the model on each replica."""
    from ray import serve  # pyright: ignore[reportMissingImports]

    handle = serve.get_deployment_handle("replicas", "kwise")
    return list(handle.broadcast("describe", model).results(timeout_s=PATIENCE_S))


def test_rewards_equal_those_of_a_single_process(
    client: RewardClient, expected: list[list[float]]
) -> None:
    for group, values in zip(GROUPS, expected, strict=True):
        assert is_close(raw_rewards(client.score(*group)), values)
    model = client.get_model()
    counters = [info.counters.sequences for info in infos(model.model)]
    assert all(counters), "both replicas have worked"
    assert sum(counters) == model.counters.sequences == len(GROUPS) * len(RESPONSES)


def test_single_responses_of_a_prompt_come_from_one_cache(client: RewardClient) -> None:
    for prompt, responses in GROUPS:
        client.score(prompt, responses)
    for prompt, responses in GROUPS:
        for response in responses:
            (reward,) = client.score(prompt, [response]).rewards
            assert isinstance(reward, Reward) and reward.cached


def test_clients_that_ask_at_once_share_one_computation(client: RewardClient) -> None:
    before = client.get_model().counters
    prompt = "a prompt that nobody has asked about"
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.score(prompt, RESPONSES), range(8)))
    after = client.get_model().counters
    assert len({result.values for result in results}) == 1
    assert after.sequences - before.sequences == len(RESPONSES)
    shared = after.joined - before.joined + after.cache_hits - before.cache_hits
    assert shared == 7 * len(RESPONSES)


def test_ranks_and_comparisons(client: RewardClient) -> None:
    prompt, responses = GROUPS[0]
    ranked = client.rank(prompt, responses)
    best = max(range(3), key=lambda index: ranked.values[index] or 0.0)
    assert ranked.ranks[best] == 1
    compared = client.compare(prompt, responses)
    assert [(pair.first, pair.second) for pair in compared.comparisons] == [(0, 1), (0, 2), (1, 2)]


def test_groups_of_a_stream_go_to_the_replicas_of_their_prompts(
    client: RewardClient, expected: list[list[float]]
) -> None:
    for prompt, responses in GROUPS:
        client.score(prompt, responses)
    bad = ("a prompt", ["token ids are expected", ""] * 2000)
    *results, failed = client.score_many([*GROUPS, bad])
    for result, values in zip(results, expected, strict=True):
        assert isinstance(result, ScoredGroup)
        assert is_close(raw_rewards(result), values)
        assert all(isinstance(reward, Reward) and reward.cached for reward in result.rewards)
    assert isinstance(failed, KwiseError) and "--max-responses" in str(failed)


def text(value: str) -> pb.Response:
    return pb.Response(text=value)


BAD_REQUESTS: list[tuple[str, Any]] = [
    ("Score", pb.ScoreRequest()),
    ("Score", pb.ScoreRequest(group=pb.Group(prompt=pb.Prompt(text="a")))),
    (
        "Score",
        pb.ScoreRequest(
            group=pb.Group(prompt=pb.Prompt(text="a"), responses=[text("a"), pb.Response()])
        ),
    ),
    (
        "Score",
        pb.ScoreRequest(
            group=pb.Group(model="nobody", prompt=pb.Prompt(text="a"), responses=[text("a")])
        ),
    ),
    (
        "Score",
        pb.ScoreRequest(
            group=pb.Group(prompt=pb.Prompt(text="long " * 60_000), responses=[text("a")])
        ),
    ),
    (
        "Compare",
        pb.CompareRequest(group=pb.Group(prompt=pb.Prompt(text="a"), responses=[text("a")])),
    ),
    ("GetModel", pb.GetModelRequest(model="nobody")),
]


@pytest.mark.parametrize(("name", "request_"), BAD_REQUESTS)
def test_errors_have_the_status_message_and_metadata_of_a_single_process(
    application: int, tiny_server: Server, name: str, request_: Any
) -> None:
    alone = error_of(tiny_server.address, name, request_)
    assert alone[0] is not grpc.StatusCode.OK
    assert error_of(f"localhost:{application}", name, request_) == alone


def error_of(address: str, name: str, request: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with grpc.insecure_channel(address) as channel:
        rpc = getattr(reward_pb2_grpc.RewardServiceStub(channel), name)
        with pytest.raises(grpc.RpcError) as caught:
            rpc(request, timeout=PATIENCE_S)
    error: Any = caught.value
    metadata = {key: value for key, value in error.trailing_metadata() if key != "request_id"}
    return error.code(), error.details(), metadata


def test_bytes_that_are_no_request_are_refused_and_the_next_request_is_answered(
    application: int, client: RewardClient
) -> None:
    with grpc.insecure_channel(f"localhost:{application}") as channel:
        rpc: Any = channel.unary_unary("/kwise.v1.RewardService/Score")
        with pytest.raises(grpc.RpcError) as caught:
            rpc(b"\xff\xff", timeout=PATIENCE_S)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the request is not a kwise.v1.ScoreRequest"
    assert raw_rewards(client.score(*GROUPS[0]))


def test_a_replica_that_is_killed_under_load_loses_nothing(
    client: RewardClient, expected: list[list[float]]
) -> None:
    first, *_ = ray_processes("ServeReplica:kwise:replicas")
    # New texts, so that both replicas compute while one is killed.
    groups = [(f"{prompt} Attempt {n}.", texts) for n in range(10) for prompt, texts in GROUPS]
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(client.score, *group) for group in groups]
        wait_until(lambda: sum(future.done() for future in asked) > len(groups) // 10)
        first.kill()
        results = [future.result() for future in asked]
    assert Counter(len(raw_rewards(result)) for result in results) == {3: len(groups)}
    for group, values in zip(GROUPS, expected, strict=True):
        assert is_close(raw_rewards(client.score(*group)), values)
    assert client.get_model().model  # sent again until Ray knows which replicas live
    wait_until(lambda: len(ray_processes("ServeReplica:kwise:replicas")) == 2)


def test_a_model_is_chosen_by_name_or_by_the_metadata_of_ray(
    serving: int, tiny_artifact: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from ray import serve  # pyright: ignore[reportMissingImports]

    from kwise.cluster.serve import app
    from tests.exports import export_quietly

    other = export_quietly(tiny_checkpoint, tmp_path / "other", name="other")
    name = read_manifest(other).name
    args = {"artifact": f"{tiny_artifact},{other}", "replicas": 2, "max_models_per_replica": 1}
    serve.run(app({**args, "replicas_per_model": 1}), name="kwise", route_prefix="/kwise")
    address = f"localhost:{serving}"
    with RewardClient(address, timeout_s=PATIENCE_S) as client:
        first = client.get_model().model
        assert client.score(*GROUPS[0]).model == first
    with RewardClient(address, timeout_s=PATIENCE_S, model=name) as client:
        for _ in range(2):  # a replica with room for one model closes the other one
            assert client.score(*GROUPS[0]).model == name
        with pytest.raises(RewardServiceError, match="this server has"):
            RewardClient(address, model="third").score(*GROUPS[0])
    with grpc.insecure_channel(address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        group = pb.Group(prompt=pb.Prompt(text="a"), responses=[text("a")])
        metadata = (("multiplexed_model_id", name),)
        reply = stub.Score(pb.ScoreRequest(group=group), timeout=PATIENCE_S, metadata=metadata)
        assert reply.scored.model == name
