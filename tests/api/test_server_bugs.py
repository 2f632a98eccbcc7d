"""A bug of ours behind the local API costs one exchange, never the daemon: an app that raises, at whatever moment."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from daemon.api.server import HttpLimits, HttpServer, Listener

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}

Send = Callable[[dict[str, Any]], Awaitable[None]]


def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """The server's end of a connection, and the client's."""
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


async def exchange(app: Any) -> tuple[bytes, list[int]]:
    """What a client reads, and the statuses observed, when `app` answers; the server itself must come to an end by itself."""
    statuses: list[int] = []
    server = HttpServer(app, HttpLimits(), lambda scope, status: statuses.append(status))
    served, client = pair()
    received = b""
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            async with trio.open_nursery() as serving:
                serving.start_soon(server.serve, served, Listener("unix"))
                await client.send_all(REQUEST)
                with trio.move_on_after(0.3):
                    async for piece in client:
                        received += piece
                await client.aclose()
            nursery.cancel_scope.cancel()
    return received, statuses


async def raises_at_once(scope: Any, receive: Any, send: Send) -> None:
    raise ZeroDivisionError


async def raises_in_a_group(scope: Any, receive: Any, send: Send) -> None:
    async with trio.open_nursery():
        raise ZeroDivisionError


async def raises_after_it_began(scope: Any, receive: Any, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})
    raise ZeroDivisionError


async def says_more_than_it_promised(scope: Any, receive: Any, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"abcdefgh"})


@pytest.mark.parametrize("app", [raises_at_once, raises_in_a_group])
async def test_a_bug_before_the_answer_is_a_500(app: Any) -> None:
    received, statuses = await exchange(app)
    assert received.startswith(b"HTTP/1.1 500 ")
    assert b"internal error" in received
    assert b"ZeroDivision" not in received
    assert statuses == [500]


@pytest.mark.parametrize("app", [raises_after_it_began, says_more_than_it_promised])
async def test_a_bug_in_mid_answer_ends_the_connection_alone(app: Any) -> None:
    received, statuses = await exchange(app)
    assert received.count(b"HTTP/1.1") <= 1
    assert statuses in ([499], [500])


async def test_a_write_that_was_cut_off_is_the_connections_last() -> None:
    """A time limit that ends an answer in the middle of a write leaves half a chunk: what followed would be its rest."""
    ended = trio.Event()
    served, client = pair()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0.05):
            await send({"type": "http.response.body", "body": b"x" * (8 << 20), "more_body": True})
        try:
            await send({"type": "http.response.body", "body": b"too late", "more_body": False})
        finally:
            ended.set()

    statuses: list[int] = []
    server = HttpServer(app, HttpLimits(), lambda scope, status: statuses.append(status))
    received = bytearray()
    with trio.fail_after(10):
        async with client, trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            nursery.start_soon(server.serve, served, Listener("unix"))
            await client.send_all(REQUEST)
            await ended.wait()
            async for piece in client:
                received += piece
            nursery.cancel_scope.cancel()
    assert b"too late" not in received
    assert statuses == [499]
