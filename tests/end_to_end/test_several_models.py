"""Several models in one server: requests by name in each protocol, and their health."""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.client import RewardClient, RewardServiceError
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.errors import Status
from kwise.protos.inference import inference_pb2, inference_pb2_grpc
from kwise.protos.kwise.v1 import reward_pb2, reward_pb2_grpc
from kwise.protos.tei.v1 import tei_pb2, tei_pb2_grpc
from kwise.types import Reward, ScoredGroup
from tests.http_client import ask, http_port
from tests.servers import PATIENCE_S, Server, raw_rewards, running_server, wait_until

MEAN = 7.0  # the second model is the first one with another mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    server: Server
    http_port: int
    second: Path

    def client(self, model: str = "") -> RewardClient:
        return RewardClient(self.server.address, model=model, timeout_s=PATIENCE_S)


@pytest.fixture
def second(tiny_artifact: Path, tmp_path: Path) -> Path:
    path = tmp_path / "second"
    shutil.copytree(tiny_artifact, path)
    changed = msgspec.structs.replace(read_manifest(path), reward_mean=MEAN).signed()
    (path / MANIFEST).write_text(changed.to_json())
    return path


@pytest.fixture
def served(tiny_artifact: Path, second: Path) -> Iterator[Served]:
    models = [f"first={tiny_artifact}", f"second={second}"]
    with running_server(models, "--http-port", "0") as server:
        yield Served(server=server, http_port=http_port(server), second=second)


def values(scored: ScoredGroup) -> list[float]:
    return [reward.value for reward in scored.rewards if isinstance(reward, Reward)]


def test_the_name_chooses_the_model_in_each_protocol(served: Served) -> None:
    responses = ["a", "bc"]
    with served.client() as client, served.client("second") as other:
        first, second = client.score("p", responses), other.score("p", responses)
        assert (first.model, second.model) == ("first", "second")
        assert raw_rewards(first) == raw_rewards(second)
        assert values(second) == pytest.approx([value - MEAN for value in values(first)])
        assert client.get_model().model == "first"
        assert other.get_model().model == "second"
        with (
            served.client("third") as third,
            pytest.raises(RewardServiceError, match="'first', 'second'") as raised,
        ):
            third.score("p", responses)
        assert raised.value.status is Status.NOT_FOUND
    body = {"prompt": "p", "responses": responses}
    for path, fields, expected in (
        ("/v1/rewards", {}, first),
        ("/v1/rewards", {"model": "second"}, second),
        ("/models/second/v1/rewards", {}, second),
        ("/models/second/v1/rewards", {"model": "second"}, second),
    ):
        scored = ask(served.http_port, "POST", path, {**body, **fields}).json["scored"]
        assert scored["model"] == expected.model
        assert [reward["value"] for reward in scored["rewards"]] == values(expected)
    both = ask(served.http_port, "POST", "/models/second/v1/rewards", {**body, "model": "first"})
    assert (both.status, "the address names 'second'" in both.body.decode()) == (400, True)


def test_protocols_whose_messages_name_no_model_reach_each(served: Served) -> None:
    rerank = {"query": "p", "texts": ["a", "bc"], "raw_scores": True}
    request = tei_pb2.RerankRequest(query="p", texts=["a", "bc"], raw_scores=True)
    for model, mean in (("", 0.0), ("first", 0.0), ("second", MEAN)):
        path = f"/models/{model}/rerank" if model else "/rerank"
        over_http = ask(served.http_port, "POST", path, rerank).json
        with grpc.insecure_channel(served.server.address) as channel:
            metadata = (("kwise-model", model),) if model else None
            over_grpc = tei_pb2_grpc.RerankStub(channel).Rerank(request, metadata=metadata)
        with served.client() as client:
            expected = sorted(value - mean for value in values(client.score("p", ["a", "bc"])))
        assert sorted(rank["score"] for rank in over_http) == pytest.approx(expected)
        assert sorted(rank.score for rank in over_grpc.ranks) == pytest.approx(expected, abs=1e-5)
    unknown = ask(served.http_port, "POST", "/models/third/rerank", rerank)
    assert unknown.status == 404


def test_the_metadata_of_a_call_name_the_model_of_any_message(served: Served) -> None:
    metadata = (("kwise-model", "second"),)
    group = reward_pb2.Group(
        prompt=reward_pb2.Prompt(text="p"), responses=[reward_pb2.Response(text="a")]
    )
    infer = inference_pb2.ModelInferRequest(
        inputs=[
            inference_pb2.ModelInferRequest.InferInputTensor(
                name=name,
                datatype="BYTES",
                shape=[1],
                contents=inference_pb2.InferTensorContents(bytes_contents=[text]),
            )
            for name, text in (("prompt", b"p"), ("responses", b"a"))
        ]
    )
    with grpc.insecure_channel(served.server.address) as channel:
        rewards: Any = reward_pb2_grpc.RewardServiceStub(channel)
        inference: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        scored = rewards.Score(reward_pb2.ScoreRequest(group=group), metadata=metadata).scored
        (streamed,) = rewards.ScoreStream(
            iter([reward_pb2.ScoreStreamRequest(group=group)]), metadata=metadata
        )
        described = rewards.GetModel(reward_pb2.GetModelRequest(), metadata=metadata)
        assert inference.ModelInfer(infer, metadata=metadata).model_name == "second"
        assert scored.model == streamed.scored.model == described.model == "second"
        group.model = "first"
        with pytest.raises(grpc.RpcError, match="the metadata kwise-model names 'second'"):
            rewards.Score(reward_pb2.ScoreRequest(group=group), metadata=metadata)


