"""Runs one load against one server and counts. Standard library only and of no event loop, so that every side is timed alike."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.loads import ACK, ITEMS_PER_STREAM, Kind, Load

Together = Callable[[Sequence[Callable[[], Awaitable[None]]]], Awaitable[None]]
"""Runs the tasks at the same time and returns once all have ended: a trio nursery or asyncio.gather."""


class Caller(Protocol):
    """What a side's caller can do; each method waits for the whole reply and raises where it did not come."""

    async def unary(self, kind: Kind, body: bytes) -> bytes: ...

    async def push(self, body: bytes) -> int:
        """Send all of `body` one way; the bytes that the receiver says it got."""

    async def items(self, count: int, size: int) -> int:
        """Take a stream of `count` items; how many bytes came."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`cut` counts streams that ended before their last item without an error: what came of them is in `units`."""

    units: float
    seconds: float
    cut: int = 0


class WrongReplyError(Exception):
    """A reply did not hold what it must: the figure would be worthless."""


async def measure(caller: Caller, load: Load, seconds: float, together: Together) -> Measured:
    """Run `load` for `seconds` and let what is in flight end; what was done in which time."""
    body = bytes(load.size) if load.kind is not Kind.ITEMS else b""
    units = 0
    start = time.perf_counter()
    end = start + seconds

    async def work() -> None:
        nonlocal units
        while True:
            done = await _once(caller, load, body)
            units += done
            if time.perf_counter() >= end:
                return

    await together([work] * load.in_flight)
    elapsed = time.perf_counter() - start
    return Measured(units / 1e6 if load.kind is Kind.PUSH else units, elapsed)


async def _once(caller: Caller, load: Load, body: bytes) -> int:
    if load.kind is Kind.PUSH:
        return _check(await caller.push(body), load.size, load.size)
    if load.kind is Kind.ITEMS:
        return _check(await caller.items(ITEMS_PER_STREAM, load.size), ITEMS_PER_STREAM * load.size, ITEMS_PER_STREAM)
    reply = await caller.unary(load.kind, body)
    return _check(len(reply), load.size if load.kind is Kind.ECHO else len(ACK), 1)


def _check(got: int, wanted: int, units: int) -> int:
    if got != wanted:
        raise WrongReplyError(f"{got} bytes came where {wanted} must")
    return units
