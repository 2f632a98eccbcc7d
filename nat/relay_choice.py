"""At which relays to hold a reservation, from what is known of each. Pure; knows no connection."""

from collections.abc import Iterable
from dataclasses import dataclass

CLEARLY_NEARER = 0.5
"""A relay replaces one that we hold only at half its round trip or less: each change breaks the circuits over the old one."""

WORTH_SECONDS = 0.020
"""And only where it saves at least this much."""


@dataclass(frozen=True, slots=True)
class RelayCandidate:
    """A peer that may relay for us.

    `rtt` in seconds, None where not connected; `circuits` that it carries for us now; `ready` is the time before which it is not
    asked again, as it failed or refused; `configured`: the user named it.
    """

    peer: str
    rtt: float | None
    held: bool
    circuits: int = 0
    ready: float = 0.0
    configured: bool = False


def choose(candidates: Iterable[RelayCandidate], count: int, now: float) -> tuple[str, ...]:
    """The `count` relays to hold: those held, filled up by the nearest others; the farthest idle one gives way to a nearer."""
    known = list(candidates)
    held = sorted((one for one in known if one.held), key=_far)
    free = sorted((one for one in known if not one.held and one.ready <= now), key=_far)
    chosen = held[:count]
    chosen += free[: max(0, count - len(chosen))]
    rest = [one for one in free if one not in chosen]
    worst = chosen[-1] if chosen and chosen[-1].held else None
    if rest and worst is not None and worst.rtt is not None and not worst.circuits:
        best = rest[0]
        if best.rtt is not None and best.rtt <= CLEARLY_NEARER * worst.rtt and worst.rtt - best.rtt >= WORTH_SECONDS:
            chosen[-1] = best
    return tuple(one.peer for one in chosen)


def _far(candidate: RelayCandidate) -> tuple[bool, float, bool, str]:
    unknown = candidate.rtt is None
    # What the user named comes before strangers of which nothing is known, and after a measured neighbour of either kind.
    return unknown, candidate.rtt or 0.0, not candidate.configured, candidate.peer
