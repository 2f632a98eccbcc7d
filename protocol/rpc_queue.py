"""What waits to be written on one RPC link. Decides the order of frames between calls; within a call it never changes it."""

from collections import deque
from typing import Final, TypeAlias

import msgspec

from protocol.wire.codec import LENGTH_BYTES

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


_Entry: TypeAlias = tuple[Lane, bytes, bool]
"""A frame, the call it belongs to, and whether it opens that call."""

_URGENT = Lane()
"""Of every frame that overtakes its own call: it is never bulk and never dropped."""


class SendQueue:
    """Two lanes of encoded frames. `queued` is in bytes and counts dropped frames until their turn, so that it bounds memory."""

    def __init__(self) -> None:
        self._express: deque[_Entry] = deque()
        self._bulk: deque[_Entry] = deque()
        self._bulk_requests = 0
        self.queued = 0

    def __bool__(self) -> bool:
        return bool(self._express or self._bulk)

    def push(self, lane: Lane, raw: bytes, *, opens: bool = False) -> None:
        """Queue a frame of its call, in order; frames that open calls also keep their order among each other."""
        self.queued += len(raw) + LENGTH_BYTES
        if len(raw) > EXPRESS_BYTES or lane.bulk or (opens and self._bulk_requests):
            lane.bulk += 1
            self._bulk_requests += opens
            self._bulk.append((lane, raw, opens))
        else:
            self._express.append((lane, raw, opens))

    def push_urgent(self, raw: bytes) -> None:
        """Queue a frame that may overtake its own call's items: a cancel or a credit."""
        self.queued += len(raw) + LENGTH_BYTES
        self._express.append((_URGENT, raw, False))

    def batch(self) -> list[bytes]:
        """The frames of the next write: express ones first, then bulk ones; at least one bulk frame, so that neither starves."""
        frames: list[bytes] = []
        room = BATCH_BYTES
        while self._express and room > 0:
            lane, raw, _ = self._express.popleft()
            size = len(raw)
            self.queued -= size + LENGTH_BYTES
            if not lane.dropped:
                lane.left = True
                room -= size + LENGTH_BYTES
                frames += (size.to_bytes(LENGTH_BYTES, "big"), raw)
        room = max(room, 1)
        while self._bulk and room > 0:
            lane, raw, opens = self._bulk.popleft()
            size = len(raw)
            self.queued -= size + LENGTH_BYTES
            lane.bulk -= 1
            self._bulk_requests -= opens
            if not lane.dropped:
                lane.left = True
                room -= size + LENGTH_BYTES
                frames += (size.to_bytes(LENGTH_BYTES, "big"), raw)
        return frames
