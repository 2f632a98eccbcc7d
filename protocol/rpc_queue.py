"""What waits to be written on one RPC link. Decides the order of frames between calls; within a call it never changes it."""

from collections import deque
from typing import Final, TypeAlias

import msgspec

EXPRESS_BYTES: Final = 4 << 10
"""Frames up to this size overtake bigger ones: control frames and tokens fit, chunks of a bulk transfer do not."""

BATCH_BYTES: Final = 64 << 10
"""What one write joins, unless a single frame is bigger: one chunk, so that the next express frame waits for at most one."""


class Lane(msgspec.Struct, eq=False):
    """One call's place in the queue. While it has bulk frames waiting, its later frames stay behind them."""

    bulk: int = 0
    left: bool = False
    """Whether any frame of the call was written: until then it can be dropped without a word."""
    dropped: bool = False


_Frame: TypeAlias = bytes | bytearray

_Entry: TypeAlias = tuple[Lane, _Frame, bool]
"""A frame with its length before it, the call it belongs to, and whether it opens that call."""

_URGENT = Lane()
"""Of every frame that overtakes its own call: it is never bulk and never dropped."""


class SendQueue:
    """Two lanes of frames. `queued` is in bytes and counts dropped frames until their turn, so that it bounds memory."""

    def __init__(self) -> None:
        self._express: deque[_Entry] = deque()
        self._bulk: deque[_Entry] = deque()
        self._bulk_requests = 0
        self.queued = 0

    def __bool__(self) -> bool:
        return bool(self._express or self._bulk)

    def push(self, lane: Lane, framed: _Frame, *, opens: bool = False) -> None:
        """Queue a frame of its call, in order; frames that open calls also keep their order among each other."""
        self.queued += len(framed)
        if len(framed) > EXPRESS_BYTES or lane.bulk or (opens and self._bulk_requests):
            lane.bulk += 1
            self._bulk_requests += opens
            self._bulk.append((lane, framed, opens))
        else:
            self._express.append((lane, framed, opens))

    def push_urgent(self, framed: _Frame) -> None:
        """Queue a frame that may overtake its own call's items: a cancel or a credit."""
        self.queued += len(framed)
        self._express.append((_URGENT, framed, False))

    def batch(self) -> list[_Frame]:
        """The frames of the next write: express ones first, then bulk ones; at least one bulk frame, so that neither starves."""
        frames: list[_Frame] = []
        room = BATCH_BYTES
        while self._express and room > 0:
            lane, framed, _ = self._express.popleft()
            size = len(framed)
            self.queued -= size
            if not lane.dropped:
                lane.left = True
                room -= size
                frames.append(framed)
        room = max(room, 1)
        while self._bulk and room > 0:
            lane, framed, opens = self._bulk.popleft()
            size = len(framed)
            self.queued -= size
            lane.bulk -= 1
            self._bulk_requests -= opens
            if not lane.dropped:
                lane.left = True
                room -= size
                frames.append(framed)
        return frames
