"""Work in a task whose events are read as they come: leaving ends the work, an error arrives as itself. Knows no event."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Generic, TypeVar

import trio

from protocol.wire.errors import RemoteError

T = TypeVar("T")

Emit = Callable[[T | RemoteError], Awaitable[None]]
"""Hands one event to the reader, and waits where it does not read; a RemoteError ends the reading."""


class Arrivals(Generic[T]):
    """An iterator whose wait may be cancelled without losing an event; raises a RemoteError that arrives."""

    def __init__(self, receive: "trio.MemoryReceiveChannel[T | RemoteError]") -> None:
        self._receive = receive
        self._error: RemoteError | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def ready(self) -> list[T]:
        """Takes the events that are here already, without waiting."""
        events: list[T] = []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while self._error is None:
                event = self._receive.receive_nowait()
                if isinstance(event, RemoteError):
                    self._error = event
                else:
                    events.append(event)
        return events

    async def __anext__(self) -> T:
        if self._error is not None:
            raise self._error
        try:
            event = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(event, RemoteError):
            raise event
        return event


def ready_of(events: AsyncIterator[T]) -> list[T]:
    """Takes the events that are here already, none where the iterator cannot say so."""
    ready: Callable[[], list[T]] | None = getattr(events, "ready", None)
    return [] if ready is None else ready()


@asynccontextmanager
async def event_stream(work: Callable[[Emit[T]], Awaitable[None]], buffered: int = 0) -> AsyncIterator[Arrivals[T]]:
    """Run `work(emit)` while the caller reads what it emits; at most `buffered` events wait for a slow reader."""
    send, receive = trio.open_memory_channel[T | RemoteError](buffered)

    async def run() -> None:
        async with send:
            try:
                await work(send.send)
            except RemoteError as error:
                await send.send(error)

    failure: RemoteError | None = None
    async with receive, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        # A RemoteError must leave as itself, not inside the nursery's exception group.
        try:
            yield Arrivals(receive)
        except RemoteError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
