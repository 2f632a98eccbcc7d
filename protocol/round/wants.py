"""Messages that are known by address and not held: when to ask whom for them. Decides timing and order of pulls alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.round.events import Pull
from protocol.wire.ids import Hash, PeerId

MAX_WANTS = 256
"""Four lists of 50 and as many references to messages of the requester; what is beyond is not asked for."""

FIRST_PULL_S = 0.15
"""A message is usually pushed a moment before or after the first one that names it: wait that long before asking."""

RETRY_S = 0.5
MAX_RETRY_S = 2.0
MAX_ATTEMPTS = 12
PEERS_PER_PULL = 3


@dataclass(slots=True)
class _Want:
    sources: tuple[PeerId, ...]
    next_time: float
    attempts: int = 0


class Wants:
    """What is wanted of one round."""

    def __init__(self) -> None:
        self._wants: dict[Hash, _Want] = {}

    def add(self, address: Hash, sources: Sequence[PeerId], now: float) -> None:
        """Want the message at `address`; further calls for it change nothing."""
        if address not in self._wants and len(self._wants) < MAX_WANTS and sources:
            self._wants[address] = _Want(tuple(sources), now + FIRST_PULL_S)

    def due(self, now: float, held: Callable[[bytes], object | None]) -> list[Pull]:
        """The pulls to make now; each repeat asks other peers first. Forgets what is held and what nobody has."""
        for address in [a for a, want in self._wants.items() if held(a) is not None or want.attempts >= MAX_ATTEMPTS]:
            del self._wants[address]
        grouped: dict[tuple[PeerId, ...], list[Hash]] = {}
        for address, want in self._wants.items():
            if want.next_time > now:
                continue
            start = want.attempts * PEERS_PER_PULL % len(want.sources)
            order = (*want.sources[start:], *want.sources[:start])[:PEERS_PER_PULL]
            grouped.setdefault(order, []).append(address)
            want.attempts += 1
            want.next_time = now + min(RETRY_S * want.attempts, MAX_RETRY_S)
        return [Pull(tuple(addresses), peers) for peers, addresses in grouped.items()]

    def clear(self) -> None:
        """Want nothing any more."""
        self._wants.clear()

    @property
    def next_time(self) -> float | None:
        """When `due` has something to say again (seconds)."""
        return min((want.next_time for want in self._wants.values()), default=None)
