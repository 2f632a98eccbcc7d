"""Fetches one file from several peers at once. Decides who is asked for which chunk, and who is asked no more; moves no bytes.

A peer is asked for some chunks ahead, so that its line never idles. What fails waits, longer each time; a chunk that does not
hash right costs its sender the rest of the fetch at once. When every missing chunk is asked for, a peer that has nothing to do
asks again for the one that has been waited for longest, so that the slowest peer does not decide how long the end takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from protocol.wire.ids import PeerId

# ---- events


@dataclass(frozen=True, slots=True)
class Source:
    """A peer holds `chunks` of the file (None: all of it)."""

    peer: PeerId
    chunks: frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk came from `peer`, hashed right, and is on disk."""

    peer: PeerId
    index: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    """What `peer` sent as this chunk is something else."""

    peer: PeerId
    index: int


@dataclass(frozen=True, slots=True)
class Failed:
    """`peer` did not deliver. `retry_after`: seconds, where it named a time; `missing`: it says that it has no such chunk."""

    peer: PeerId
    index: int
    retry_after: float | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `WakeAt` named has come."""


Event = Source | Stored | Corrupt | Failed | Tick

# ---- effects


@dataclass(frozen=True, slots=True)
class AskChunk:
    """Ask `peer` for the chunk; answer with Stored, Corrupt or Failed."""

    peer: PeerId
    index: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop waiting for `peer`'s chunk; no event is due for it any more."""

    peer: PeerId
    index: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """`peer` is asked no more in this fetch."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send Tick at `time`."""

    time: float


@dataclass(frozen=True, slots=True)
class Starved:
    """Nobody left holds what is missing: look for other sources."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Every chunk is stored."""


Effect = AskChunk | Abandon | Dropped | WakeAt | Starved | Finished

# ---- configuration


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`ahead`: chunks asked of one peer at once. `flight`: of all peers, as they lie in memory until checked.

    `failures`: in a row, then the peer is dropped. `wait`, `longest_wait`: seconds before a peer that failed is asked again.
    """

    ahead: int = 4
    flight: int = 16
    failures: int = 4
    wait: float = 0.5
    longest_wait: float = 30.0
    copies: int = 2


# ---- state


@dataclass(slots=True)
class _Peer:
    chunks: frozenset[int] | None
    asked: dict[int, float] = field(default_factory=dict)
    lacks: set[int] = field(default_factory=set)
    failures: int = 0
    ready_at: float = 0.0

    def holds(self, index: int) -> bool:
        return (self.chunks is None or index in self.chunks) and index not in self.lacks


class Fetch:
    """The fetch of a file of `chunks` chunks of which `present` are there already."""

    def __init__(self, chunks: int, present: set[int], rng: Random, limits: FetchLimits = FetchLimits()) -> None:
        # From a random place on: peers that fetch one file at the same time soon have different parts for each other.
        start = rng.randrange(chunks)
        order = (index % chunks for index in range(start, start + chunks))
        self._pending: dict[int, None] = {index: None for index in order if index not in present}
        self._missing: set[int] = set(self._pending)
        self._peers: dict[PeerId, _Peer] = {}
        self._dropped: set[PeerId] = set()
        self._limits = limits
        self._ended = False

    @property
    def missing(self) -> int:
        """Chunks that are not stored yet."""
        return len(self._missing)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """The peers that are asked."""
        return tuple(self._peers)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; what is to be done now."""
        if self._ended:
            return []
        effects: list[Effect] = []
        match event:
            case Source(peer, chunks) if peer not in self._dropped:
                source = self._peers.setdefault(peer, _Peer(chunks))
                source.chunks = chunks
                source.lacks.clear()
            case Stored(peer, index):
                effects += self._stored(peer, index)
            case Corrupt(peer, index):
                effects += self._drop(peer, "sent a chunk that is not the file's")
            case Failed():
                effects += self._failed(event, now)
            case _:
                pass
        if not self._missing:
            self._ended = True
            return [*effects, Finished()]
        return effects + self._ask(now)

    def _stored(self, peer: PeerId, index: int) -> Iterator[Effect]:
        source = self._peers.get(peer)
        if source is not None:
            source.asked.pop(index, None)
            source.failures = 0
        self._missing.discard(index)
        self._pending.pop(index, None)
        for other, state in self._peers.items():
            if state.asked.pop(index, None) is not None:
                yield Abandon(other, index)

    def _failed(self, event: Failed, now: float) -> list[Effect]:
        source = self._peers.get(event.peer)
        if source is None or source.asked.pop(event.index, None) is None:
            return []
        self._put_back(event.index)
        if event.missing:
            source.lacks.add(event.index)
            return []
        if event.retry_after is None:
            source.failures += 1
            if source.failures >= self._limits.failures:
                return self._drop(event.peer, f"failed {source.failures} times in a row")
        wait = self._limits.wait * 2 ** max(0, source.failures - 1) if event.retry_after is None else event.retry_after
        source.ready_at = max(source.ready_at, now + min(wait, self._limits.longest_wait))
        return []

    def _drop(self, peer: PeerId, reason: str) -> list[Effect]:
        source = self._peers.pop(peer, None)
        if source is None:
            return []
        self._dropped.add(peer)
        for index in source.asked:
            self._put_back(index)
        return [*(Abandon(peer, index) for index in source.asked), Dropped(peer, reason)]

    def _put_back(self, index: int) -> None:
        if index in self._missing and not any(index in state.asked for state in self._peers.values()):
            self._pending[index] = None

    def _ask(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        flight = sum(len(state.asked) for state in self._peers.values())
        hopeful = flight > 0
        wake = float("inf")
        # One chunk for each peer in turn, so that a single one does not take the whole room of the flight.
        turns = [(peer, state) for peer, state in self._peers.items()]
        while turns and flight < self._limits.flight:
            again = []
            for peer, state in turns:
                index = self._next_for(state)
                if index is None or flight >= self._limits.flight or len(state.asked) >= self._limits.ahead:
                    continue
                hopeful = True
                if state.ready_at > now:
                    wake = min(wake, state.ready_at)
                    continue
                self._pending.pop(index, None)
                state.asked[index] = now
                flight += 1
                effects.append(AskChunk(peer, index))
                again.append((peer, state))
            turns = again
        if wake < float("inf"):
            effects.append(WakeAt(wake))
        if not hopeful:
            effects.append(Starved())
        return effects

    def _next_for(self, state: _Peer) -> int | None:
        for index in self._pending:
            if state.holds(index):
                return index
        if self._pending or state.asked:
            return None
        # The end: what others have been asked for longest, while it has few copies under way.
        under_way: dict[int, tuple[float, int]] = {}
        for other in self._peers.values():
            for index, since in other.asked.items():
                oldest, copies = under_way.get(index, (since, 0))
                under_way[index] = (min(oldest, since), copies + 1)
        open_to = [
            (since, index)
            for index, (since, copies) in under_way.items()
            if copies < self._limits.copies and index not in state.asked and state.holds(index)
        ]
        return min(open_to)[1] if open_to else None
