"""One stream of a Yamux connection in the shape that py-libp2p expects: reading, queueing, ending. Frames nothing itself."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

if TYPE_CHECKING:
    from daemon.transport.muxer import MuxedConnection


SMALL_BYTES = 4 << 10
"""Chunks below it are joined while nobody reads, so that a peer's one-byte frames cost no object each."""


class MuxedStream(IMuxedStream):
    """One stream of a `MuxedConnection`, in the shape that py-libp2p expects."""

    def __init__(self, connection: "MuxedConnection", stream_id: int, inbound: bool) -> None:
        self.muxed_conn: IMuxedConn = connection
        self.stream_id = stream_id
        self.is_initiator = not inbound
        self.owned = False
        """Whether the daemon itself uses it, and so the connection must not be closed under it."""
        self._connection = connection
        self._buffer: deque[bytes | bytearray | memoryview] = deque()
        self._readable = trio.Event()
        self._writable: trio.Event | None = None
        self._finished = self._was_reset = self._closed = self._handled = False
        self._sink: Callable[[bytes | memoryview], bool | None] | None = None
        self._source: Callable[[], bytes | bytearray] | None = None

    # ---- told by the connection

    def arrived(self, chunk: bytes | memoryview) -> bool | None:
        """Whether the sink is not done with it."""
        if self._sink is not None:
            self._connection.taken(self.stream_id, len(chunk))
            return self._sink(chunk)
        last = self._buffer[-1] if self._buffer else None
        if isinstance(last, bytearray) and len(last) < SMALL_BYTES:
            last += chunk
        else:
            self._buffer.append(chunk if len(chunk) >= SMALL_BYTES or last is None else bytearray(chunk))
        self._readable.set()
        return None

    def catch_up(self) -> bool:
        """Whether the sink is still not done with what came."""
        return self._sink is not None and bool(self._sink(b""))

    def finished(self) -> None:
        self._finished = True
        self._readable.set()

    def dropped(self) -> None:
        """The peer, we or the connection ended both directions."""
        self._was_reset = True
        self._source = None
        self._readable.set()
        self.wake_writer()

    def wake_writer(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    # ---- asked by the user

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, at least one; raises MuxedStreamEOF at the end and MuxedStreamReset where it was cut."""
        while not self._buffer:
            if self._finished:
                raise MuxedStreamEOF("the peer has finished")
            if self._was_reset:
                raise MuxedStreamReset("the stream was reset")
            self._readable = trio.Event()
            await self._readable.wait()
        taken = bytes(self._buffer.popleft())
        if n is not None and 0 <= n < len(taken):
            self._buffer.appendleft(taken[n:])
            taken = taken[:n]
        self._connection.consumed(self.stream_id, len(taken))
        return taken

    async def write(self, data: bytes) -> None:
        """Queue all of `data` at once, after the queue has room: a cancelled call has queued all of it or nothing."""
        while True:
            self._check_writable()
            if self._connection.pending(self.stream_id) < self._connection.settings.send_queue:
                break
            if self._writable is None:
                self._writable = trio.Event()
                self._connection.waiting.add(self)
            await self._writable.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._connection.send(self.stream_id, data):
            raise MuxedStreamClosed("our direction is closed")

    def plug(self, source: Callable[[], bytes | bytearray], sink: Callable[[bytes | memoryview], bool | None]) -> None:
        """Hand what is here and what comes to `sink`; `pull` asks `source` for what to send."""
        self._source, self._sink = source, sink
        while self._buffer:
            chunk = bytes(self._buffer.popleft())
            self._connection.consumed(self.stream_id, len(chunk))
            sink(chunk)

    def wants_to_send(self, at_once: bool = False) -> None:
        """The source has something to send: `at_once`, where it will not have more before the loop's next turn."""
        self._connection.pull(self, at_once)

    def pull(self, room: int) -> bool:
        """Queue what the source has until `room` bytes wait; True where it may have more."""
        while self._source is not None and not self._closed:
            if self._connection.pending(self.stream_id) >= room:
                return True
            batch = self._source()
            if not batch or not self._connection.queue(self.stream_id, batch):
                return False
        return False

    def _check_writable(self) -> None:
        if self._was_reset:
            raise MuxedStreamReset("the stream was reset")
        if self._closed:
            raise MuxedStreamClosed("our direction is closed")
        if self._connection.is_closed:
            raise MuxedStreamError("the connection is closed")

    async def close(self) -> None:
        """Finish our direction once all that is queued has left; the other stays open."""
        self._closed = True
        self._connection.finish(self.stream_id)

    async def close_write(self) -> None:
        await self.close()

    async def reset(self) -> None:
        """Drop both directions."""
        self._closed = True
        self._connection.reset(self.stream_id)
        self.dropped()

    def release(self) -> None:
        """Finish our direction and let what the peer still sends fall to the floor."""
        self._closed = True
        self._buffer.clear()
        self._connection.release(self.stream_id)

    def handled(self) -> None:
        """The handler of this inbound stream has returned: its slot is free once the stream is over too."""
        self._handled = True
        self.ended()

    def ended(self) -> None:
        if self._handled and not self._connection.is_open(self.stream_id):
            self._connection.retire(self.stream_id)

    @property
    def is_open(self) -> bool:
        """Whether neither side has ended anything of it."""
        return not (self._finished or self._was_reset or self._closed or self._connection.is_closed)

    @property
    def is_closed(self) -> bool:
        return self._was_reset or (self._closed and self._finished)

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._connection.get_remote_address()

    async def __aenter__(self) -> "MuxedStream":
        return self
