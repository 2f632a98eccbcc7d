"""HTTP/1.1 on trio streams in front of an ASGI app, with every size and wait bounded. Knows no route and no node.

h11 directly rather than an ASGI server: a client's disconnect must cancel its generation at once, which hypercorn's
`is_disconnected()` never reports (docs/decisions.md).
"""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import h11
import msgspec
import structlog
import trio

from daemon.api.errors import ApiError, error_object
from daemon.api.http_wire import HttpWire, PlainRequest
from daemon.eager_send import send_now
from daemon.hang_ups import HangUps

log = structlog.get_logger("swarmd.api")

Request = PlainRequest | h11.Request

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[[], Awaitable[AsgiMessage]], Callable[[AsgiMessage], Awaitable[None]]], Awaitable[None]]
Observer = Callable[[Scope, int], None]
"""(scope, status) after each exchange, for metrics; status 499 where the client left first."""

_READ_BYTES = 64 << 10

_LINGER_SECONDS = 1.0

BYTES_A_TURN = 16 << 10
"""Of one answer that the kernel took at once, before all others have their turn: an engine may never let its reader wait."""

_LEAST_BYTES = 2 << 10
"""That a write counts for: to make a small one takes as long."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one listener; research: header 5 s, idle 60 s, body floor 1 KiB/s, header 16 KiB of 100 fields, body 1 MiB."""

    header_bytes: int = 16 << 10
    header_fields: int = 100
    body_bytes: int = 1 << 20
    clients: int = 64
    header_seconds: float = 5.0
    idle_seconds: float = 60.0
    body_floor: int = 1 << 10
    """Bytes per second that a request's body must reach, after 5 s of grace."""
    reader_seconds: float = 120.0
    """A client that takes nothing of its answer for so long has left: a slot of an engine waits for it, here or at a peer."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a connection came in: the control socket ("unix") or loopback ("tcp"), with the authority a Host header must name."""

    kind: str
    port: int = 0


