"""Runs a trio side: a server that serves until its input closes, or a caller that takes orders. Knows no protocol."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from bench.peers.measure import Caller, measure
from bench.peers.program import Program

Server = Callable[[], AbstractAsyncContextManager[str]]
"""Serves while entered; gives its address."""

Dial = Callable[[str], AbstractAsyncContextManager[Caller]]
"""Connects to the server at an address."""


def run(server: Server, dial: Dial) -> None:
    """Play the role that the command line asks for."""
    trio.run(_run, Program(), server, dial)


async def _run(program: Program, server: Server, dial: Dial) -> None:
    if not program.address:
        async with server() as address:
            program.say(address=address)
            await trio.to_thread.run_sync(program.next_order)
        return
    async with dial(program.address) as caller:
        program.say(ready=True)
        while order := await trio.to_thread.run_sync(program.next_order):
            program.say_measured(await measure(caller, order.load, order.seconds, _together))


async def _together(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
