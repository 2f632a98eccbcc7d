"""Runs one ask as a task and hands its events to the caller, within a time limit. Decides no answer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from daemon.api.backend import AskEvent
from daemon.api.event_stream import event_stream
from protocol.wire.errors import Code, RemoteError

_BUFFERED_EVENTS = 64
"""A reader that stops reading stops the engine after this many events."""

Emit = Callable[[AskEvent], Awaitable[None]]


@asynccontextmanager
async def answer_stream(work: Callable[[Emit], Awaitable[None]], timeout_s: float) -> AsyncIterator[AsyncIterator[AskEvent]]:
    """Run `work(emit)` for at most `timeout_s` seconds while the caller reads what it emits; leaving cancels the work."""

    async def limited(emit: Callable[[AskEvent | RemoteError], Awaitable[None]]) -> None:
        with trio.move_on_after(timeout_s) as scope:
            await work(emit)
        if scope.cancelled_caught:
            raise RemoteError(Code.DEADLINE, f"no answer within {timeout_s:g} s")

    opened: AbstractAsyncContextManager[AsyncIterator[AskEvent]] = event_stream(limited, _BUFFERED_EVENTS)
    async with opened as events:
        yield events
