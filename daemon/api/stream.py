"""Server-sent events for an answer in progress: runs the ask, writes each event as text, and ends it if the client leaves."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from daemon.api.errors import ApiError, error_response, of_remote
from protocol.wire.errors import RemoteError

E = TypeVar("E")

KEEP_ALIVE_SECONDS = 15.0
"""A comment line at this interval keeps proxies and clients from timing out on a long round."""


def sse(value: object, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + msgspec.json.encode(value) + b"\n\n"


def _no_headers(_: object) -> Mapping[str, str]:
    return {}


def _is_never_last(_: object) -> bool:
    return False


class AskStream(Response, Generic[E]):
    """Streams `render(event)` for every event that `work(emit)` emits; an error before the first is a plain HTTP error.

    Headers leave with the first event that is rendered. `head(None)` gives those of every stream; an event that comes before and
    for which `head` has headers adds them and is not rendered. An event that `is_last` leaves with `closing`, in one write.
    """

    def __init__(
        self,
        work: Callable[[Callable[[E], Awaitable[None]]], Awaitable[None]],
        render: Callable[[E], Iterable[bytes]],
        render_error: Callable[[ApiError], bytes],
        closing: bytes = b"",
        head: Callable[[E | None], Mapping[str, str]] = _no_headers,
        is_last: Callable[[E], bool] = _is_never_last,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store", **head(None)})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._work = work
        self._render = render
        self._render_error = render_error
        self._closing = closing
        self._head = head
        self._is_last = is_last
        self._started = False
        self._held = b""
        self._is_writing = False
        self._turn = trio.lowlevel.ParkingLot()
        self._written_at = trio.current_time()
        self._is_kept_alive = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: ApiError | None = None
        async with trio.open_nursery() as nursery:

            async def emit(event: E) -> None:
                if self._started:
                    await self._pass_on(event, send)
                elif more := self._head(event):
                    self.headers.update(more)  # with its first piece: what says who answers is followed by the answer
                else:
                    if not self._is_kept_alive:
                        self._is_kept_alive = True
                        nursery.start_soon(self._keep_alive, send)
                    await self._pass_on(event, send)

            try:
                await self._work(emit)
            except RemoteError as error:
                failure = of_remote(error, self.headers.get("x-request-id"))
            while self._is_writing:  # a comment, to a client that reads slowly: half of one would be the connection's last
                await self._turn.park()
            nursery.cancel_scope.cancel()
        if failure is None:
            await self._write(send, self._closing, last=True)
        elif self._started:
            await self._write(send, self._render_error(failure), last=True)
        else:
            await error_response(failure)(scope, receive, send)

    async def _pass_on(self, event: E, send: Send) -> None:
        text = b"".join(self._render(event))
        if self._is_last(event):
            self._held += text
        elif text:
            await self._write(send, text)

    async def _keep_alive(self, send: Send) -> None:
        """Comment lines while there is no event."""
        while True:
            due = self._written_at + KEEP_ALIVE_SECONDS
            await trio.sleep_until(due)
            if self._started and self._written_at + KEEP_ALIVE_SECONDS <= due:
                await self._write(send, b": waiting\n\n")

    async def _write(self, send: Send, payload: bytes, last: bool = False) -> None:
        """One write at a time: the choices of an answer and the comments take turns."""
        while self._is_writing:
            await self._turn.park()
        payload, self._held = self._held + payload, b""
        self._is_writing = True
        try:
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if payload or last:
                await send({"type": "http.response.body", "body": payload, "more_body": not last})
        finally:
            self._is_writing = False
            self._written_at = trio.current_time()
            self._turn.unpark()
