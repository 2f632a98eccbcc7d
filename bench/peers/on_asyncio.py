"""Runs an asyncio side, as `on_trio` runs a trio one. Standard library only; knows no protocol."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from bench.peers.measure import Caller, measure
from bench.peers.program import Program

Server = Callable[[], AbstractAsyncContextManager[str]]
"""Serves while entered; gives its address."""

Dial = Callable[[str], AbstractAsyncContextManager[Caller]]
"""Connects to the server at an address."""


def run(server: Server, dial: Dial) -> None:
    """Play the role that the command line asks for."""
    asyncio.run(_run(Program(), server, dial))


async def _run(program: Program, server: Server, dial: Dial) -> None:
    if not program.address:
        async with server() as address:
            program.say(address=address)
            await asyncio.to_thread(program.next_order)
        return
    async with dial(program.address) as caller:
        program.say(ready=True)
        while order := await asyncio.to_thread(program.next_order):
            program.say_measured(await measure(caller, order.load, order.seconds, _together))


async def _together(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    await asyncio.gather(*(task() for task in tasks))
