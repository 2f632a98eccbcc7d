"""Times to the first token: a mean per peer and the slow end over all, as our calls saw them; quantiles of any. Pure."""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from protocol.wire.ids import PeerId

NEWEST = 0.3
"""Weight of the newest measurement: a peer that became slow is known as slow after two calls."""

FORGET_SECONDS = 120.0
"""An older measurement says nothing: a peer that was slow once is tried again."""

MAX_PEERS = 1024
RECENT = 100
LEAST_SAMPLES = 10
"""Below this many measurements nothing is said of the slow end."""

STALE_SECONDS = 900.0
"""What is older is not told to others: a box that is idle by now need not be what it was when it was not."""


class RecentTimes:
    """The latest `RECENT` times in seconds, none older than STALE_SECONDS on the caller's clock."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def note(self, seconds: float, now: float) -> None:
        self._noted.append((now, seconds))

    def quantile(self, share: float, now: float, least: int = 1) -> float | None:
        """The time that `share` (0 to 1) of them kept; None with fewer than `least`."""
        while self._noted and now - self._noted[0][0] > STALE_SECONDS:
            self._noted.popleft()
        if len(self._noted) < max(1, least):
            return None
        return sorted(seconds for _, seconds in self._noted)[max(0, math.ceil(share * len(self._noted)) - 1)]


@dataclass(slots=True)
class _Measured:
    seconds: float
    at: float


class FirstTokens:
    """Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._peers: OrderedDict[PeerId, _Measured] = OrderedDict()
        self._recent: deque[float] = deque(maxlen=RECENT)

    def note(self, peer: PeerId, seconds: float, now: float) -> None:
        """A call to `peer` had its first token after `seconds`."""
        self._recent.append(seconds)
        before = self._peers.pop(peer, None)
        if before is not None and now - before.at < FORGET_SECONDS:
            seconds = before.seconds + NEWEST * (seconds - before.seconds)
        self._peers[peer] = _Measured(seconds, now)
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)

    def of(self, peer: PeerId, now: float) -> float | None:
        """The exponentially weighted mean, None where nothing recent is known."""
        measured = self._peers.get(peer)
        return measured.seconds if measured is not None and now - measured.at < FORGET_SECONDS else None

    def p95(self) -> float | None:
        """The time that 95 of 100 recent calls kept, over all peers; None while too few were made."""
        if len(self._recent) < LEAST_SAMPLES:
            return None
        return sorted(self._recent)[math.ceil(0.95 * len(self._recent)) - 1]
