"""Clients of several servers over real sockets: the choice, absences, models, names."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import pytest

from kwise.cli import main
from kwise.client import AsyncRewardClient, ModelInfo, RewardClient, RewardServiceError
from kwise.client.several.servers import Servers
from kwise.types import ScoredGroup
from tests.length_server import Service, serving
from tests.servers import PATIENCE_S, wait_until

PROMPTS = [f"prompt {number}" for number in range(60)]
GROUPS = [(prompt, ["a", "bc", "def"]) for prompt in PROMPTS]
VALUES = (1.0, 2.0, 3.0)


def blocking(target: Any, **options: Any) -> list[ScoredGroup]:
    """Score all groups: half of them in calls, and half of them in one stream."""
    with RewardClient(target, timeout_s=PATIENCE_S, **options) as client:
        results = [client.score(*group) for group in GROUPS[::2]]
        return results + [scored(result) for result in client.score_many(GROUPS[1::2])]


def awaited(target: Any, **options: Any) -> list[ScoredGroup]:
    """Do what `blocking` does with the other client."""

    async def run() -> list[ScoredGroup]:
        async with AsyncRewardClient(target, timeout_s=PATIENCE_S, **options) as client:
            results = [await client.score(*group) for group in GROUPS[::2]]
            return results + [scored(result) async for result in client.score_many(GROUPS[1::2])]

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("score", [blocking, awaited])


def scored(result: object) -> ScoredGroup:
    assert isinstance(result, ScoredGroup), result
    return result


@contextmanager
def serving_all(services: list[Service]) -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(service=service)) for service in services]


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def http_server() -> Iterator[str]:
    """An address that answers everything with HTTP/1.1."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@BOTH
def test_each_prompt_goes_to_its_own_server_and_results_keep_their_order(
    score: Callable[..., list[ScoredGroup]],
) -> None:
    services = [Service() for _ in range(3)]
    with serving_all(services) as addresses:
        results = score(addresses)
        again = score(",".join(addresses))
    assert [result.values for result in results + again] == [VALUES] * 120
    sent = [service.prompts for service in services]
    assert all(sent), "each server has some"
    assert sorted(chain(*sent)) == sorted(PROMPTS * 2)
    assert sum(len(set(prompts)) for prompts in sent) == 60, "no prompt has two servers"


