"""What our calls showed of their peers, gathered until it is written down as claims. Decides when and how much; signs nothing.

A claim costs a signature, a write that waits for the disk, and as much again at every peer that keeps it: more than the call. And
an issuer's quota is 10,000 claims: what says little pushes out what says more. So calls of one peer, skill and outcome become one
claim with the first one's place and one with the number of the others, and no more than a budget of them is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import trio

from crdt_store.claims import Kind
from crdt_store.evidence import MAX_COUNT
from crdt_store.own_log import Statement
from daemon.attempt import Served
from protocol.wire.ids import PeerId

SPACING_SECONDS = 10.0
"""Of one peer, skill and outcome something is said once in this time, however many calls that were."""

ASIDE_SECONDS = 0.25
"""Nothing is written before the answer that it is about has left."""

CLAIMS_PER_SECOND = 0.1
CLAIMS_AT_ONCE = 60
"""6 a minute and 60 at once: a peer that calls day and night fills its quota in 28 hours. What waits is counted, not lost."""

MAX_KEPT = 1024
"""Peers, skills and outcomes kept at once; calls beyond are lost, as those of a stranger that is never asked again may be."""

_Subject = tuple[PeerId, str, bool]
"""A peer, the skill of the question, and whether it served."""


@dataclass(slots=True)
class _Calls:
    since: float
    count: int = 0
    timed: int = 0
    seconds: float = 0.0


class CallNotes:
    """Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._calls: dict[_Subject, _Calls] = {}
        self._written: dict[_Subject, float] = {}
        self._budget = float(CLAIMS_AT_ONCE)
        self._counted = 0.0

    def note(self, served: Served, now: float) -> None:
        """One call of ours has ended."""
        subject = (served.peer, served.skill, served.ok)
        calls = self._calls.get(subject)
        if calls is None:
            if len(self._calls) >= MAX_KEPT:
                return
            calls = self._calls[subject] = _Calls(now)
        calls.count += 1
        if served.ok and served.first_token_s is not None:
            calls.timed += 1
            calls.seconds += served.first_token_s

    @property
    def due(self) -> float:
        """When `take` has something to give; inf where nothing is kept."""
        earliest = min((self._due_of(subject, calls) for subject, calls in self._calls.items()), default=inf)
        return max(earliest, self._counted + (1.0 - self._budget) / CLAIMS_PER_SECOND) if self._budget < 1.0 else earliest

    def take(self, now: float, everything: bool = False) -> list[Statement]:
        """What is to be written now, the longest waiting first; `everything` takes what is not due and beyond the budget too."""
        self._budget = min(CLAIMS_AT_ONCE, self._budget + max(0.0, now - self._counted) * CLAIMS_PER_SECOND)
        self._counted = now
        taken: list[Statement] = []
        for subject, calls in sorted(self._calls.items(), key=lambda item: item[1].since):
            if not everything and (self._budget < 1.0 or self._due_of(subject, calls) > now):
                continue
            del self._calls[subject]
            self._written[subject] = now
            said = _statements(subject, calls)
            self._budget -= len(said)
            taken += said
        self._written = {subject: at for subject, at in self._written.items() if now - at < SPACING_SECONDS}
        return taken

    def _due_of(self, subject: _Subject, calls: _Calls) -> float:
        return max(calls.since + ASIDE_SECONDS, self._written.get(subject, -inf) + SPACING_SECONDS)


def _statements(subject: _Subject, calls: _Calls) -> list[Statement]:
    """One claim with the mean milliseconds to the first token, and as many as it takes to say how many more calls there were."""
    peer, skill, ok = subject
    first_ms = round(1000 * calls.seconds / calls.timed) if calls.timed else 0
    said = [Statement(peer, Kind.CALL_SERVED if ok else Kind.CALL_FAILED, skill, first_ms)]
    more = Kind.CALLS_SERVED if ok else Kind.CALLS_FAILED
    return said + [
        Statement(peer, more, skill, min(MAX_COUNT, calls.count - before)) for before in range(1, calls.count, MAX_COUNT)
    ]


class CallNotebook:
    """Drives `CallNotes` on trio's clock: `write` is handed what is due, and the rest when the daemon stops."""

    def __init__(self, write: Callable[[Sequence[Statement]], None]) -> None:
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
