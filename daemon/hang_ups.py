"""Hears the other ends of sockets hang up, with one epoll for all of them, and reads nothing of what they say.

A task for each socket would cost more than a small answer.
"""

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio


class HangUps:
    """Hears nothing before `run` and after it."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._told: dict[int, Callable[[], None]] = {}

    @property
    def are_heard(self) -> bool:
        return self._epoll is not None

    async def run(self) -> None:
        """Hear until cancelled."""
        with select.epoll() as self._epoll:
            try:
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    for descriptor, _ in self._epoll.poll(0):
                        if tell := self._told.get(descriptor):
                            tell()
            finally:
                self._epoll = None

    @contextmanager
    def heard(self, descriptor: int, tell: Callable[[], None]) -> Iterator[None]:
        """While the context lasts, `tell` is called when the other end of the socket has closed or says no more, maybe twice."""
        self._told[descriptor] = tell
        epoll = self._epoll
        if epoll is not None:
            with suppress(OSError):
                epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)
        try:
            yield
        finally:
            del self._told[descriptor]
            if epoll is not None and not epoll.closed:
                with suppress(OSError):
                    epoll.unregister(descriptor)
