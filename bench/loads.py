"""What the RPC benchmark measures: the loads, their units, the ratios they must reach. Standard library only; measures nothing.

Every side runs exactly these loads, so that a ratio compares the same work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

KIB = 1 << 10
MIB = 1 << 20

PUSH_CHUNK_BYTES = 64 * KIB
"""What swarmd and the limit send as one item of a pushed body; a rival with its own way of sending one body uses that."""

ITEMS_PER_STREAM = 1024
"""Items of one stream: as many tokens as a long answer has. Of longer ones, Lattica 1.0.21 often loses the end."""

ACK = b"received"
"""The short reply to a body that is only sent up."""


class Kind(StrEnum):
    """What one unit of a load is."""

    ECHO = "echo"
    """A call whose reply is its body."""
    ACK = "ack"
    """A call whose reply is `ACK`."""
    PUSH = "push"
    """A body of `size` bytes sent one way, counted in bytes once the receiver said that all of it came."""
    ITEMS = "items"
    """An item of `size` bytes streamed from the server, one send each."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load. `targets` are the least ratios of swarmd's rate to a rival's."""

    name: str
    title: str
    kind: Kind
    size: int
    in_flight: int
    unit: str
    targets: Mapping[str, float] = field(default_factory=dict)


def _calls(kind: Kind, size: int, in_flight: int, lattica: float) -> Load:
    title = f"{size} B" if size < KIB else f"{size // KIB} KiB"
    title += " echo" if kind is Kind.ECHO else " up, short reply"
    title += ", one at a time" if in_flight == 1 else f", {in_flight} in flight"
    return Load(f"{kind}-{size}-{in_flight}", title, kind, size, in_flight, "calls/s", {"lattica": lattica, "hivemind": 1.0})


LOADS: tuple[Load, ...] = (
    _calls(Kind.ECHO, 128, 1, 1.5),
    _calls(Kind.ECHO, 128, 64, 8.0),
    _calls(Kind.ACK, 256 * KIB, 1, 1.7),
    _calls(Kind.ACK, 256 * KIB, 64, 1.5),
    _calls(Kind.ECHO, 256 * KIB, 1, 3.0),
    _calls(Kind.ECHO, 256 * KIB, 64, 3.0),
    Load("push", "64 MiB one way", Kind.PUSH, 64 * MIB, 1, "MB/s", {"lattica": 3.0}),
    Load("items", "64 B items on one stream", Kind.ITEMS, 64, 1, "items/s", {"lattica": 1.2}),
)

BY_NAME: Mapping[str, Load] = {load.name: load for load in LOADS}
