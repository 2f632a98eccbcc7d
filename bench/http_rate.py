"""Sends requests at fixed times, whatever came back, and times the replies. Blocks its thread; knows nothing of what is asked.

Not on trio: epoll counts in milliseconds, so a timer of it is late by half of one in the mean, which is a quarter of what a short
answer takes. `select` counts in microseconds.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.http_client import READ_BYTES, WrongReplyError, reply_ended


@dataclass(slots=True)
class _Connection:
    sock: socket.socket
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def fileno(self) -> int:
        return self.sock.fileno()


def at_times(path: str, wanted: bytes, due: Sequence[float], connections: int) -> list[float]:
    """Send `wanted` to a Unix socket at each of `due` (seconds from now, ascending) over at most `connections` kept connections.

    Returns the seconds from when each was due to when its reply was read; raises WrongReplyError for all but status 200.
    """
    free: list[_Connection] = []
    busy: list[_Connection] = []
    waiting: deque[float] = deque()
    taken: list[float] = []
    start, number = time.perf_counter(), 0
    try:
        while len(taken) < len(due):
            now = time.perf_counter() - start
            while number < len(due) and due[number] <= now:
                waiting.append(due[number])
                number += 1
            while waiting and (free or len(busy) < connections):
                connection = free.pop() if free else _open(path)
                connection.due = waiting.popleft()
                connection.sock.sendall(wanted)
                busy.append(connection)
            left = max(0.0, due[number] - (time.perf_counter() - start)) if number < len(due) else 10.0
            readable, _, _ = select.select(busy, (), (), left)
            if not readable and number == len(due):
                raise WrongReplyError("a reply did not come within 10 s")
            for connection in readable:
                if _is_whole(connection):
                    taken.append(time.perf_counter() - start - connection.due)
                    busy.remove(connection)
                    free.append(connection)
    finally:
        for connection in (*free, *busy):
            connection.sock.close()
    return taken


def _open(path: str) -> _Connection:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    return _Connection(sock)


def _is_whole(connection: _Connection) -> bool:
    more = connection.sock.recv(READ_BYTES)
    if not more:
        raise WrongReplyError("the connection was closed in the middle of a reply")
    connection.received += more
    if not reply_ended(bytes(connection.received)):
        return False
    connection.received.clear()
    return True
