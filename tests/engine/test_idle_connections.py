"""Connections kept for the next request, with real sockets and a server that may close them at any moment."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from daemon.engine.http_exchange import Server, exchange
from daemon.engine.idle_connections import MOST, SECONDS, IdleConnections

REPLY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


@pytest.fixture
async def idle() -> AsyncIterator[IdleConnections]:
    connections = IdleConnections()
    yield connections
    connections.close()


def pair() -> tuple[trio.SocketStream, socket.socket]:
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs


async def test_what_is_old_closed_or_speaks_unasked_is_not_given_out(idle: IdleConnections) -> None:
    streams = [pair() for _ in range(4)]
    (good, _), (old, _), (_, closed), (_, speaks) = streams
    for (stream, _), since in zip(streams, (10.0, 10.0 - SECONDS, 10.0, 10.0), strict=True):
        one = IdleConnections()
        one.give(stream, since)
        if stream is streams[2][0]:
            closed.close()
        if stream is streams[3][0]:
            speaks.sendall(b"HTTP/1.1 408 \r\n\r\n")
        assert one.take(10.0) is (good if stream is good else None)
    assert old.socket.fileno() == -1
    good.socket.close()
    for _, theirs in streams:
        theirs.close()


async def test_no_more_than_a_few_are_kept_and_none_once_closed(idle: IdleConnections) -> None:
    pairs = [pair() for _ in range(MOST + 2)]
    for stream, _ in pairs:
        idle.give(stream, 0.0)
    assert [stream.socket.fileno() == -1 for stream, _ in pairs] == [True, True, *[False] * MOST]
    idle.close()
    late = pair()
    idle.give(late[0], 0.0)
    assert late[0].socket.fileno() == -1
    for _, theirs in (*pairs, late):
        theirs.close()


class Answerer:
    """A server of one reply a request, which closes a connection after so many."""

    def __init__(self, per_connection: int, reply: bytes = REPLY) -> None:
        self.connections = 0
        self.requests = 0
        self._per_connection = per_connection
        self._reply = reply

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            for _ in range(self._per_connection):
                received = b""
                while not received.endswith(b"\r\n\r\n"):
                    more = await stream.receive_some()
                    if not more:
                        return
                    received += more
                self.requests += 1
                await stream.send_all(self._reply)


async def asked(nursery: trio.Nursery, answerer: Answerer, idle: IdleConnections, times: int, read: bool = True) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answerer.serve, listeners)
    await ask(Server(host="127.0.0.1", port=listeners[0].socket.getsockname()[1]), idle, times, read)


async def ask(server: Server, idle: IdleConnections, times: int, read: bool = True) -> None:
    for _ in range(times):
        async with exchange(server, "GET", "/x", idle=idle) as reply:
            if read:
                assert await reply.body(10) == b"ok"
        await trio.testing.wait_all_tasks_blocked(0.01)  # until a server that closes has closed


async def test_a_connection_read_to_its_end_serves_again(nursery: trio.Nursery, idle: IdleConnections) -> None:
    answerer = Answerer(100)
    await asked(nursery, answerer, idle, 5)
    assert (answerer.connections, answerer.requests) == (1, 5)


@pytest.mark.parametrize(("ends_streams", "connections"), [(False, 1), (True, 6)])
async def test_over_a_unix_socket_one_serves_again_unless_the_server_ends_them(
    nursery: trio.Nursery, idle: IdleConnections, tmp_path: Path, ends_streams: bool, connections: int
) -> None:
    answerer, path = Answerer(100), tmp_path / "engine.sock"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        await listening.bind(str(path))
        listening.listen(8)
        nursery.start_soon(trio.serve_listeners, answerer.serve, [trio.SocketListener(listening)])
        await ask(Server(socket=path, ends_streams=ends_streams), idle, 5)
    assert (answerer.connections, answerer.requests) == (connections, 5)


async def test_one_that_the_server_closed_is_replaced(nursery: trio.Nursery, idle: IdleConnections) -> None:
    answerer = Answerer(2)
    await asked(nursery, answerer, idle, 6)
    assert (answerer.connections, answerer.requests) == (3, 6)


@pytest.mark.parametrize(
    "reply",
    [
        REPLY.replace(b"200 OK", b"200 OK\r\nConnection: close"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
    ],
)
async def test_one_to_be_closed_or_left_early_is_not_kept(
    nursery: trio.Nursery, idle: IdleConnections, reply: bytes
) -> None:
    answerer = Answerer(100, reply)
    await asked(nursery, answerer, idle, 3, read=False)
    assert (answerer.connections, answerer.requests) == (3, 3)
