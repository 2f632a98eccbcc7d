"""Runs one ask as a task and hands its events to the caller: leaving the context cancels the work, an error arrives as itself."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from daemon.api.backend import AskEvent
from protocol.wire.errors import Code, RemoteError

_BUFFERED_EVENTS = 64
"""A reader that stops reading stops the engine after this many events."""

Emit = Callable[[AskEvent], Awaitable[None]]


class _Events:
    """An iterator whose wait may be cancelled without losing an event; raises the ask's RemoteError where it ended in one."""

    def __init__(self, receive: "trio.MemoryReceiveChannel[AskEvent | RemoteError]") -> None:
        self._receive = receive

    def __aiter__(self) -> AsyncIterator[AskEvent]:
        return self

    async def __anext__(self) -> AskEvent:
        try:
            event = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(event, RemoteError):
            raise event
        return event


@asynccontextmanager
async def answer_stream(work: Callable[[Emit], Awaitable[None]], timeout_s: float) -> AsyncIterator[AsyncIterator[AskEvent]]:
    """Run `work(emit)` for at most `timeout_s` seconds while the caller reads what it emits."""
    send, receive = trio.open_memory_channel[AskEvent | RemoteError](_BUFFERED_EVENTS)

    async def run() -> None:
        async with send:
            try:
                with trio.move_on_after(timeout_s) as scope:
                    await work(send.send)
                if scope.cancelled_caught:
                    await send.send(RemoteError(Code.DEADLINE, f"no answer within {timeout_s:g} s"))
            except RemoteError as error:
                await send.send(error)

    async with receive:
        failure: RemoteError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            # A RemoteError must leave as itself, not inside the nursery's exception group.
            try:
                yield _Events(receive)
            except RemoteError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
