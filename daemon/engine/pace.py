"""Decides how often an engine's streams are read: at once while few run, together in beats while many do. Knows no HTTP.

A read wakes us, the peer that asked and its user's client, and costs all three the same for one token as for ten. One read, one
frame on the wire and one event carry what an engine said within a beat, and one beat serves all streams. No first token waits
for one, nor a stream slower than the beats, nor the end of an answer that was asked for while more than a few ran: the engine
closes its connection there, which is heard.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio

from daemon.hang_ups import HangUps

READS_PER_SECOND = 200
"""Of up to 16 streams of one engine together: at 0.3 ms of CPU in both daemons, a twentieth of a core."""

CALM_STREAMS = 2
CALM_READS_PER_SECOND = 400
"""While no more run than those: beats are 5 ms apart at most, which is also what an answer's end may wait, while no more join."""

LONGEST_SECONDS = 0.08
"""Of a beat, whatever the number of streams: whoever reads takes in three or four words in a second, so that a dozen changes are
nothing to wait for."""


class Pace:
    """The beats of one engine. Paces nothing before `run` and after it: every wait then returns at once."""

    def __init__(self) -> None:
        self._beat = -inf
        self._asked = 0
        self._streams: dict[int, PacedStream] = {}
        self._parked: set[PacedStream] = set()
        self._wanted = trio.Event()
        self._hang_ups = HangUps()

    @property
    def interval(self) -> float:
        """Seconds between two reads of one stream, from 0 to `LONGEST_SECONDS`, by how many streams have begun."""
        count = len(self._streams)
        return min(LONGEST_SECONDS, count / (READS_PER_SECOND if count > CALM_STREAMS else CALM_READS_PER_SECOND))

    @contextmanager
    def asked(self) -> Iterator[bool]:
        """While an answer is asked for and read. Gives whether so few others are that its end waits for no beat that is noticed.

        Those whose first token has not come count: streams that are asked for together begin together, and all are paced then.
        """
        is_calm = self._asked < CALM_STREAMS
        self._asked += 1
        try:
            yield is_calm
        finally:
            self._asked -= 1

    async def run(self) -> None:
        """Beat until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hang_ups.run)
                while True:
                    await self._wanted.wait()
                    await trio.sleep_until(self._beat + self.interval)
                    self._wanted = trio.Event()
                    self._beat = trio.current_time()
                    self._wake_all()
        finally:
            self._wake_all()

    @contextmanager
    def stream(self, descriptor: int) -> "Iterator[PacedStream]":
        """Pace a stream whose first token came, read from the socket `descriptor`."""
        stream = self._streams[descriptor] = PacedStream(self, descriptor)
        try:
            with self._hang_ups.heard(descriptor, stream.ended):
                yield stream
        finally:
            del self._streams[descriptor]

    def is_due(self) -> bool:
        """Whether a read may be now; if so, it begins a beat."""
        now = trio.current_time()
        if self._hang_ups.are_heard and now < self._beat + self.interval:
            return False
        self._beat = now
        return True

    def park(self, stream: "PacedStream") -> None:
        """`stream` waits for the next beat."""
        self._parked.add(stream)
        self._wanted.set()

    def unpark(self, stream: "PacedStream") -> None:
        """`stream` does not wait any longer."""
        self._parked.discard(stream)

    def _wake_all(self) -> None:
        parked, self._parked = self._parked, set()
        for stream in parked:
            stream.wake()


class PacedStream:
    """One stream. `wait` is for one task."""

    def __init__(self, pace: Pace, descriptor: int) -> None:
        self._pace = pace
        self._descriptor = descriptor
        self._is_over = False
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Return at the next beat, or at once where the last one is long enough ago or the engine has said all."""
        if self._is_over or self._pace.is_due():
            return
        self._task = trio.lowlevel.current_task()
        self._pace.park(self)
        await trio.lowlevel.wait_task_rescheduled(self._left)

    def wake(self) -> None:
        """Told by the pace."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def ended(self) -> None:
        """The engine has closed its side: what is left to read is all there is."""
        self._is_over = True
        self._pace.unpark(self)
        self.wake()

    def _left(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        self._pace.unpark(self)
        return trio.lowlevel.Abort.SUCCEEDED