class _Refused(Exception):
    """A request that is answered without asking the app."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class HttpServer:
    """Serves an ASGI app on accepted streams; `drain()` lets running exchanges finish and closes idle connections."""

    def __init__(self, app: AsgiApp, limits: HttpLimits, observe: Observer) -> None:
        self._app = app
        self._limits = limits
        self._observe = observe
        self._clients = 0
        self._turned_away = 0
        self._idle: dict[trio.CancelScope, bool] = {}
        """Waits for a request, the longest first, and whether the connection had one before."""
        self._draining = False
        self.hang_ups = HangUps()

    async def run(self) -> None:
        """Hear clients leave, all in one task, until cancelled. Without it only a write notices that one has left."""
        await self.hang_ups.run()

    def drain(self) -> None:
        """Stop keeping connections alive: idle ones close now, busy ones after their response."""
        self._draining = True
        for scope in list(self._idle):
            scope.cancel()

    async def serve(self, stream: trio.SocketStream, listener: Listener) -> None:
        """Serve one client until it leaves, breaks a limit or the server drains. Never raises for the client's faults."""
        if self._draining or (self._clients >= self._limits.clients and not self._make_room()):
            await self._turn_away(stream)
            return
        self._clients += 1
        try:
            await _Connection(self._app, stream, listener, self._limits, self._observe, self).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception as error:  # noqa: BLE001 - one connection's bug must not end the daemon
            log.error("connection failed", error=repr(error))
        finally:
            self._clients -= 1
            stream.socket.close()

    def _make_room(self) -> bool:
        """End the connection that was kept alive for longest and has no request; False where each has one, or had none yet."""
        longest = next((scope for scope, had_one in self._idle.items() if had_one), None)
        if longest is not None:
            del self._idle[longest]
            longest.cancel()
        return longest is not None

    async def _turn_away(self, stream: trio.SocketStream) -> None:
        """Say that every place is taken, where that is not said to many already."""
        self._turned_away += 1
        try:
            if not self._draining and self._turned_away <= self._limits.clients:
                reason = f"{self._clients} programs are connected, which is the most; limits.local_clients allows more"
                await _say_and_end(stream, _refusal(HttpWire(0), ApiError(503, "overloaded", reason)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._turned_away -= 1
            stream.socket.close()

    async def wait_request(self, connection: "_Connection", first: bool) -> Request | None:
        """The next request of a connection; None when it idles out, ends, or the server drains."""
        if self._draining:
            return None
        seconds = self._limits.header_seconds if first else self._limits.idle_seconds
        request: Request | None = None
        with trio.move_on_after(seconds) as scope:
            self._idle[scope] = not first
            try:
                request = await connection.next_request()
            finally:
                self._idle.pop(scope, None)
        return request


def _refusal(http: HttpWire, error: ApiError) -> bytes:
    """A whole response, the last one of its connection."""
    body = msgspec.json.encode(error_object(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    if error.status == 503:
        headers.append((b"retry-after", b"1"))
    return http.send_head(error.status, headers) + http.send_data(body) + http.send_end()


async def _say_and_end(stream: trio.SocketStream, reply: bytes) -> None:
    """Send the last response, and take what the client still says: a connection closed over that would lose the response."""
    with trio.move_on_after(_LINGER_SECONDS):
        await stream.send_all(reply)
        await stream.send_eof()
        while await stream.receive_some(_READ_BYTES):
            pass


class _Connection:
    """One client's connection: requests one after another, each ended where the client leaves."""

    def __init__(
        self,
        app: AsgiApp,
        stream: trio.SocketStream,
        listener: Listener,
        limits: HttpLimits,
        observe: Observer,
        server: HttpServer,
    ) -> None:
        self._app = app
        self._stream = stream
        self._listener = listener
        self._limits = limits
        self._observe = observe
        self._server = server
        self._http = HttpWire(limits.header_bytes)

    async def run(self) -> None:
        first = True
        while True:
            try:
                request = await self._server.wait_request(self, first)
                if request is None:
                    return
                body = await self._read_body(request)
                await self._exchange(request, body)
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint or 400, str(error))
                return
            except _Refused as refused:
                await self._refuse(refused.status, refused.message)
                return
            if not self._http.begin_next():
                return
            first = False

    async def next_request(self) -> Request | None:
        event = await self._next_event()
        if isinstance(event, PlainRequest | h11.Request):
            if len(event.headers) > self._limits.header_fields:
                raise _Refused(431, f"more than {self._limits.header_fields} header fields")
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise _Refused(400, "a request has one length, not two")
            return event
        return None

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(_READ_BYTES))
                continue
            return event

    async def _read_body(self, request: Request) -> bytes:
        if any(name == b"content-encoding" for name, _ in request.headers):
            raise _Refused(415, "compressed request bodies are not accepted")
        if any(name == b"content-length" and int(value) > self._limits.body_bytes for name, value in request.headers):
            raise self._too_long()
        if any(name == b"expect" and value.lower() == b"100-continue" for name, value in request.headers):
            await self._stream.send_all(self._http.send_continue())
        body = bytearray()
        started = trio.current_time()
        while True:
            deadline = started + self._limits.header_seconds + len(body) / self._limits.body_floor
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                with trio.move_on_at(deadline) as scope:
                    event = await self._next_event()
                if scope.cancelled_caught:
                    raise _Refused(408, "the request body came too slowly")
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limits.body_bytes:
                    raise self._too_long()
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                raise _Refused(400, "the request body ended early")

    def _too_long(self) -> _Refused:
        return _Refused(413, f"the request body is over {self._limits.body_bytes} bytes")

    async def _exchange(self, request: Request, body: bytes) -> None:
        scope = self._scope(request)
        exchange = _Exchange(self._http, self._stream, body, request.method == b"HEAD", self._limits.reader_seconds)
        with exchange.scope, self._server.hang_ups.heard(self._stream.socket.fileno(), exchange.leave):
            await self._answer(scope, exchange)
        self._observe(scope, exchange.status if exchange.finished else 499)
        if exchange.left:
            raise trio.BrokenResourceError

    async def _answer(self, scope: Scope, exchange: "_Exchange") -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - one request's bug must not end the daemon's API
            log.error("request failed", path=scope["path"], error=repr(error))
            exchange.left = exchange.status != 0  # what began cannot be answered otherwise: the connection ends
            if not exchange.left:
                exchange.status, exchange.finished = 500, True
                await self._refuse(500, "internal error")

    async def _refuse(self, status: int, message: str) -> None:
        if not self._http.may_refuse:
            return
        await _say_and_end(self._stream, _refusal(self._http, ApiError(status, "bad_request", message)))

    def _scope(self, request: Request) -> Scope:
        target, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(target.decode("ascii", "replace")),
            "raw_path": target,
            "query_string": query,
            "root_path": "",
            "headers": [(bytes(name), bytes(value)) for name, value in request.headers],
            "client": None,
            "server": None,
            "state": {"listener": self._listener},
        }


class _Exchange:
    """The ASGI side of one request: `receive` yields the body once, `send` writes through h11."""

    def __init__(self, http: HttpWire, stream: trio.SocketStream, body: bytes, head: bool, reader_seconds: float) -> None:
        self._http = http
        self._stream = stream
        self._reader_seconds = reader_seconds
        self._body: bytes | None = body
        self._head = head
        self._started: AsgiMessage | None = None
        self.status = 0
        self.left = False
        self.finished = False
        self.scope = trio.CancelScope()
        self._is_cut_off = False
        self._sent_at_once = 0

    def leave(self) -> None:
        """The client has left: cancellation, not an exception, ends the app, whatever nurseries it is inside of."""
        self.left = True
        self.scope.cancel()

    async def receive(self) -> AsgiMessage:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self._started = message
            return
        payload = b""
        if self._started is not None:
            started, self._started = self._started, None
            self.status = started["status"]
            headers = [*started.get("headers", ()), (b"server", b"swarmd")]
            payload += self._http.send_head(self.status, headers)
        body = cast("bytes", message.get("body", b""))
        if body and not self._head:
            payload += self._http.send_data(body)
        if not message.get("more_body", False):
            payload += self._http.send_end()
        if payload:
            await self._write(payload)
        self.finished = not message.get("more_body", False)

    async def _write(self, payload: bytes) -> None:
        was_cut_off, self._is_cut_off = self._is_cut_off, True
        try:
            if not was_cut_off:  # by a time limit, in the middle of a write: nothing can follow that
                await self._send(payload)
                self._is_cut_off = False
                return
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.leave()
        await trio.sleep_forever()

    async def _send(self, payload: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = send_now(self._stream, payload)
        self._sent_at_once += max(sent, _LEAST_BYTES)
        if sent < len(payload):
            self._sent_at_once = 0
            await self._send_slowly(memoryview(payload)[sent:])
        elif self._sent_at_once >= BYTES_A_TURN:
            self._sent_at_once = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_slowly(self, rest: memoryview) -> None:
        while rest:
            with trio.move_on_after(self._reader_seconds) as patience:
                rest = rest[await self._stream.socket.send(rest) :]
            if patience.cancelled_caught:
                raise trio.BrokenResourceError
