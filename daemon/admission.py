"""How many calls of one peer are served at once. Counts and refuses; knows no method and no queue."""

from collections.abc import Iterator
from contextlib import contextmanager

from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId


class PeerSlots:
    """At most `limit` calls of each peer at once; holds nothing of a peer that has none open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[PeerId, int] = {}

    @contextmanager
    def hold(self, peer: PeerId) -> Iterator[None]:
        """Count one call of `peer` while it runs; raises RemoteError(overloaded) where it has too many already."""
        held = self._open.get(peer, 0)
        if held >= self._limit:
            raise RemoteError(Code.OVERLOADED, f"{held} of your calls are open here, which is the most", retry_after=1.0)
        self._open[peer] = held + 1
        try:
            yield
        finally:
            left = self._open[peer] - 1
            if left:
                self._open[peer] = left
            else:
                del self._open[peer]
