"""One or several asks as one stream of numbered events: `n` choices of one request. Decides nothing about peers."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from daemon.api.backend import AskEvent, AskRequest, Backend
from protocol.wire.errors import RemoteError

Numbered = tuple[int, AskEvent]
Emit = Callable[[Numbered], Awaitable[None]]


async def ask_all(backend: Backend, requests: Sequence[AskRequest], emit: Emit) -> None:
    """Emit the numbered events of all `requests`, run at once; raises the first's failure, which cancels all of them."""
    failures: list[RemoteError] = []

    async def one(number: int, request: AskRequest) -> None:
        async def numbered(event: AskEvent) -> None:
            await emit((number, event))

        await backend.ask(request, numbered)

    async def guarded(number: int, request: AskRequest) -> None:
        try:
            await one(number, request)
        except RemoteError as error:  # must leave as itself, not inside the nursery's exception group
            failures.append(error)
            nursery.cancel_scope.cancel()

    if len(requests) == 1:
        await one(0, requests[0])
        return
    async with trio.open_nursery() as nursery:
        for number, request in enumerate(requests):
            nursery.start_soon(guarded, number, request)
    if failures:
        raise failures[0]
