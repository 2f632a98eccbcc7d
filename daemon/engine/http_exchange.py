"""One HTTP/1.1 request: leaving it before its end closes the connection, and that is how an engine is told to stop.

A connection goes on to the next request only where its answer was read to the end, and the caller has a place to keep it.
"""

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import h11
import trio

from daemon.eager_send import send_now
from daemon.engine.http_body import Body, BodyError, ChunkedBody, OpenBody, SizedBody
from daemon.engine.idle_connections import IdleConnections
from daemon.engine.interface import EngineError

CONNECT_TIMEOUT = 10.0
SILENCE_TIMEOUT = 300.0
"""Seconds without a byte; a long prompt on a busy vLLM is silent for minutes."""
_READ_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 10


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
    ends_streams: bool = False
    """It ends each connection behind a streamed answer, whatever the head says: then the next connection is opened at once."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.socket is not None or self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [ -~]*)?")
_FIELD = re.compile(rb"([A-Za-z0-9-]+): ?((?:[!-~](?:[ -~]*[!-~])?)?)")
"""Its value may be empty: llama.cpp sends an Access-Control-Allow-Origin that is."""

_ONCE = (b"content-length", b"transfer-encoding")


class Reply:
    """The head of a response, and its body piece by piece."""

    def __init__(self, stream: trio.abc.Stream, connection: Callable[[], h11.Connection], silence: trio.CancelScope) -> None:
        self._stream = stream
        self._silence = silence
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._connection = connection
        self._body: Body = OpenBody()
        self._first = b""
        self._is_last = False
        self.status = 0

    @property
    def descriptor(self) -> int | None:
        """The socket's, where bytes are read from it as they are."""
        return None if self._socket is None else self._socket.fileno()

    async def read_head(self) -> None:
        """Past any informational responses; raises what `engine_error` knows."""
        raw = b""
        while (end := raw.find(b"\r\n\r\n")) < 0 and len(raw) < MAX_HEAD_BYTES:
            received = await self._receive()
            raw += received
            if not received:
                break
        plain = read_plain_head(raw[:end]) if end >= 0 else None
        if plain is None:
            await self._read_head_by_h11(raw)
        else:
            self.status, self._body = plain
            self._first = self._body.feed(raw[end + 4 :])
            self._is_last = b"connection: close" in raw[:end].lower()

    def is_over(self) -> bool:
        """Whether all of a plain answer was read and its connection may serve again; takes a last few bytes without waiting."""
        if self._socket is None or self._is_last or not self.status or isinstance(self._body, OpenBody):
            return False
        with contextlib.suppress(OSError, BodyError):
            if not self._body.complete and (more := os.read(self._socket.fileno(), _READ_BYTES)):
                self._body.feed(more)
        return self._body.complete

    async def _read_head_by_h11(self, raw: bytes) -> None:
        self._is_last = True
        connection = self._connection()
        connection.receive_data(raw)
        while not self.status:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await self._receive())
            if isinstance(event, h11.Response):
                self.status = event.status_code
                self._body = _body_of(self.status, dict(iter(event.headers)))
                self._first = self._body.feed(connection.trailing_data[0])
            elif not isinstance(event, h11.InformationalResponse):
                raise EngineError("the engine closed the connection without an answer")

    async def chunk(self) -> bytes:
        """The next bytes of the body, b"" at its end; raises EngineError where it breaks off."""
        found, self._first = self._first, b""
        try:
            while not found and not self._body.complete:
                received = await self._receive()
                if received:
                    found = self._body.feed(received)
                else:
                    self._body.end()
                    return b""
        except FAULTS as fault:
            raise engine_error(fault) from None
        return found

    async def body(self, limit: int) -> bytes:
        """The whole body; raises EngineError where it is longer than `limit` bytes."""
        whole = bytearray()
        while chunk := await self.chunk():
            whole += chunk
            if len(whole) > limit:
                raise EngineError("the engine's reply is too long")
        return bytes(whole)

    async def _receive(self) -> bytes:
        if self._socket is None:
            self._silence.deadline = trio.current_time() + SILENCE_TIMEOUT
            received = bytes(await self._stream.receive_some(_READ_BYTES))
            self._silence.deadline = inf
            return received
        # Most reads find something: no turn of the event loop for those that do.
        descriptor = self._socket.fileno()
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                received = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                # One scope for all waits: to enter one costs more than the rest of a read.
                self._silence.deadline = trio.current_time() + SILENCE_TIMEOUT
                await trio.lowlevel.wait_readable(descriptor)
                self._silence.deadline = inf
            except OSError:
                raise trio.BrokenResourceError from None
            else:
                return received


def read_plain_head(head: bytes) -> tuple[int, Body] | None:
    """The status and the body of a response whose head is as simple as most are; None where h11 has to look at it."""
    first, *lines = head.split(b"\r\n")
    started = _STATUS_LINE.fullmatch(first)
    if started is None:
        return None
    fields: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name = field[1].lower()
        if name in _ONCE:
            if fields:
                return None
            fields[name] = field[2]
    coding, length = fields.get(b"transfer-encoding", b"chunked"), fields.get(b"content-length", b"0")
    if coding.lower() != b"chunked" or not length.isdigit():
        return None
    return int(started[1]), _body_of(int(started[1]), fields)


