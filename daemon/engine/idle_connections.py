"""Connections to an engine for the next request to take: read to an answer's end, or fresh. Sends nothing and reads nothing."""

import select
from collections import deque

import trio

MOST = 2
"""Kept at once: a server like llama.cpp's has a thread waiting at each."""

SECONDS = 3.0
"""That one is kept; servers close theirs after five (llama.cpp, uvicorn)."""


class IdleConnections:
    """The newest is taken first. One that was closed meanwhile, or on which came what nobody asked for, is not given out."""

    def __init__(self) -> None:
        self._kept: deque[tuple[trio.SocketStream, float]] = deque()
        self._most = MOST

    def take(self, now: float) -> trio.SocketStream | None:
        """A connection to use, None where there is none; `now` on the clock of `give`, in seconds."""
        while self._kept:
            stream, since = self._kept.pop()
            if now - since < SECONDS and _is_silent(stream):
                return stream
            stream.socket.close()
        return None

    def give(self, stream: trio.SocketStream, now: float) -> None:
        """Keep `stream`, the oldest making room."""
        self._kept.append((stream, now))
        if len(self._kept) > self._most:
            self._kept.popleft()[0].socket.close()

    def close(self) -> None:
        """Close all of them, and keep none from now on."""
        self._most = 0
        while self._kept:
            self._kept.pop()[0].socket.close()


def _is_silent(stream: trio.SocketStream) -> bool:
    poll = select.poll()
    poll.register(stream.socket.fileno(), select.POLLIN | select.POLLRDHUP)
    return not poll.poll(0)
