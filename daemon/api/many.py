"""One or several asks as one stream of numbered events: `n` choices of one request. Decides nothing about peers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from daemon.api.backend import AskEvent, AskRequest, Backend
from daemon.api.event_stream import Emit, event_stream, ready_of
from protocol.wire.errors import RemoteError

Numbered = tuple[int, AskEvent]


class _First:
    """The events of a lone ask; a wait that is cancelled loses nothing that the ask itself does not lose."""

    def __init__(self, events: AsyncIterator[AskEvent]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[Numbered]:
        return self

    def ready(self) -> list[Numbered]:
        """Takes the events that are here already, where the ask can say so."""
        return [(0, event) for event in ready_of(self._events)]

    async def __anext__(self) -> Numbered:
        return 0, await anext(self._events)


@asynccontextmanager
async def ask_all(backend: Backend, requests: Sequence[AskRequest]) -> AsyncIterator[AsyncIterator[Numbered]]:
    """The numbered events of all `requests`, run at once; leaving, or the failure of one, cancels all of them."""
    if len(requests) == 1:
        async with backend.ask(requests[0]) as events:
            yield _First(events)
        return

    async def all_of(emit: Emit[Numbered]) -> None:
        async with trio.open_nursery() as nursery:
            for number, request in enumerate(requests):
                nursery.start_soon(_one_of, backend, (number, request), emit)

    async with event_stream(all_of) as numbered:
        yield numbered


async def _one_of(backend: Backend, numbered: tuple[int, AskRequest], emit: Emit[Numbered]) -> None:
    number, request = numbered
    try:
        async with backend.ask(request) as events:
            async for event in events:
                await emit((number, event))
    except RemoteError as error:
        await emit(error)