def _body_of(status: int, fields: Mapping[bytes, bytes]) -> Body:
    # By whoever read the head, any other coding was refused, and a length that is no number or of which there are two.
    if status in (204, 304):
        return SizedBody(0)
    if b"transfer-encoding" in fields:
        return ChunkedBody()
    return SizedBody(int(fields[b"content-length"])) if b"content-length" in fields else OpenBody()


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def __bytes__(self) -> bytes:
        # Our own words, checked when they were configured.
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("ascii") + self.body

    def sent_by_h11(self) -> h11.Connection:
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method=self.method, target=self.target, headers=self.headers))
        connection.send(h11.Data(self.body))
        connection.send(h11.EndOfMessage())
        return connection


@asynccontextmanager
async def exchange(
    server: Server, method: str, path: str, body: bytes = b"", idle: IdleConnections | None = None
) -> AsyncGenerator[Reply, None]:
    """Send a request, with `body` as JSON if there is one, and yield its reply; raises EngineError.

    `idle`: where a connection may be taken from, and left for the next one.
    """
    request = _Request(method, server.prefix + path, _headers(server, body, idle is not None), body)
    silence = trio.CancelScope()
    kept = None if idle is None else idle.take(trio.current_time())
    stream: trio.abc.Stream | None = kept
    reply: Reply | None = None
    try:
        with silence:
            if kept is not None:
                reply = await _reply_on_kept(kept, request, silence)
            if reply is None:
                silence.deadline = trio.current_time() + CONNECT_TIMEOUT
                try:
                    stream = fresh = await _connect(server)
                    reply = await _reply_on(fresh, request, silence)
                except FAULTS as fault:
                    raise engine_error(fault) from None
            silence.deadline = inf
            yield reply
        if silence.cancelled_caught:
            raise EngineError("the engine fell silent")
    finally:
        if isinstance(stream, trio.SocketStream):
            if idle is None or reply is None or not reply.is_over():
                stream.socket.close()
            elif server.ends_streams and server.socket is not None:
                stream.socket.close()
                with contextlib.suppress(OSError):
                    if spare := _unix_stream(server.socket):
                        idle.give(spare, trio.current_time())
            else:
                idle.give(stream, trio.current_time())
        elif stream is not None:
            await trio.aclose_forcefully(stream)


async def _reply_on(stream: trio.abc.Stream, request: _Request, silence: trio.CancelScope) -> Reply:
    reply = Reply(stream, request.sent_by_h11, silence)
    silence.deadline = trio.current_time() + SILENCE_TIMEOUT
    await _send(bytes(request), stream)
    await reply.read_head()
    return reply


async def _reply_on_kept(stream: trio.SocketStream, request: _Request, silence: trio.CancelScope) -> Reply | None:
    """None where the server closed the connection just when it was taken: then the request was not begun, and a fresh one is."""
    try:
        return await _reply_on(stream, request, silence)
    except (*FAULTS, EngineError):
        stream.socket.close()
        return None


async def _send(request: bytes, stream: trio.abc.Stream) -> None:
    if (sent := send_now(stream, request)) < len(request):
        await stream.send_all(request[sent:])


def _headers(server: Server, body: bytes, keep: bool) -> list[tuple[str, str]]:
    headers = [("Host", server.authority), ("Accept-Encoding", "identity"), ("Connection", "keep-alive" if keep else "close")]
    if server.key:
        headers.append(("Authorization", f"Bearer {server.key}"))
    if body:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return headers


async def _connect(server: Server) -> trio.abc.Stream:
    if server.socket is not None:
        return _unix_stream(server.socket) or await trio.open_unix_socket(str(server.socket))
    if server.tls:
        stream = await trio.open_ssl_over_tcp_stream(server.host, server.port, https_compatible=True)
        await stream.do_handshake()
        return stream
    return await _tcp_stream(server.host, server.port)


async def _tcp_stream(host: str, port: int) -> trio.SocketStream:
    """A connection to an address, without the race between addresses that a name may need: it costs more than a small answer."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return await trio.open_tcp_stream(host, port)
    sock = trio.socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.connect((host, port))
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


def _unix_stream(path: Path) -> trio.SocketStream | None:
    """A connection to a Unix socket; None where its queue is full just now. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(str(path))
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    except BlockingIOError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise


FAULTS = (h11.ProtocolError, BodyError, trio.BrokenResourceError, OSError)
"""What a server, or the way to it, does wrong."""


def engine_error(fault: Exception) -> EngineError:
    """One of FAULTS as its reader is told of it."""
    if isinstance(fault, h11.ProtocolError | BodyError):
        return EngineError("the engine does not speak HTTP")
    if isinstance(fault, trio.BrokenResourceError):
        return EngineError("the connection to the engine broke")
    return EngineError("nothing listens where the engine should")