@BOTH
@pytest.mark.parametrize("other", [black_hole, http_server])
def test_an_address_without_a_server_is_left_out(
    score: Callable[..., list[ScoredGroup]],
    other: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with other() as address, serving() as target:
        results = score([address, target])
    assert [result.values for result in results] == [VALUES] * 60
    assert any(text.startswith(f"{address} is left out: ") for text in caplog.messages)


@BOTH
def test_a_draining_server_is_left_out_at_once_and_taken_back(
    score: Callable[..., list[ScoredGroup]],
) -> None:
    services = [Service(), Service()]
    with serving_all(services) as addresses:
        servers = Servers(addresses)
        score(servers)
        own = set(services[0].prompts)
        services[0].draining = True
        assert [result.values for result in score(servers.copy())] == [VALUES] * 60
        services[0].draining = False
        services[0].prompts.clear()
        score(addresses)
    assert set(services[0].prompts) == own


@BOTH
def test_a_full_server_is_waited_for_and_its_prompts_do_not_spill(
    score: Callable[..., list[ScoredGroup]],
) -> None:
    """The service refuses calls until it has refused three."""

    class Full(Service):
        def Score(self, request: Any, context: Any) -> Any:
            self.retry_after_ms = 1 if len(self.prompts) < 3 else None
            return super().Score(request, context)

    services = [Full(), Service()]
    with serving_all(services) as addresses:
        assert [result.values for result in score(addresses)] == [VALUES] * 60
    assert not set(services[0].prompts) & set(services[1].prompts)


@BOTH
def test_all_servers_away_is_an_error_that_names_each_with_its_cause(
    score: Callable[..., list[ScoredGroup]],
) -> None:
    with http_server() as http, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        # On a busy machine a short timeout may pass before the first answers.
        for timeout_s in (1.0, 4.0, 16.0, 64.0):
            with pytest.raises(RewardServiceError) as raised:
                score([http, nobody], connect_timeout_s=timeout_s)
            if "no answer yet" not in str(raised.value):
                break
    assert raised.value.code == "UNAVAILABLE"
    assert str(raised.value).startswith(f"UNAVAILABLE at {http}, {nobody}: no server was ready")
    assert "Connection refused" in str(raised.value)
    assert f"{http}: UNAVAILABLE: this looks like an HTTP port" in str(raised.value)


def test_a_call_waits_for_a_server_that_restarts_while_all_are_away() -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        first = stack.enter_context(ExitStack())
        addresses = [first.enter_context(serving()) for _ in range(2)]
        client = stack.enter_context(RewardClient(addresses, timeout_s=PATIENCE_S))
        assert client.score(*GROUPS[0]).values == VALUES
        first.close()
        call = thread.submit(client.score, *GROUPS[1])
        wait_until(lambda: not client.servers.usable)
        stack.enter_context(serving(int(addresses[1].rsplit(":", 1)[1])))
        assert call.result(PATIENCE_S).values == VALUES


@BOTH
def test_a_model_that_no_server_has_is_told_at_once(
    score: Callable[..., list[ScoredGroup]],
) -> None:
    """A client that waited for the servers would time this test out."""
    with (
        serving_all([Service(), Service()]) as addresses,
        pytest.raises(RewardServiceError, match="'other' is not served here") as raised,
    ):
        score(addresses, model="other", connect_timeout_s=3600.0)
    assert raised.value.code == "NOT_FOUND"


@BOTH
def test_servers_of_different_models_are_named(score: Callable[..., list[ScoredGroup]]) -> None:
    with (
        serving_all([Service("old"), Service("new")]) as addresses,
        pytest.raises(RewardServiceError, match="serve different models") as raised,
    ):
        score(addresses)
    assert raised.value.code == "FAILED_PRECONDITION"


@BOTH
def test_a_reply_of_another_model_is_not_mixed_in(score: Callable[..., list[ScoredGroup]]) -> None:
    """One server reloads in the middle. Its prompts go to the other, which has the old model."""
    services = [Service("old"), Service("old")]
    with serving_all(services) as addresses:
        servers = Servers(addresses)
        score(servers)
        services[0].fingerprint = "new"
        results = score(servers.copy())
        assert {result.fingerprint for result in results} == {"old"}
        assert [result.values for result in results] == [VALUES] * 60
        services[1].fingerprint = "new"
        assert {result.fingerprint for result in score(servers.copy())} == {"new"}


def test_the_model_of_several_servers_is_described_as_one() -> None:
    services = [Service(), Service()]
    services[0].prompts.append("p")  # the service counts its prompts as its limit of pairs
    services[1].prompts += ["p", "q"]

    async def both(addresses: list[str]) -> tuple[ModelInfo, dict[str, Any]]:
        async with AsyncRewardClient(addresses) as client:
            return await client.get_model(), await client.get_models()

    with serving_all(services) as addresses, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        with RewardClient([*addresses, nobody]) as client:
            model, models = client.get_model(), client.get_models()
        assert asyncio.run(both(addresses))[0] == model
    assert (model.max_pairs, model.max_responses, model.fingerprint) == (1, 9, "f")
    assert [getattr(models[address], "max_pairs", None) for address in models] == [1, 2, None]
    assert models[nobody].status.name == "UNAVAILABLE"  # type: ignore[union-attr]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of names, beside those that this machine knows."""
    names: dict[str, list[str]] = {}
    known = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        found = [known(address, port, *args, **kwargs) for address in names.get(host, [host])]
        return list(chain(*found))

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


@BOTH
def test_a_name_with_two_addresses_stands_for_two_servers(
    score: Callable[..., list[ScoredGroup]], hosts: dict[str, list[str]]
) -> None:
    services = [Service(), Service()]
    hosts["kwise.test"] = ["127.0.0.1", "127.0.0.2"]
    with serving(service=services[0]) as target:
        port = int(target.rsplit(":", 1)[1])
        with serving(service=services[1], address=f"127.0.0.2:{port}"):
            results = score(f"dns:///kwise.test:{port}")
    assert [result.values for result in results] == [VALUES] * 60
    assert all(service.prompts for service in services)
    assert not set(services[0].prompts) & set(services[1].prompts)


def test_a_server_that_a_name_gains_is_noticed_when_another_fails(
    hosts: dict[str, list[str]],
) -> None:
    """The name is looked up again within seconds, and not only after half a minute."""
    services = [Service(), Service()]
    hosts["kwise.test"] = ["127.0.0.1"]
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        port = int(first.enter_context(serving(service=services[0])).rsplit(":", 1)[1])
        target = f"dns:///kwise.test:{port}"
        client = stack.enter_context(RewardClient(target, timeout_s=PATIENCE_S))
        assert client.score(*GROUPS[0]).values == VALUES
        hosts["kwise.test"] = ["127.0.0.2"]
        stack.enter_context(serving(service=services[1], address=f"127.0.0.2:{port}"))
        first.close()
        assert client.score(*GROUPS[0]).values == VALUES
        assert client.servers.addresses == (f"ipv4:127.0.0.2:{port}",)
    assert (services[0].prompts, services[1].prompts) == ([PROMPTS[0]], [PROMPTS[0]])


def test_a_name_that_does_not_exist_is_named() -> None:
    target = "dns:///nowhere.invalid:50051"
    with RewardClient(target, connect_timeout_s=0.1) as client:
        with pytest.raises(RewardServiceError, match="no server was ready"):
            client.score(*GROUPS[0])
        wait_until(lambda: f"{target}: " in client.servers.causes)


def test_a_command_takes_several_servers(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_all([Service(), Service()]) as addresses:
        arguments = ["score", "--prompt", "p", "--response", "a", "--server", ",".join(addresses)]
        assert main(arguments) == 0
    assert '"value": 1.0' in capsys.readouterr().out
    assert main([*arguments[:-1], "localhost:1,b"]) == 2
    assert capsys.readouterr().err.startswith("kwise score: --server[1]: must be HOST:PORT")


def test_a_closed_client_of_several_servers_refuses_calls_at_once() -> None:
    client = RewardClient(["localhost:1", "localhost:2"])
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.score("p", ["a"])
