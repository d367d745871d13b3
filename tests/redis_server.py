"""A real redis-server for tests, and a proxy before it that injects faults.

The server listens on a Unix socket in a directory of the test, and keeps nothing on disk.
"""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.servers import PATIENCE_S, wait_until

REDIS_SERVER = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(
    REDIS_SERVER is None,
    reason="the program redis-server is missing: apt-get install redis-server",
)


class RedisServer:
    """A redis-server that can be stopped and started again, empty each time."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "redis"
        self.url = f"unix://{self.socket}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers."""
        assert REDIS_SERVER is not None
        command = [REDIS_SERVER, "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._directory), *options], stdout=subprocess.DEVNULL
        )
        wait_until(self._answers)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)

    @contextmanager
    def client(self, **options: Any) -> Iterator[Any]:
        """Yield a client of the test's own, to look into the server."""
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options |= {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
        with Redis(unix_socket_path=str(self.socket), **options) as client:
            yield client

    def _answers(self) -> bool:
        from redis import exceptions

        assert self._process is not None and self._process.poll() is None, "redis-server ended"
        try:
            with self.client() as client:
                client.ping()
        except (exceptions.AuthenticationError, exceptions.BusyLoadingError):
            return True
        except exceptions.ConnectionError:
            return False
        return True


@contextmanager
def running_redis(directory: Path, *options: str) -> Iterator[RedisServer]:
    """Run a redis-server until the block ends."""
    server = RedisServer(directory)
    server.start(*options)
    try:
        yield server
    finally:
        server.stop()


class Proxy:
    """Passes bytes between clients and Redis, as the test wants.

    Attributes:
        url: where clients connect.
        swallow: pass nothing on from Redis: a Redis that has stopped, or a network that is gone.
        answer: bytes to answer with instead of Redis's, each time that a client sends something.
    """

    def __init__(self, socket: Path, redis: RedisServer) -> None:
        self.url = f"unix://{socket}"
        self.swallow = False
        self.answer = b""
        self._redis = redis
        self._writers: set[asyncio.StreamWriter] = set()
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []

    def cut(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def deliver_late(self) -> None:
        """Pass on what was swallowed, as far as its connection is still open."""
        self.swallow = False
        for writer, content in self._held:
            if not writer.is_closing():
                writer.write(content)
        self._held.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(str(self._redis.socket))
        self._writers |= {writer, to_redis}
        passing = asyncio.create_task(self._pass_replies(from_redis, writer))
        try:
            while content := await reader.read(1 << 16):
                if self.answer:
                    writer.write(self.answer)
                else:
                    to_redis.write(content)
        except (ConnectionError, asyncio.CancelledError):
            pass  # asyncio logs a cancelled connection as an error
        finally:
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)
            for end in (writer, to_redis):
                self._writers.discard(end)
                end.transport.abort()

    async def _pass_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while content := await reader.read(1 << 16):
                if self.swallow:
                    self._held.append((writer, content))
                else:
                    writer.write(content)
        writer.transport.abort()


@asynccontextmanager
async def running_proxy(directory: Path, redis: RedisServer) -> AsyncIterator[Proxy]:
    """Run a proxy before `redis` in the event loop of the test."""
    proxy = Proxy(directory / "proxy", redis)
    server = await asyncio.start_unix_server(proxy.serve, directory / "proxy")
    async with server:
        try:
            yield proxy
        finally:
            proxy.cut()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is true, while the event loop goes on."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)
