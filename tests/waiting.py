"""Waiting for what nothing announces, in tests over real sockets."""

from collections.abc import Callable

import trio


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for `condition`, so many seconds of our own running time: what a busy or frozen machine takes does not count."""
    turns = 0
    while not condition():
        assert (turns := turns + 1) <= 100 * seconds, "it did not come to be"
        await trio.sleep(0.01)
