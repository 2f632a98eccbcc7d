"""Yamux on the wire and what its machine tells: frame layout, bounds, effects, config. Holds values alone."""

import struct
from typing import TypeAlias

import msgspec

HEADER = struct.Struct("!BBHII")
HEADER_BYTES = 12
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
NORMAL, PROTOCOL_ERROR, INTERNAL_ERROR = range(3)

INITIAL_WINDOW = 256 << 10
"""Bytes either side may send on a new stream (hashicorp/yamux spec.md)."""

MAX_SEND_WINDOW = (1 << 32) - 1
MAX_BODY = 16 << 20
"""Largest DATA frame of any implementation: the largest window that go-yamux grants."""

FRAME_BYTES = 65535 - 16 - HEADER_BYTES
"""Largest DATA body that fits one Noise message (65535 bytes with a 16-byte tag) together with its header."""

MESSAGE_BYTES = HEADER_BYTES + FRAME_BYTES
"""What is framed at once: one Noise message, which is sealed and sent as it is."""

LEAST_ROOM = 4096
"""Room that is too little for the next frame: cut less often."""

MAX_CONTROL_FRAMES = 4096
"""Unsent replies to a peer: one that asks without end and never reads is cut off at 48 KiB of them."""

MAX_DRAINED = 1 << 20
"""Bytes still taken, and thrown away, on a stream that we finished with before the peer did."""


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The peer opened a stream; its slot is held until `retire`."""

    stream: int


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """Bytes for a stream; `consumed` gives their window back."""

    stream: int
    chunk: bytes | memoryview


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The peer sends no more on this stream."""

    stream: int


class WasReset(msgspec.Struct, frozen=True, gc=False):
    """The peer dropped this stream."""

    stream: int


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The peer tried to open more streams than it may; this one was reset."""

    stream: int


class Pong(msgspec.Struct, frozen=True, gc=False):
    """The peer answered our ping `token`."""

    token: int


class GoneAway(msgspec.Struct, frozen=True, gc=False):
    """The peer closes the session with this code (0: normal)."""

    code: int


Effect: TypeAlias = Opened | Arrived | Finished | WasReset | Refused | Pong | GoneAway


class YamuxFault(Exception):
    """The peer broke the protocol: its connection, and nothing else, ends. The message says how."""


class YamuxConfig(msgspec.Struct, frozen=True):
    """Bounds of one session: streams the peer may hold open, streams we may, and the largest window (bytes) we grant."""

    max_inbound: int = 32
    max_outbound: int = 256
    max_window: int = 1 << 20
