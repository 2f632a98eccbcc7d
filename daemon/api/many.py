"""One or several asks as one stream of numbered events: `n` choices of one request. Decides nothing about peers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from daemon.api.backend import AskEvent, AskRequest, Backend
from protocol.wire.errors import RemoteError

Numbered = tuple[int, AskEvent]


class _First:
    """The events of a lone ask; a wait that is cancelled loses nothing that the ask itself does not lose."""

    def __init__(self, events: AsyncIterator[AskEvent]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[Numbered]:
        return self

    async def __anext__(self) -> Numbered:
        return 0, await anext(self._events)


class _Merged:
    """The events of several asks as they come; raises the first RemoteError of any."""

    def __init__(self, receive: "trio.MemoryReceiveChannel[Numbered | RemoteError]") -> None:
        self._receive = receive

    def __aiter__(self) -> AsyncIterator[Numbered]:
        return self

    async def __anext__(self) -> Numbered:
        try:
            event = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(event, RemoteError):
            raise event
        return event


@asynccontextmanager
async def ask_all(backend: Backend, requests: Sequence[AskRequest]) -> AsyncIterator[AsyncIterator[Numbered]]:
    """The numbered events of all `requests`, run at once; leaving, or the failure of one, cancels all of them."""
    if len(requests) == 1:
        async with backend.ask(requests[0]) as events:
            yield _First(events)
        return
    send, receive = trio.open_memory_channel[Numbered | RemoteError](0)

    async def run(number: int, request: AskRequest, into: "trio.MemorySendChannel[Numbered | RemoteError]") -> None:
        async with into:
            try:
                async with backend.ask(request) as events:
                    async for event in events:
                        await into.send((number, event))
            except RemoteError as error:
                await into.send(error)

    failure: RemoteError | None = None
    async with receive, trio.open_nursery() as nursery:
        async with send:
            for number, request in enumerate(requests):
                nursery.start_soon(run, number, request, send.clone())
        # A RemoteError must leave as itself, not inside the nursery's exception group.
        try:
            yield _Merged(receive)
        except RemoteError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
