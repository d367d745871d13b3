"""The cost of a cached group of nine over HTTP, relative to gRPC.

How much longer does a call over HTTP take? Physics: nothing is computed, so the cost is that of the
protocol: parsing the request, passing the event loop, and writing the reply. Client and server
share the machine, so the time per call includes the client's work. The server's CPU time per call
does not. The protocols alternate within one run:

    gRPC      a call per group (`Score`), on several channels at once
    stream    `ScoreStream`, on several channels at once
    HTTP      a POST per group (`/v1/rewards`), on several connections that stay open

Each client parses the reply and checks that it has nine cached rewards.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from kwise.benchmarks.serving.server_process import ServerProcess
from kwise.client.messages import to_group
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.protos.kwise.v1 import reward_pb2_grpc
from kwise.types import Priority

_NUM_CONNECTIONS = 8
# Groups in flight on each stream.
_WINDOW = 8


def compare_protocols(
    server: ServerProcess,
    group: tuple[str, Sequence[str]],
    *,
    calls: int,
    repeats: int,
) -> dict[str, Any]:
    """Return the time and the server's CPU time per call of each protocol, and HTTP's ratios.

    Args:
        server: a server with an HTTP port.
        group: prompt and nine responses, which the server has in its cache.
        calls: calls of each protocol in a round.
        repeats: rounds; medians are reported.
    """
    prompt, responses = group
    message = to_group("", prompt, responses, Priority.INTERACTIVE)
    body = json.dumps({"prompt": prompt, "responses": responses}).encode()
    per_connection = max(1, calls // _NUM_CONNECTIONS)
    clients: dict[str, Callable[[], Awaitable[None]]] = {
        "grpc": lambda: _call_grpc(server.address, message, per_connection),
        "stream": lambda: _stream_grpc(server.address, message, per_connection),
        "http": lambda: _call_http(server.http_address, body, per_connection),
    }
    rounds: list[dict[str, dict[str, float]]] = []
    for repeat in range(-1, repeats):  # -1 is the warm-up
        round_ = {}
        for name, client in clients.items():
            cpu_s, started = _cpu_s(server.process.pid), time.perf_counter()
            asyncio.run(_run(client))
            num_calls = per_connection * _NUM_CONNECTIONS
            round_[name] = {
                "us": 1e6 * (time.perf_counter() - started) / num_calls,
                "cpu_us": 1e6 * (_cpu_s(server.process.pid) - cpu_s) / num_calls,
            }
        if repeat >= 0:
            rounds.append(round_)
    medians = {
        name: {unit: statistics.median(r[name][unit] for r in rounds) for unit in ("us", "cpu_us")}
        for name in clients
    }
    ratios = [r["http"]["us"] / r["grpc"]["us"] for r in rounds]
    cpu_ratios = [r["http"]["cpu_us"] / r["grpc"]["cpu_us"] for r in rounds]
    return {
        **medians,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "cpu_ratio": statistics.median(cpu_ratios),
        "cpu_ratios": cpu_ratios,
    }


async def _run(client: Callable[[], Awaitable[None]]) -> None:
    await client()


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _channel(address: str) -> grpc.aio.Channel:
    # Channels to one address share a connection otherwise.
    return grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


def _check(rewards: Sequence[Any], *, is_cached: bool) -> None:
    if len(rewards) != 9 or not is_cached:
        raise RuntimeError(f"not nine rewards from the cache: {rewards}")


async def _call_grpc(address: str, group: pb.Group, calls: int) -> None:
    request = pb.ScoreRequest(group=group)

    async def connection() -> None:
        async with _channel(address) as channel:
            score: Any = reward_pb2_grpc.RewardServiceStub(channel).Score
            for _ in range(calls):
                rewards = (await score(request)).scored.rewards
                _check(rewards, is_cached=all(reward.cached for reward in rewards))

    await asyncio.gather(*(connection() for _ in range(_NUM_CONNECTIONS)))


async def _stream_grpc(address: str, group: pb.Group, calls: int) -> None:
    async def connection() -> None:
        slots = asyncio.Semaphore(_WINDOW)

        async def requests() -> Any:
            for number in range(calls):
                await slots.acquire()
                yield pb.ScoreStreamRequest(id=str(number), group=group)

        async with _channel(address) as channel:
            async for reply in reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(requests()):
                rewards = reply.scored.rewards
                _check(rewards, is_cached=all(reward.cached for reward in rewards))
                slots.release()

    await asyncio.gather(*(connection() for _ in range(_NUM_CONNECTIONS)))


async def _call_http(address: str, body: bytes, calls: int) -> None:
    loop = asyncio.get_running_loop()
    host, port = address.rsplit(":", 1)

    async def connection() -> None:
        _, client = await loop.create_connection(
            lambda: _HttpClient(body, calls, loop.create_future()), host, int(port)
        )
        await client.done

    await asyncio.gather(*(connection() for _ in range(_NUM_CONNECTIONS)))


class _HttpClient(asyncio.Protocol):
    """A connection that sends one request after the other, with little work of its own."""

    def __init__(self, body: bytes, calls: int, done: "asyncio.Future[None]") -> None:
        head = (
            "POST /v1/rewards HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.done = done
        self._request = head.encode() + body
        self._num_left = calls
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length):
            return
        rewards = json.loads(body)["scored"]["rewards"]
        _check(rewards, is_cached=all(reward["cached"] for reward in rewards))
        self._received = b""
        self._num_left -= 1
        if self._num_left:
            self._transport.write(self._request)
        else:
            self.done.set_result(None)
            self._transport.close()
