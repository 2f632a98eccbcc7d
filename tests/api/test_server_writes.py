"""How an answer leaves: whole, however little the kernel takes at once; and no endless one keeps the others from their turn."""

import socket
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.api.server import BYTES_A_TURN, HttpLimits, HttpServer, Listener
from daemon.eager_send import send_now

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """The server's end of a connection, with a small buffer, and the client's."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def read_all(stream: trio.SocketStream) -> bytes:
    received = b""
    async with stream:
        async for piece in stream:
            received += piece
    return received


@pytest.mark.parametrize("size", [1, 4 << 10, 300 << 10])
async def test_what_the_kernel_does_not_take_at_once_follows(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (3 * len(body)))]})
        for last in (False, False, True):
            await send({"type": "http.response.body", "body": body, "more_body": not last})

    served, client = pair()
    server = HttpServer(app, HttpLimits(), lambda scope, status: None)
    with trio.fail_after(5):
        async with trio.open_nursery() as serving:
            serving.start_soon(server.serve, served, Listener("unix"))
            await client.send_all(REQUEST)
            received = await read_all(client)
    assert received.partition(b"\r\n\r\n")[2] == 3 * body


async def test_an_answer_that_never_waits_lets_others_have_their_turn() -> None:
    turns: list[int] = []
    written = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal written
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            written += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def other() -> None:
        while True:
            turns.append(written)
            await trio.lowlevel.checkpoint()

    served, client = pair()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    served.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # nothing waits for the reader
    server = HttpServer(app, HttpLimits(), lambda scope, status: None)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await client.send_all(REQUEST)
            await server.serve(served, Listener("unix"))
            await client.aclose()
            nursery.cancel_scope.cancel()
    seen = sorted({count for count in turns if count < 64})
    # Trio runs the tasks of one turn in any order, so that two turns of the writer may follow each other.
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 2 * BYTES_A_TURN // (2 << 10)
    assert len(seen) >= 4


async def test_a_client_that_takes_nothing_for_two_minutes_holds_nothing_any_longer(autojump_clock: MockClock) -> None:
    statuses: list[int] = []
    begun, ended = 0.0, 0.0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal begun, ended
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                begun = trio.current_time()
                await send({"type": "http.response.body", "body": bytes(100 << 10), "more_body": True})
        finally:
            ended = trio.current_time()

    served, client = pair()
    server = HttpServer(app, HttpLimits(), lambda scope, status: statuses.append(status))
    with trio.fail_after(3600):
        async with trio.open_nursery() as serving:
            serving.start_soon(server.serve, served, Listener("unix"))
            await client.send_all(REQUEST)
            for _ in range(20):  # slowly: some of each write in time
                await trio.sleep(100)
                assert await client.receive_some(64 << 10)
    assert statuses == [499]
    assert ended == pytest.approx(20 * 100 + 120, abs=1)
    assert ended - begun > 120, "what is taken bit by bit is waited for"
    await client.aclose()


async def test_only_a_socket_takes_bytes_at_once() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    assert send_now(ours, b"abc") == 0
    served, client = pair()
    await client.aclose()
    with pytest.raises(BrokenPipeError):
        send_now(served, b"abc")
    await served.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        send_now(served, b"abc")
    await ours.aclose()
    await theirs.aclose()
