"""Which peers' lines are slow enough for compressing to pay, by their paths' round trips. Compresses nothing."""

from dataclasses import dataclass
from math import inf

import trio

from daemon.transport.interface import PathKind, Transport
from protocol.wire.ids import PeerId

PACKED_FROM_SECONDS = 0.003
"""Round trip from which big bodies are compressed: what is nearer is on a line of a gigabit, where it would take longer."""

LOOK_SECONDS = 1.0
"""How long what was found of a peer's path holds: a big body is cut into many frames, each of which asks."""

MAX_LINES = 1024


@dataclass(frozen=True, slots=True)
class _Line:
    looked_at: float
    since: float
    shortest: float
    packs: bool


class Lines:
    """Remembers for a moment what was found: a big body is cut into many frames, each of which asks."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lines: dict[PeerId, _Line] = {}

    def are_slow(self, peer: PeerId) -> bool:
        """Whether compressing for `peer` pays: not on this box or in one room, where the line is faster than the work.

        The shortest round trip of the path counts: a busy process on either side makes its mean longer, and the line no slower.
        """
        now, line = trio.current_time(), self._lines.get(peer)
        if line is not None and now - line.looked_at < LOOK_SECONDS:
            return line.packs
        path = self._transport.path(peer)
        if path is None:
            return False
        known = line.shortest if line is not None and line.since == path.since else inf
        shortest = min(known, inf if path.rtt is None else path.rtt)
        packs = path.kind is PathKind.RELAYED or PACKED_FROM_SECONDS <= shortest < inf
        if len(self._lines) >= MAX_LINES:
            self._lines.clear()
        self._lines[peer] = _Line(now, path.since, shortest, packs)
        return packs
