"""Who gets the next engine slot, and who is sent away: bounded calls per peer, and a queue that is fair to its callers.

Knows no method and no engine; the clock's readings are arguments.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId

LEAST_RETRY_SECONDS = 1.0
MOST_RETRY_SECONDS = 120.0
MAX_TURNS = 1024
"""Of callers that do not wait, remembered: a box that is never idle would else hold one of each name that it ever heard."""

_NEWEST = 0.2
"""Weight of the newest measurement in the mean service time: the last ten requests or so decide."""


class PeerSlots:
    """At most `limit` calls of each peer at once; holds nothing of a peer that has none open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[PeerId, int] = {}

    @contextmanager
    def hold(self, peer: PeerId, retry_after: float = LEAST_RETRY_SECONDS) -> Iterator[None]:
        """Count one call of `peer` while it runs; raises RemoteError(overloaded) where it has too many already."""
        held = self._open.get(peer, 0)
        if held >= self._limit:
            raise RemoteError(Code.OVERLOADED, f"{held} of your calls are open here, which is the most", retry_after=retry_after)
        self._open[peer] = held + 1
        try:
            yield
        finally:
            left = self._open[peer] - 1
            if left:
                self._open[peer] = left
            else:
                del self._open[peer]


@dataclass(slots=True, eq=False)
class Ticket:
    """One request. `decided` is set once it was given a slot, or was sent away with `refusal`."""

    caller: Hashable
    decided: trio.Event = field(default_factory=trio.Event)
    refusal: RemoteError | None = None
    since: float | None = None
    """When it was given its slot."""


class FairSlots:
    """`slots` requests run, up to `room` wait. A free slot goes to the caller whose turn it is, not to who asked first.

    Turns: stride scheduling (Waldspurger and Weihl 1995), which for equal weights is round-robin over the callers that wait;
    a caller of weight 4 has four turns to another's one. When the queue is full, a caller with less in it than the one with the
    most takes the place of that one's newest request: nobody keeps others out by filling it.
    """

    def __init__(self, slots: int, room: int, weights: Mapping[Hashable, float]) -> None:
        self._slots = slots
        self._room = room
        self._weights = weights
        self._waiting: dict[Hashable, list[Ticket]] = {}
        self._queued = 0
        self._turn: dict[Hashable, float] = {}
        self._clock = 0.0
        self._running: set[Ticket] = set()
        self._mean_s: float | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return self._queued

    @property
    def free(self) -> int:
        """Slots that a request would be given at once."""
        return 0 if self._queued else max(0, self._slots - len(self._running))

    @property
    def mean_s(self) -> float | None:
        """How long a request held its slot lately, in seconds; None before the first."""
        return self._mean_s

    def resize(self, slots: int, now: float) -> None:
        """Another number of slots from now on; what runs goes on."""
        self._slots = slots
        self._fill(now)

    def enter(self, caller: Hashable, now: float) -> Ticket:
        """A request of `caller`, which may have its slot at once; raises RemoteError(overloaded) where it has no place."""
        ticket = Ticket(caller)
        if self.waiting >= self._room and len(self._running) >= self._slots:
            self._make_room(caller)
        self._waiting.setdefault(caller, []).append(ticket)
        self._queued += 1
        # Who was away does not save up turns for a burst.
        self._turn[caller] = max(self._turn.get(caller, 0.0), self._clock)
        if len(self._turn) > 2 * MAX_TURNS + len(self._waiting):
            away = [name for name in self._turn if name not in self._waiting]
            for name in away[:-MAX_TURNS]:
                del self._turn[name]
        self._fill(now)
        return ticket

    def leave(self, ticket: Ticket, now: float) -> None:
        """The request ended, or does not wait any longer."""
        if ticket in self._running:
            self._running.remove(ticket)
            took = now - (ticket.since if ticket.since is not None else now)
            self._mean_s = took if self._mean_s is None else self._mean_s + _NEWEST * (took - self._mean_s)
        elif ticket in self._waiting.get(ticket.caller, ()):
            self._drop(ticket)
        self._fill(now)

    @property
    def queued_s(self) -> float:
        """Seconds until a new request would have been served, by the queue and the mean service time; 0 where a slot is free or
        nothing was measured."""
        ahead = self.waiting + 1 - (self._slots - len(self._running))
        return (ahead / max(1, self._slots) + 1) * (self._mean_s or 0.0) if ahead > 0 else 0.0

    def retry_after(self) -> float:
        """Seconds until a new request would be given a slot, as far as the queue and the mean service time tell; 1 to 120."""
        free = self._slots - len(self._running)
        ahead = self.waiting + 1 - max(0, free)
        wait = ahead * (self._mean_s or 0.0) / max(1, self._slots)
        return min(MOST_RETRY_SECONDS, max(LEAST_RETRY_SECONDS, wait))

    def _make_room(self, caller: Hashable) -> None:
        most = max(self._waiting, key=lambda one: len(self._waiting[one]) / self._weight(one), default=None)
        mine = (len(self._waiting.get(caller, ())) + 1) / self._weight(caller)
        if most is None or most == caller or len(self._waiting[most]) / self._weight(most) <= mine:
            raise self._full()
        victim = self._waiting[most][-1]
        self._drop(victim)
        victim.refusal = self._full()
        victim.decided.set()

    def _full(self) -> RemoteError:
        return RemoteError(Code.OVERLOADED, "every slot is busy and the queue is full", retry_after=self.retry_after())

    def _fill(self, now: float) -> None:
        while self._waiting and len(self._running) < self._slots:
            caller = min(self._waiting, key=lambda one: self._turn[one])
            ticket = self._waiting[caller][0]
            self._clock = self._turn[caller]
            self._turn[caller] += 1 / self._weight(caller)
            self._drop(ticket)
            ticket.since = now
            self._running.add(ticket)
            ticket.decided.set()
        if not self._waiting and not self._running:
            self._turn.clear()
            self._clock = 0.0

    def _drop(self, ticket: Ticket) -> None:
        tickets = self._waiting[ticket.caller]
        tickets.remove(ticket)
        self._queued -= 1
        if not tickets:
            del self._waiting[ticket.caller]

    def _weight(self, caller: Hashable) -> float:
        return self._weights.get(caller, 1.0)
