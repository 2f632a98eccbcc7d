"""What the Yamux connections of one host share: limits, memory for what nobody read yet, each peer's slots. Moves nothing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from libp2p.peer.id import ID

from daemon.transport.yamux_frames import YamuxConfig


@dataclass(slots=True)
class ReceiveMemory:
    """Bytes that peers have sent and nobody has read, over all connections. `share` is what any one may always hold."""

    limit: int
    share: int
    held: int = 0


@dataclass(frozen=True, slots=True)
class MuxerSettings:
    """What every connection of one host shares. Times in seconds; `send_queue` in bytes per stream."""

    yamux: YamuxConfig
    memory: ReceiveMemory
    send_queue: int = 1 << 20
    keepalive_interval: float = 3.0
    keepalive_timeout: float = 5.0
    slots: "InboundSlots" = field(default_factory=lambda: InboundSlots(32))
    on_stream_refused: Callable[[ID], None] = field(default=lambda _peer: None)


class InboundSlots:
    """Streams that each peer has opened and that are not over yet, with their handlers, on all its connections."""

    def __init__(self, limit: int) -> None:
        self.limit_of: Callable[[ID], int] = lambda _peer: limit
        self.held: Counter[ID] = Counter()

    def take(self, peer: ID) -> bool:
        """Count one more stream of `peer`; False where it has as many as it may."""
        if self.held[peer] >= self.limit_of(peer):
            return False
        self.held[peer] += 1
        return True

    def free(self, peer: ID) -> None:
        """Count one less."""
        self.held[peer] -= 1
        if not self.held[peer]:
            del self.held[peer]