def test_all_models_are_listed(served: Served) -> None:
    listed = ask(served.http_port, "GET", "/v1/models").json["data"]
    assert [model["id"] for model in listed] == ["first", "second"]
    assert ask(served.http_port, "GET", "/v1/models/second").json["id"] == "second"
    assert ask(served.http_port, "GET", "/models/second/v1/model").json["reward_mean"] == MEAN
    with grpc.insecure_channel(served.server.address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest())
        assert [model.name for model in index.models] == ["first", "second"]
        statistics = stub.ModelStatistics(inference_pb2.ModelStatisticsRequest(name="second"))
        assert statistics.model_stats[0].name == "second"


def test_an_ensemble_answers_in_each_protocol(tiny_artifact: Path, second: Path) -> None:
    models = [f"first={tiny_artifact}", f"second={second}"]
    options = ["--http-port", "0", "--ensemble", "both=first,second"]
    with running_server(models, *options) as server:
        with RewardClient(server.address, model="both", timeout_s=PATIENCE_S) as client:
            over_grpc = client.score("p", ["a", "bc"])
        body = {"prompt": "p", "responses": ["a", "bc"], "model": "both"}
        over_http = ask(http_port(server), "POST", "/v1/rewards", body).json["scored"]
        for reward, fields in zip(over_grpc.rewards, over_http["rewards"], strict=True):
            assert isinstance(reward, Reward)
            assert reward.std == pytest.approx(MEAN / 2)
            assert reward.min == reward.members[1] == pytest.approx(reward.value - MEAN / 2)
            expected = {"value": reward.value, "std": reward.std, "min": reward.min}
            assert {name: fields[name] for name in expected} == expected
            assert fields["members"] == list(reward.members)
        rerank = {"query": "p", "texts": ["a"], "raw_scores": True}
        reply = ask(http_port(server), "POST", "/models/both/rerank", rerank).json
        assert reply[0]["score"] == over_http["rewards"][0]["value"]
        metrics = ask(http_port(server), "GET", "/metrics").body.decode().splitlines()
        for model in ("first", "second", "both"):
            assert f'kwise_groups_total{{model="{model}",result="computed"}} 1.0' in metrics
            assert f'kwise_groups_total{{model="{model}",result="cached"}} 2.0' in metrics
        assert 'kwise_cache_misses_total{model="second"} 2.0' in metrics


def ensemble_options(ensembles: str) -> list[str]:
    return [word for value in ensembles.split() for word in ("--ensemble", value)]


@pytest.mark.parametrize(
    ("models", "ensemble", "problem"),
    [
        ("a b", "both=a", "there is one member; an ensemble needs at least two"),
        ("a b", "both", "must have the form NAME=MODEL,MODEL"),
        ("a b", "both=a,a", "'a' is named twice"),
        ("a b", "both=a,c", "'c' is not served here; this server has 'a', 'b'"),
        ("a b", "both=a,,b", "the name of a member is empty"),
        ("a b", "both=a,b more=a,both", "'both' is an ensemble; name its members"),
        ("a b", "a=a,b", "'a' is the name of an artifact's model"),
        ("a b", "x/y=a,b", "the name is 'x/y'"),
        ("a a", "both=a,b", "its model is called a, as that of"),
        ("a/b c", "both=a,b", "the name is 'a/b'"),
    ],
)
def test_wrong_names_are_one_sentence(
    tiny_artifact: Path, models: str, ensemble: str, problem: str
) -> None:
    arguments = [f"{name}={tiny_artifact}" for name in models.split()]
    with (
        pytest.raises(AssertionError, match=f"kwise serve: [^\n]*{problem}"),
        running_server(arguments, *ensemble_options(ensemble)),
    ):
        pass


def test_each_model_has_its_health(served: Served) -> None:
    with grpc.insecure_channel(served.server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs know no methods
        for name in ("", "first", "second"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            health.Check(health_pb2.HealthCheckRequest(service="third"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_sighup_reloads_the_model_that_has_changed(served: Served) -> None:
    changed = msgspec.structs.replace(read_manifest(served.second), reward_mean=-1.0).signed()
    (served.second / MANIFEST).write_text(changed.to_json())
    served.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "serving second" in served.server.log.text.partition(" on ")[2])
    with served.client("second") as client:
        wait_until(lambda: client.get_model().reward_mean == -1.0)
    assert "has not changed" in served.server.log.text
