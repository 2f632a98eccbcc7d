"""Which of several live paths to a peer carries new streams, and why. Decides from values; never touches a connection."""

from collections.abc import Sequence
from dataclasses import dataclass

KIND_ORDER = ("direct", "mapped", "punched", "relayed")
"""Best first. A relay's owner can end or starve a path, so any path of our own beats it whatever its round trip."""

RTT_SLACK = 0.010
"""Seconds within which two round trips count as equal: loopback to LAN jitter, well under a WAN difference."""


@dataclass(frozen=True, slots=True)
class LivePath:
    """One open connection: its kind (of `KIND_ORDER`), round trip in seconds (None: not measured) and age in seconds."""

    kind: str
    rtt: float | None
    age: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen path's index and one sentence that says why."""

    index: int
    reason: str


def choose(paths: Sequence[LivePath]) -> Choice | None:
    """The best live path: kind, then round trip, then age (the longest-lived has proved itself). None where there is none."""
    if not paths:
        return None
    if len(paths) == 1:
        return Choice(0, f"the only path is {paths[0].kind}")
    best_kind = min(_order(path.kind) for path in paths)
    same = [index for index, path in enumerate(paths) if _order(path.kind) == best_kind]
    kind = paths[same[0]].kind
    if len(same) == 1:
        others = sorted({path.kind for path in paths} - {kind}, key=_order)
        return Choice(same[0], f"{kind} is better than {' and '.join(others)}")
    measured = [(rtt, index) for index in same if (rtt := paths[index].rtt) is not None]
    if measured:
        fastest = min(measured)[0]
        close = [index for rtt, index in measured if rtt <= fastest + RTT_SLACK]
        if len(close) == 1:
            return Choice(close[0], f"of {len(same)} {kind} paths it has the shortest round trip, {fastest * 1000:.0f} ms")
        same = close
    oldest = max(same, key=lambda index: paths[index].age)
    return Choice(oldest, f"of {len(same)} equal {kind} paths it is the oldest, {paths[oldest].age:.0f} s")


def _order(kind: str) -> int:
    return KIND_ORDER.index(kind) if kind in KIND_ORDER else len(KIND_ORDER)
