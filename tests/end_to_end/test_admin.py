"""Models that are loaded, replaced and unloaded while a server answers requests."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.cli import main
from kwise.client import Credentials, RewardClient, RewardServiceError
from kwise.client.admin import AdminClient
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import MANIFEST
from kwise.errors import Status
from kwise.protos.inference import inference_pb2, inference_pb2_grpc
from kwise.types import Reward
from tests.servers import PATIENCE_S, Server, running_server

ADMIN, CALLER = "admin-token-0123456789", "caller-token-0123456789"


@pytest.fixture
def second(tiny_artifact: Path, tmp_path: Path) -> Path:
    path = tmp_path / "second"
    shutil.copytree(tiny_artifact, path)
    changed = msgspec.structs.replace(read_manifest(path), reward_mean=7.0).signed()
    (path / MANIFEST).write_text(changed.to_json())
    return path


@pytest.fixture
def server(tiny_artifact: Path, tmp_path: Path) -> Iterator[Server]:
    admins, callers = tmp_path / "admins", tmp_path / "callers"
    admins.write_text(f"operator:{ADMIN}\n")
    callers.write_text(f"job:{CALLER}\n")
    options = ["--admin-token-file", str(admins), "--token-file", str(callers)]
    with running_server([f"first={tiny_artifact}"], *options) as running:
        yield running


def admin(server: Server, token: str = ADMIN) -> AdminClient:
    credentials = Credentials(token=token)
    return AdminClient(server.address, timeout_s=PATIENCE_S, credentials=credentials)


def client(server: Server, model: str = "") -> RewardClient:
    credentials = Credentials(token=CALLER)
    return RewardClient(server.address, model=model, timeout_s=PATIENCE_S, credentials=credentials)


def test_only_an_administrator_may_change_the_models(server: Server, second: Path) -> None:
    for token in (CALLER, "", "another-token-0123456789"):
        with admin(server, token) as caller, pytest.raises(RewardServiceError) as raised:
            caller.load_model("second", str(second))
        assert raised.value.status is Status.UNAUTHENTICATED
        assert not token or "one of --admin-token-file" in raised.value.message
    with admin(server) as administrator:
        assert [model.model for model in administrator.list_models()] == ["first"]


def test_a_server_without_administrators_does_not_have_the_service(
    tiny_artifact: Path, second: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server(tiny_artifact) as open_server, admin(open_server) as caller:
        with pytest.raises(RewardServiceError) as raised:
            caller.load_model("second", str(second))
        assert raised.value.status is Status.UNIMPLEMENTED
        assert main(["models", open_server.address]) == 1
        assert "started without --admin-token-file" in capsys.readouterr().err


def test_models_come_and_go_while_others_are_answered(server: Server, second: Path) -> None:
    stop = threading.Event()
    answered: list[str] = []

    def ask() -> None:
        with client(server, "first") as caller:
            while not stop.is_set():
                answered.append(caller.score("p", [str(len(answered))]).model)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with admin(server) as administrator:
            loaded = administrator.load_model("second", str(second))
            assert (loaded.model, loaded.artifact) == ("second", str(second))
            with client(server, "second") as caller:
                assert caller.get_model().fingerprint == loaded.fingerprint
                first = caller.score("p", ["a"]).rewards[0]
                assert isinstance(first, Reward)
                assert first.value == pytest.approx(first.raw - 7.0)
            combined = administrator.load_model("both", members=["first", "second"])
            assert combined.members == ("first", "second")
            with client(server, "both") as caller:
                reward = caller.score("p", ["a"]).rewards[0]
                assert isinstance(reward, Reward)
                assert reward.members == pytest.approx((first.raw, first.raw - 7.0), abs=1e-4)
                assert (reward.value, reward.std) == pytest.approx((first.raw - 3.5, 3.5), abs=1e-4)
                assert caller.get_model().num_members == 2
            with pytest.raises(RewardServiceError, match="member of the ensemble 'both'"):
                administrator.unload_model("second")
            assert health(server, "both") == health_pb2.HealthCheckResponse.SERVING
            administrator.unload_model("both")
            administrator.unload_model("second")
            assert [model.model for model in administrator.list_models()] == ["first"]
            assert health(server, "both") == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        with client(server, "second") as caller, pytest.raises(RewardServiceError) as raised:
            caller.score("p", ["a"])
        assert raised.value.status is Status.NOT_FOUND
    finally:
        stop.set()
        asking.join()
    assert answered and set(answered) == {"first"}


def test_models_are_listed_after_the_first_one_was_unloaded(server: Server, second: Path) -> None:
    with admin(server) as administrator:
        administrator.load_model("second", str(second))
        administrator.unload_model("first")
        assert [model.model for model in administrator.list_models()] == ["second"]
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {CALLER}"),)
        index = stub.RepositoryIndex(inference_pb2.RepositoryIndexRequest(), metadata=metadata)
        assert [model.name for model in index.models] == ["second"]


def test_a_model_is_replaced_and_a_damaged_artifact_is_not_served(
    server: Server, second: Path
) -> None:
    with admin(server) as administrator, client(server) as caller:
        before = caller.get_model().fingerprint
        (second / "tokenizer.json").write_text("{}")
        with pytest.raises(RewardServiceError, match=r"tokenizer\.json") as raised:
            administrator.load_model("first", str(second))
        assert raised.value.status is Status.FAILED_PRECONDITION
        assert caller.get_model().fingerprint == before
        for artifact, problem in (("relative", "absolute"), ("/no/such", "no directory")):
            with pytest.raises(RewardServiceError, match=problem):
                administrator.load_model("first", artifact)
        for name in ("a/b", "", "x" * 101):
            with pytest.raises(RewardServiceError, match="model: the name is"):
                administrator.load_model(name, str(second))
        with pytest.raises(RewardServiceError, match="'third' is not served here"):
            administrator.load_model("third")
        assert administrator.load_model("first").fingerprint == before  # it has not changed


def test_the_command_lists_loads_and_unloads(
    server: Server,
    second: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KWISE_TOKEN", ADMIN)

    def models(*options: str) -> list[str]:
        assert main(["models", server.address, *options]) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert models() == ["first"]
    assert models("--load", f"second={second}") == ["first", "second"]
    assert models("--load", "second") == ["first", "second"]
    assert models("--ensemble", "both=first,second") == ["first", "second", "both"]
    assert main(["models", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index(line.split()[1]) for line in lines}) == 1, "the columns are aligned"
    assert main(["models", server.address, "--load", "both"]) == 1
    assert "'both' is an ensemble; load its members" in capsys.readouterr().err
    assert models("--unload", "both") == ["first", "second"]
    assert main(["models", server.address, "--ensemble", "both"]) == 2
    assert "NAME=MODEL,MODEL" in capsys.readouterr().err
    assert main(["models", server.address, "--unload", "both"]) == 1
    assert "'both' is not served here" in capsys.readouterr().err


def health(server: Server, name: str) -> Any:
    """Return the first state that a watch of the model's health reports."""
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs know no methods
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=PATIENCE_S)
        status = next(watch).status
        watch.cancel()
        return status
