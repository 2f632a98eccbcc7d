"""At which relays to hold a reservation, from what is known of each. Pure; knows no connection."""

from collections.abc import Iterable
from dataclasses import dataclass

CLEARLY_NEARER = 0.5
"""A relay replaces one that we hold only at half its round trip or less: each change breaks the circuits over the old one."""

WORTH_SECONDS = 0.020
"""And only where it saves at least this much."""

MAX_LOAD = 0.95
"""A fuller relay counts as this full."""


@dataclass(frozen=True, slots=True)
class RelayCandidate:
    """A peer that may relay for us.

    `rtt` in seconds, None where not connected; `circuits` that it carries for us now; `ready` is the time before which it is not
    asked again, as it failed or refused; `configured`: the user named it; `load` is the share of its places or circuits that is
    taken, as it said when it last took us (0: it said nothing); `silent`: a ping is out and nothing comes back.
    """

    peer: str
    rtt: float | None
    held: bool
    circuits: int = 0
    ready: float = 0.0
    configured: bool = False
    load: float = 0.0
    silent: bool = False

    @property
    def distance(self) -> float | None:
        """Seconds by which relays are compared: the round trip, stretched as a queue stretches waits: 1 / (1 - load)."""
        return None if self.rtt is None else self.rtt / (1.0 - min(self.load, MAX_LOAD))


def choose(candidates: Iterable[RelayCandidate], count: int, now: float) -> tuple[str, ...]:
    """The relays to hold: `count` of those held, filled up by the nearest others; the farthest idle one gives way to a nearer.

    One that has fallen silent is held on to, in case it comes back, but does not count: another takes its place at once.
    """
    everybody = list(candidates)
    known = [one for one in everybody if not one.silent]
    held = sorted((one for one in known if one.held), key=_far)
    free = sorted((one for one in known if not one.held and one.ready <= now), key=_far)
    chosen = held[:count]
    chosen += free[: max(0, count - len(chosen))]
    rest = [one for one in free if one not in chosen]
    worst = chosen[-1] if chosen and chosen[-1].held else None
    if rest and worst is not None and worst.distance is not None and not worst.circuits:
        best = rest[0].distance
        if best is not None and best <= CLEARLY_NEARER * worst.distance and worst.distance - best >= WORTH_SECONDS:
            chosen[-1] = rest[0]
    silent = sorted(one.peer for one in everybody if one.silent and one.held)
    return (*(one.peer for one in chosen), *silent)


def _far(candidate: RelayCandidate) -> tuple[bool, float, bool, str]:
    distance = candidate.distance
    # What the user named comes before strangers of which nothing is known, and after a measured neighbour of either kind.
    return distance is None, distance or 0.0, not candidate.configured, candidate.peer
