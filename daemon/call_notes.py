"""What our calls showed of their peers, gathered until it becomes claims. Decides when; writes and signs nothing itself.

A claim costs a signature, a write that waits for the disk, and as much again at every peer that keeps it: more than the call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import trio

from daemon.attempt import Served
from protocol.wire.ids import PeerId

SERVED_SECONDS = 10.0
"""A peer that serves us is said to have served once in this time, with the mean over all its calls."""

ASIDE_SECONDS = 0.25
"""Nothing is written before the answer that it is about has left."""

MAX_PEERS = 1024
MAX_FAILURES = 256
"""Kept at once; what is beyond is lost, and a peer that fails so often has enough said of it."""


@dataclass(slots=True)
class _Mean:
    since: float
    calls: int = 0
    timed: int = 0
    seconds: float = 0.0


class CallNotes:
    """Times are seconds on the caller's clock. A failure is a note of its own."""

    def __init__(self) -> None:
        self._means: dict[PeerId, _Mean] = {}
        self._failures: list[Served] = []
        self._failed_at = inf
        self._written: dict[PeerId, float] = {}

    def note(self, served: Served, now: float) -> None:
        """One call of ours has ended."""
        if not served.ok:
            if len(self._failures) < MAX_FAILURES:
                self._failures.append(served)
                self._failed_at = min(self._failed_at, now)
            return
        mean = self._means.get(served.peer)
        if mean is None:
            if len(self._means) >= MAX_PEERS:
                return
            mean = self._means[served.peer] = _Mean(now)
        mean.calls += 1
        if served.first_token_s is not None:
            mean.timed += 1
            mean.seconds += served.first_token_s

    @property
    def due(self) -> float:
        """When `take` has something to give; inf where nothing is kept."""
        served = min((self._due_of(peer, mean) for peer, mean in self._means.items()), default=inf)
        return min(served, self._failed_at + ASIDE_SECONDS)

    def take(self, now: float, everything: bool = False) -> list[Served]:
        """What is to be written now; `everything` takes what is not due too."""
        taken: list[Served] = []
        if everything or self._failed_at + ASIDE_SECONDS <= now:
            taken, self._failures, self._failed_at = self._failures, [], inf
        for peer, mean in list(self._means.items()):
            if everything or self._due_of(peer, mean) <= now:
                del self._means[peer]
                self._written[peer] = now
                taken.append(Served(peer, True, mean.seconds / mean.timed if mean.timed else None))
        self._written = {peer: at for peer, at in self._written.items() if now - at < SERVED_SECONDS}
        return taken

    def _due_of(self, peer: PeerId, mean: _Mean) -> float:
        return max(mean.since + ASIDE_SECONDS, self._written.get(peer, -inf) + SERVED_SECONDS)


class CallNotebook:
    """Drives `CallNotes` on trio's clock: `write` is handed what is due, and the rest when the daemon stops."""

    def __init__(self, write: Callable[[Sequence[Served]], None]) -> None:
        self._write = write
        self._notes = CallNotes()
        self._news = trio.Event()

    def note(self, served: Served) -> None:
        """Keep what one call showed; returns at once."""
        self._notes.note(served, trio.current_time())
        self._news.set()

    async def run(self) -> None:
        """Write what is due until cancelled, then all of it."""
        try:
            while True:
                with trio.move_on_at(self._notes.due):
                    await self._news.wait()
                self._news = trio.Event()
                if due := self._notes.take(trio.current_time()):
                    self._write(due)
        finally:
            if left := self._notes.take(trio.current_time(), everything=True):
                self._write(left)
