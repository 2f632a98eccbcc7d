"""Server-sent events for an answer in progress: opens the ask, turns each event into text, and ends it if the client leaves."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from itertools import chain
from typing import Generic, TypeVar

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from daemon.api.errors import ApiError, error_response, of_remote
from daemon.api.event_stream import ready_of
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


class AskStream(Response, Generic[E]):
    """Streams `render(event)` for every event of an ask; an error before the first event is a plain HTTP error.

    Headers leave with the first event that is rendered. `head(None)` gives those of every stream; an event that comes before and
    for which `head` has headers adds them and is not rendered.
    """

    def __init__(
        self,
        events: AbstractAsyncContextManager[AsyncIterator[E]],
        render: Callable[[E], Iterable[bytes]],
        render_error: Callable[[ApiError], bytes],
        closing: bytes = b"",
        head: Callable[[E | None], Mapping[str, str]] = _no_headers,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store", **head(None)})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._events = events
        self._render = render
        self._render_error = render_error
        self._closing = closing
        self._head = head
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._events as events:
                while (event := await self._next(events, send)) is not None:
                    if not self._started and (more := self._head(event)):
                        self.headers.update(more)  # with its first piece: what says who answers is followed by the answer
                        continue
                    # What came meanwhile leaves with it: one write, however many events.
                    at_once = (event, *ready_of(events))
                    await self._write(send, b"".join(chain.from_iterable(map(self._render, at_once))))
        except RemoteError as error:
            await self._fail(scope, receive, send, of_remote(error))
            return
        await self._write(send, self._closing, last=True)

    async def _next(self, events: AsyncIterator[E], send: Send) -> E | None:
        """The next event, with comment lines while there is none; the iterator must lose nothing when a wait is cancelled."""
        event: E | None = None
        waiting = True
        while waiting:
            with trio.move_on_after(KEEP_ALIVE_SECONDS) as wait:
                event = await anext(events, None)
            waiting = wait.cancelled_caught
            if waiting and self._started:
                await self._write(send, b": waiting\n\n")
        return event

    async def _write(self, send: Send, payload: bytes, last: bool = False) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if payload or last:
            await send({"type": "http.response.body", "body": payload, "more_body": not last})

    async def _fail(self, scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
        if not self._started:
            await error_response(error)(scope, receive, send)
            return
        await self._write(send, self._render_error(error), last=True)
