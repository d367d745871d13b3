"""The clients and commands over a real socket, against a server whose answers a test chooses."""

import asyncio
import math
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.client import AsyncRewardClient, InvalidRequest, RewardClient, RewardServiceError
from kwise.client.channel import check_target
from kwise.types import ScoredGroup
from tests.length_server import DRAINING, Service, serving
from tests.servers import PATIENCE_S


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def blocking(target: str, call: str, timeout_s: float, **options: Any) -> Any:
    with RewardClient(target, timeout_s=timeout_s, **options) as client:
        return (
            client.score("p", ["a"]) if call == "score" else list(client.score_many([("p", ["a"])]))
        )


def awaited(target: str, call: str, timeout_s: float, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncRewardClient(target, timeout_s=timeout_s, **options) as client:
            if call == "score":
                return await client.score("p", ["a"])
            return [result async for result in client.score_many([("p", ["a"])])]

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("client", [blocking, awaited])
CALLS = pytest.mark.parametrize("call", ["score", "score_many"])


@BOTH
@CALLS
def test_a_server_that_was_never_reached_is_named_after_the_connect_timeout(
    nowhere: str, client: Callable[..., Any], call: str
) -> None:
    """The call's own timeout is an hour. A client that waited for it would time this test out."""
    with pytest.raises(RewardServiceError) as raised:
        client(nowhere, call, 3600.0, connect_timeout_s=0.2)
    problem = f"UNAVAILABLE at {nowhere}: no server was ready within 0.2 s: failed to connect"
    assert str(raised.value).startswith(problem)
    assert str(raised.value).endswith("Connection refused")
    assert (raised.value.code, raised.value.target) == ("UNAVAILABLE", nowhere)


@BOTH
@CALLS
def test_a_short_timeout_bounds_the_first_connection_too(
    nowhere: str, client: Callable[..., Any], call: str
) -> None:
    with pytest.raises(RewardServiceError, match=r"within 0\.1 s"):
        client(nowhere, call, 0.1)


def test_a_restarting_server_is_waited_for_longer_than_a_first_connection(nowhere: str) -> None:
    port = int(nowhere.rsplit(":", 1)[1])
    with (
        ThreadPoolExecutor(1) as thread,
        RewardClient(nowhere, timeout_s=PATIENCE_S, connect_timeout_s=0.1) as client,
    ):
        with serving(port):
            client.wait_until_ready(PATIENCE_S)
            assert client.score("p", ["a"]).model == "m"
        with pytest.raises(RewardServiceError) as raised:
            client.score("p", ["a"], timeout_s=0.5)
        assert raised.value.target == nowhere
        assert "no server was ready" not in str(raised.value)
        call = thread.submit(client.score, "p", ["a"])
        with serving(port):
            assert call.result(PATIENCE_S).model == "m"


@BOTH
@CALLS
def test_the_last_word_of_a_server_that_shuts_down_is_told(
    client: Callable[..., Any], call: str
) -> None:
    """score_many said only that nothing was answered."""
    service = Service()
    service.draining = True
    with serving(service=service) as target:
        # On a busy machine a short timeout may pass before the first answer.
        for timeout_s in (1.0, 4.0, 16.0, 64.0):
            with pytest.raises(RewardServiceError) as raised:
                client(target, call, timeout_s)
            if str(raised.value).endswith(DRAINING):
                break
        assert re.search(f"at {target}: .*{DRAINING}$", str(raised.value))


@BOTH
@CALLS
@pytest.mark.parametrize(
    ("timeout_s", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("3", TypeError),
        (True, TypeError),
    ],
)
def test_a_timeout_that_is_none_is_named(
    nowhere: str, client: Callable[..., Any], call: str, timeout_s: Any, error: type[Exception]
) -> None:
    """Infinity became a deadline that had passed, and a text failed inside gRPC."""
    with pytest.raises(error, match=r"^timeout_s must be"):
        client(nowhere, call, timeout_s)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_group_that_is_none_has_its_error_in_its_place(is_async: bool) -> None:
    """It ended `score_many`, and the answers to those before it were lost."""
    groups: Any = [
        ("p", ["a"]),
        "pair",
        ("p", [3.5]),
        ("p", ["bc"]),
        *[("p", "x")] * 300,
        ("p", ["def"]),
    ]

    async def awaited_results(target: str) -> list[Any]:
        async with AsyncRewardClient(target) as client:
            return [result async for result in client.score_many(groups)]

    with serving() as target, RewardClient(target) as blocking_client:
        results = (
            asyncio.run(awaited_results(target))
            if is_async
            else list(blocking_client.score_many(groups))
        )
    found = [
        len(result.rewards) if isinstance(result, ScoredGroup) else getattr(result, "field", None)
        for result in results
    ]
    assert found == [
        1, "groups[1]", "groups[2]", 1, *[f"groups[{number}]" for number in range(4, 304)], 1,
    ]  # fmt: skip
    assert "responses[0] must be" in str(results[2])


def test_groups_come_from_an_asynchronous_iterator_and_results_before_its_end() -> None:
    """The source waits for the result of its own first group, as a rollout worker does."""
    drawn: list[int] = []
    has_ended = False

    async def run(target: str) -> list[Any]:
        answered = asyncio.Event()

        async def groups() -> Any:
            yield ("p", ["a"])
            await answered.wait()
            for number in range(300):
                drawn.append(number)
                yield ("p", ["bc"]) if number else 7
            drawn.append(-1)

        results: list[Any] = []
        async with AsyncRewardClient(target) as client:
            async for result in client.score_many(groups()):
                answered.set()
                results.append(result)
            endless = client.score_many(rollouts())
            async for _ in endless:
                break
            await endless.aclose()
            assert has_ended, "the source is still being drawn from"
        return results

    async def rollouts() -> Any:
        nonlocal has_ended
        yield ("p", ["a"])
        try:
            await asyncio.Event().wait()
        finally:
            has_ended = True

    with serving() as target:
        results = asyncio.run(run(target))
    values = [getattr(result, "field", None) or result.rewards[0].value for result in results]
    assert values == [1.0, "groups[1]", *[2.0] * 299]
    assert drawn == [*range(300), -1]


def test_an_error_of_an_asynchronous_source_ends_the_call() -> None:
    async def groups() -> Any:
        yield ("p", ["a"])
        raise LookupError("no more data")

    async def run(target: str) -> None:
        async with AsyncRewardClient(target) as client:
            async for _ in client.score_many(groups()):
                pass

    with serving() as target, pytest.raises(LookupError, match="no more data"):
        asyncio.run(run(target))


PAGES = Path(__file__).parents[2]
SNIPPETS = [
    pytest.param(text, id=f"{page}-{number}")
    for page in ("README.md", "docs/client.md")
    for number, text in enumerate(
        re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    )
    if "Client(" in text and "tls_ca" not in text  # which needs a certificate
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_no_snippet_of_the_pages_raises_on_a_response_that_could_not_be_scored(
    snippet: str,
) -> None:
    """README's printed `reward.value` of every reward, which an error does not have."""
    with serving() as target:
        program = snippet.replace("localhost:50051", target).replace("Dunno.", "bad")
        imports = "from kwise import AsyncRewardClient, RewardClient\n"
        if "async with" in program:
            body = "".join(f"    {line}\n" for line in program.splitlines())
            program = f"import asyncio\nasync def run():\n{body}\nasyncio.run(run())"
        exec(imports + program, {})


@pytest.mark.parametrize("client", [RewardClient, AsyncRewardClient])
@pytest.mark.parametrize(
    "target",
    [
        "",
        " ",
        "localhost",
        "localhost:",
        ":50051",
        "::1",
        "[::1]",
        "10.0.0.1",
        "http://localhost:50051",
        "localhost:50051/",
        "localhost:50051?x",
        "user@localhost:50051",
        "localhost:-1",
        "localhost:5_0",
        "localhost:٣",
        "local\x00host:1",
        "unix:",
        "unix:\ud800",
    ],
)
def test_an_address_that_can_have_no_server_is_named_at_once(
    client: Callable[[str], Any], target: str
) -> None:
    """The first call waited for half a minute, and then there was no server."""
    with pytest.raises(InvalidRequest, match=r"^target: must be HOST:PORT"):
        client(target)


def test_a_port_out_of_range_and_a_target_of_another_type_are_named() -> None:
    with pytest.raises(
        InvalidRequest, match=r"^target: the port is 70000; it must be between 1 and 65535"
    ):
        RewardClient("localhost:70000")
    with pytest.raises(TypeError, match=r"^target must be a str or a sequence of str, not int"):
        RewardClient(50051)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "[::1]:50051",
        "dns:///localhost:50051",
        "dns://8.8.8.8/host:50051",
        "dns:host",
        "unix:kwise.sock",
        "unix:/run/kwise.sock",
        "unix:///run/kwise.sock",
        "unix-abstract:kwise",
        "ipv4:1.2.3.4:50051",
        "ipv4:1.2.3.4:50051,1.2.3.5:50051",
        "ipv6:[::1]:50051",
        "xds:///kwise",
    ],
)
def test_every_address_that_grpc_takes_is_taken(target: str) -> None:
    assert check_target("target", target) == target


@BOTH
def test_addresses_as_uris_reach_their_server(tmp_path: Path, client: Callable[..., Any]) -> None:
    with serving(address=f"unix:{tmp_path}/s") as target:
        assert client(target, "score", 10.0).model == "m"
        assert client(f"unix://{tmp_path}/s", "score", 10.0).model == "m"
    with serving() as target:
        assert client(f"dns:///{target}", "score", 10.0).model == "m"
        assert client(f"ipv4:{target}", "score", 10.0).model == "m"


def test_a_wrong_address_on_the_command_line_is_a_wrong_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["score", "--prompt", "p", "--response", "a", "--server", "localhost"]) == 2
    assert capsys.readouterr().err.startswith("kwise score: --server: must be HOST:PORT")


def test_a_closed_client_refuses_calls_at_once(nowhere: str) -> None:
    client = RewardClient(nowhere)
    client.close()
    with pytest.raises(ValueError, match="closed channel"):
        client.score("p", ["a"])
