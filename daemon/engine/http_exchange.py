"""One HTTP/1.1 request on a connection of its own: leaving it closes the connection, and that is how an engine is told to stop.

A connection per request is on purpose. A pooled client leaves its own readers to the garbage collector when an answer is
left half read, and on a Unix socket a connection costs a tenth of a millisecond.
"""

import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import h11
import trio

from daemon.engine.http_body import Body, BodyError, ChunkedBody, OpenBody, SizedBody
from daemon.engine.interface import EngineError

CONNECT_TIMEOUT = 10.0
SILENCE_TIMEOUT = 300.0
"""Seconds without a byte; a long prompt on a busy vLLM is silent for minutes."""
_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Server:
    """Where an engine listens: on `socket` if there is one, else at host and port."""

    socket: Path | None = None
    host: str = "engine"
    port: int = 80
    tls: bool = False
    prefix: str = ""
    """Path that precedes every other, without a trailing slash."""
    key: str = ""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.socket is not None or self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Reply:
    """The head of a response, and its body piece by piece."""

    def __init__(self, stream: trio.abc.Stream, connection: h11.Connection) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._connection = connection
        self._body: Body = OpenBody()
        self._first = b""
        self.status = 0

    @property
    def descriptor(self) -> int | None:
        """The socket's, where bytes are read from it as they are."""
        return None if self._socket is None else self._socket.fileno()

    async def read_head(self) -> None:
        """Past any informational responses; raises EngineError."""
        while not self.status:
            event = await self._next()
            if isinstance(event, h11.Response):
                self.status = event.status_code
                self._body = _body_of(event)
                with _as_engine_error():
                    self._first = self._body.feed(self._connection.trailing_data[0])
            elif not isinstance(event, h11.InformationalResponse):
                raise EngineError("the engine closed the connection without an answer")

    async def chunk(self) -> bytes:
        """The next bytes of the body, b"" at its end; raises EngineError where it breaks off."""
        found, self._first = self._first, b""
        with _as_engine_error():
            while not found and not self._body.complete:
                received = await self._receive()
                if received:
                    found = self._body.feed(received)
                else:
                    self._body.end()
                    return b""
        return found

    async def body(self, limit: int) -> bytes:
        """The whole body; raises EngineError where it is longer than `limit` bytes."""
        whole = bytearray()
        while chunk := await self.chunk():
            whole += chunk
            if len(whole) > limit:
                raise EngineError("the engine's reply is too long")
        return bytes(whole)

    async def _next(self) -> object:
        with _as_engine_error():
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._receive())
            return event

    async def _receive(self) -> bytes:
        if self._socket is None:
            with trio.fail_after(SILENCE_TIMEOUT):
                return bytes(await self._stream.receive_some(_READ_BYTES))
        # Most reads find something: no turn of the event loop and no time limit for those that do.
        descriptor = self._socket.fileno()
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                received = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                with trio.fail_after(SILENCE_TIMEOUT):
                    await trio.lowlevel.wait_readable(descriptor)
            except OSError:
                raise trio.BrokenResourceError from None
            else:
                return received


def _body_of(head: h11.Response) -> Body:
    # h11 has refused any other coding, and a length that is no number or of which there are two.
    fields = dict(iter(head.headers))
    if head.status_code in (204, 304):
        return SizedBody(0)
    if b"transfer-encoding" in fields:
        return ChunkedBody()
    return SizedBody(int(fields[b"content-length"])) if b"content-length" in fields else OpenBody()


@asynccontextmanager
async def exchange(server: Server, method: str, path: str, body: bytes = b"") -> AsyncGenerator[Reply, None]:
    """Send a request, with `body` as JSON if there is one, and yield its reply; raises EngineError."""
    stream = await _connect(server)
    try:
        connection = h11.Connection(h11.CLIENT)
        reply = Reply(stream, connection)
        with _as_engine_error():
            head = connection.send(h11.Request(method=method, target=server.prefix + path, headers=_headers(server, body))) or b""
            with trio.fail_after(SILENCE_TIMEOUT):
                await stream.send_all(
                    head + (connection.send(h11.Data(body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
                )
        await reply.read_head()
        yield reply
    finally:
        await trio.aclose_forcefully(stream)


def _headers(server: Server, body: bytes) -> list[tuple[str, str]]:
    headers = [("Host", server.authority), ("Accept-Encoding", "identity"), ("Connection", "close")]
    if server.key:
        headers.append(("Authorization", f"Bearer {server.key}"))
    if body:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return headers


async def _connect(server: Server) -> trio.abc.Stream:
    with _as_engine_error(), trio.fail_after(CONNECT_TIMEOUT):
        if server.socket is not None:
            return await trio.open_unix_socket(str(server.socket))
        if server.tls:
            stream = await trio.open_ssl_over_tcp_stream(server.host, server.port, https_compatible=True)
            await stream.do_handshake()
            return stream
        return await trio.open_tcp_stream(server.host, server.port)


@contextlib.contextmanager
def _as_engine_error() -> Iterator[None]:
    try:
        yield
    except trio.TooSlowError:
        raise EngineError("the engine fell silent") from None
    except (h11.ProtocolError, BodyError):
        raise EngineError("the engine does not speak HTTP") from None
    except trio.BrokenResourceError:
        raise EngineError("the connection to the engine broke") from None
    except OSError:
        raise EngineError("nothing listens where the engine should") from None
