"""Listening sockets: every address of a host on one port, and what is said if it cannot be had."""

import asyncio
import socket

import pytest

from kwise.engine.server.listen import bound_sockets, cannot_listen


def test_all_addresses_of_a_host_have_one_port() -> None:
    sockets = bound_sockets("localhost", 0)
    ports = {bound.getsockname()[1] for bound in sockets}
    for bound in sockets:
        bound.close()
    assert len(ports) == 1 and 0 not in ports


def test_a_port_on_which_another_server_listens_cannot_be_had() -> None:
    (first,) = bound_sockets("127.0.0.1", 0)
    port = first.getsockname()[1]
    first.listen()
    with first, pytest.raises(OSError) as raised:
        bound_sockets("127.0.0.1", port)
    message = cannot_listen("127.0.0.1", "--http-port", port, raised.value)
    assert message == (
        f"--host 127.0.0.1 --http-port {port}: cannot listen there: Address already in use; stop "
        "the other server, or choose another --http-port"
    )


def test_a_port_can_be_had_again_while_old_connections_linger() -> None:
    """A server that closes connections leaves them in TIME_WAIT."""
    (first,) = bound_sockets("127.0.0.1", 0)
    address = first.getsockname()
    first.listen()
    with socket.create_connection(address) as client:
        first.accept()[0].close()  # the side that closes first keeps the connection
        assert client.recv(1) == b""
    first.close()
    (second,) = bound_sockets(*address)
    second.close()


async def test_asyncio_sends_small_parts_of_a_reply_at_once() -> None:
    """Without TCP_NODELAY, the body of a reply waited 40 ms for the client's delayed ACK."""
    options: asyncio.Queue[int] = asyncio.Queue()

    def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        options.put_nowait(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    (listening,) = bound_sockets("127.0.0.1", 0)
    async with await asyncio.start_server(accepted, sock=listening) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await options.get() == 1
        writer.close()
        await writer.wait_closed()
