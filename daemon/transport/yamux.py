"""A Yamux session as a pure machine: what a frame means, what may be sent, who broke the rules. Touches no socket, no clock.

Its inputs are methods instead of event objects, since they run once per 64-byte token; its outputs are typed effects.
"""

from collections import deque
from collections.abc import Callable

from daemon.transport.yamux_frames import (
    ACK,
    DATA,
    FIN,
    FRAME_BYTES,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW,
    LEAST_ROOM,
    MAX_BODY,
    MAX_CONTROL_FRAMES,
    MAX_DRAINED,
    MAX_SEND_WINDOW,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Arrived,
    Effect,
    Finished,
    GoneAway,
    Opened,
    Pong,
    Refused,
    WasReset,
    YamuxConfig,
    YamuxFault,
)


class _Stream:
    __slots__ = (
        "credit", "drained", "draining", "fin_received", "fin_sent", "fin_wanted",
        "granted", "held", "id", "inbound", "pending", "pending_bytes", "send_window", "window",
    )  # fmt: skip

    def __init__(self, stream_id: int, inbound: bool) -> None:
        self.id = stream_id
        self.inbound = inbound
        self.pending: deque[bytes | bytearray | memoryview] = deque()
        self.pending_bytes = 0
        self.send_window = INITIAL_WINDOW
        self.granted = INITIAL_WINDOW
        """Bytes the peer may still send."""
        self.window = INITIAL_WINDOW
        """What `granted` is brought back to."""
        self.credit = 0
        """Bytes consumed since the last update."""
        self.held = 0
        """Bytes delivered and not yet consumed."""
        self.drained = 0
        self.draining = self.fin_wanted = self.fin_sent = self.fin_received = False


class Yamux:
    """One session's state. `client` is the side that dialed (odd stream ids). `take_slot` may refuse a new inbound stream."""

    def __init__(self, client: bool, config: YamuxConfig, take_slot: Callable[[], bool] = lambda: True) -> None:
        self._config = config
        self._take_slot = take_slot
        self._next_id = 1 if client else 2
        self._peer_parity = 0 if client else 1
        self._streams: dict[int, _Stream] = {}
        self._inbound_slots: set[int] = set()
        self._outbound = 0
        self._over: list[int] = []
        self._control: deque[bytes] = deque()
        self._ready: deque[_Stream] = deque()
        self._rest = b""
        self._body_left = 0
        self._body_stream: _Stream | None = None
        self._body_flags = 0
        self.held = 0
        """Bytes delivered to streams and not yet consumed, over the whole session."""

    # ---- what arrives

    def receive(self, received: bytes) -> list[Effect]:
        """Take bytes off the wire, in any cut; raises YamuxFault where they break the protocol."""
        if self._rest:
            received = self._rest + received
            self._rest = b""
        effects: list[Effect] = []
        view, at, end = memoryview(received), 0, len(received)
        while at < end:
            if self._body_left:
                size = min(self._body_left, end - at)
                self._body(view[at : at + size], end, effects)
                at += size
                continue
            if end - at < HEADER_BYTES:
                self._rest = bytes(view[at:])
                break
            version, kind, flags, stream_id, length = HEADER.unpack_from(view, at)
            at += HEADER_BYTES
            if version:
                raise YamuxFault(f"Yamux version {version}")
            self._frame(kind, flags, stream_id, length, effects)
        if len(self._control) > MAX_CONTROL_FRAMES:
            raise YamuxFault("asks without end and reads nothing")
        return effects

    def _frame(self, kind: int, flags: int, stream_id: int, length: int, effects: list[Effect]) -> None:
        if kind <= WINDOW_UPDATE:
            if not stream_id:
                raise YamuxFault("stream 0")
            if flags & SYN:
                self._opened_by_peer(stream_id, effects)
            stream = self._streams.get(stream_id)
            if kind == DATA:
                self._data_header(stream, flags, length, effects)
            else:
                if stream is not None and length:
                    self._widen(stream, length)
                self._end_flags(stream, flags, effects)
        elif kind == PING:
            if flags & SYN:
                self._control.append(HEADER.pack(0, PING, ACK, 0, length))
            elif flags & ACK:
                effects.append(Pong(length))
        elif kind == GO_AWAY:
            effects.append(GoneAway(length))
        else:
            raise YamuxFault(f"frame type {kind}")

    def _opened_by_peer(self, stream_id: int, effects: list[Effect]) -> None:
        taken = stream_id in self._streams or stream_id in self._inbound_slots
        if taken or stream_id & 1 != self._peer_parity:
            raise YamuxFault(f"opens stream {stream_id}, which is not its to open")
        if len(self._inbound_slots) >= self._config.max_inbound or not self._take_slot():
            self._control.append(HEADER.pack(0, WINDOW_UPDATE, RST, stream_id, 0))
            effects.append(Refused(stream_id))
            return
        self._inbound_slots.add(stream_id)
        self._streams[stream_id] = _Stream(stream_id, inbound=True)
        self._control.append(HEADER.pack(0, WINDOW_UPDATE, ACK, stream_id, 0))
        effects.append(Opened(stream_id))

    def _data_header(self, stream: _Stream | None, flags: int, length: int, effects: list[Effect]) -> None:
        if length > MAX_BODY:
            raise YamuxFault(f"a frame of {length} bytes")
        if stream is not None and not stream.fin_received:
            if length > stream.granted:
                raise YamuxFault(f"{length} bytes where its window allows {stream.granted}")
            stream.granted -= length
        else:
            stream = None
        if length:
            self._body_left, self._body_stream, self._body_flags = length, stream, flags
        else:
            self._end_flags(stream, flags, effects)

    def _body(self, part: memoryview, whole: int, effects: list[Effect]) -> None:
        self._body_left -= len(part)
        stream = self._body_stream
        if stream is not None and self._streams.get(stream.id) is stream:
            if stream.draining:
                self._drain(stream, len(part), effects)
            else:
                stream.held += len(part)
                self.held += len(part)
                # A view keeps all of the message: only where it is most of it, or what is held would not be what is counted.
                effects.append(Arrived(stream.id, part if 2 * len(part) > whole else bytes(part)))
        if not self._body_left:
            self._body_stream = None
            if stream is not None:
                self._end_flags(stream, self._body_flags, effects)

    def _drain(self, stream: _Stream, size: int, effects: list[Effect]) -> None:
        stream.drained += size
        if stream.drained > MAX_DRAINED:
            self.reset(stream.id)
            effects.append(WasReset(stream.id))
        else:
            self._give_back(stream, size)

    def _end_flags(self, stream: _Stream | None, flags: int, effects: list[Effect]) -> None:
        if stream is None or self._streams.get(stream.id) is not stream:
            return
        if flags & RST:
            self._forget(stream)
            effects.append(WasReset(stream.id))
        elif flags & FIN and not stream.fin_received:
            stream.fin_received = True
            effects.append(Finished(stream.id))
            if stream.fin_sent:
                self._forget(stream)

    def _widen(self, stream: _Stream, length: int) -> None:
        if stream.send_window + length > MAX_SEND_WINDOW:
            raise YamuxFault("a send window over 4 GiB")
        was_shut = not stream.send_window
        stream.send_window += length
        if was_shut and stream.pending:
            self._ready.append(stream)

    # ---- what we ask

    def open(self) -> int | None:
        """Open a stream and give its id; None where as many as allowed are open."""
        if self._outbound >= self._config.max_outbound:
            return None
        self._outbound += 1
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._streams[stream_id] = _Stream(stream_id, inbound=False)
        self._control.append(HEADER.pack(0, WINDOW_UPDATE, SYN, stream_id, 0))
        return stream_id

    def send(self, stream_id: int, payload: bytes | bytearray) -> bool:
        """Queue all of `payload`; False where our direction is over."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.fin_wanted:
            return False
        if payload:
            if not stream.pending and stream.send_window:
                self._ready.append(stream)
            stream.pending.append(payload)
            stream.pending_bytes += len(payload)
        return True

    def pending(self, stream_id: int) -> int:
        """Bytes queued on a stream and not yet framed."""
        stream = self._streams.get(stream_id)
        return stream.pending_bytes if stream is not None else 0

    def finish(self, stream_id: int) -> None:
        """Send no more after what is queued."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.fin_wanted:
            return
        stream.fin_wanted = True
        if not stream.pending:
            self._send_fin(stream)

    def release(self, stream_id: int) -> None:
        """Finish, and take no further interest in what the peer still sends (at most 1 MiB of it, then a reset)."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.draining = True
            self._give_back(stream, stream.held)
            self.held -= stream.held
            stream.held = 0
            self.finish(stream_id)

    def reset(self, stream_id: int) -> None:
        """Drop both directions, and what is queued."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._forget(stream)
            self._control.append(HEADER.pack(0, WINDOW_UPDATE, RST, stream_id, 0))

    def retire(self, stream_id: int) -> None:
        """Free the slot of an inbound stream: its handler has ended."""
        self._inbound_slots.discard(stream_id)

    def consumed(self, stream_id: int, size: int) -> None:
        """The reader took `size` bytes; the peer may send as many again."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        size = min(size, stream.held)
        stream.held -= size
        self.held -= size
        self._give_back(stream, size)

    def ping(self, token: int) -> None:
        """Ask for a Pong with `token` (32 bits)."""
        self._control.append(HEADER.pack(0, PING, SYN, 0, token))

    def go_away(self, code: int) -> None:
        """Say that we end the session."""
        self._control.append(HEADER.pack(0, GO_AWAY, 0, 0, code))

    def ended(self) -> list[int]:
        """The streams that lost their last direction since this was asked before."""
        over, self._over = self._over, []
        return over

    def is_open(self, stream_id: int) -> bool:
        """Whether the stream has a direction left."""
        return stream_id in self._streams

    # ---- what leaves

    @property
    def has_output(self) -> bool:
        """Whether `take` would give bytes."""
        return bool(self._control) or bool(self._ready)

    def take(self, limit: int) -> bytes:
        """About `limit` bytes for the wire: control frames, then the streams in turn, so that none waits for another's bulk."""
        parts: list[bytes | bytearray | memoryview] = list(self._control)
        self._control.clear()
        room = max(limit - (len(parts) + 1) * HEADER_BYTES, LEAST_ROOM)
        while self._ready and room >= LEAST_ROOM:
            stream = self._ready.popleft()
            if self._streams.get(stream.id) is not stream or not stream.pending:
                continue
            length = min(stream.pending_bytes, stream.send_window, FRAME_BYTES, room)
            stream.send_window -= length
            parts.append(HEADER.pack(0, DATA, 0, stream.id, length))
            self._cut(stream, length, parts)
            room -= HEADER_BYTES + length
            if not stream.pending and stream.fin_wanted:
                self._send_fin(stream, parts)
            elif stream.pending and stream.send_window:
                self._ready.append(stream)
        return b"".join(parts)

    def _cut(self, stream: _Stream, length: int, parts: list[bytes | bytearray | memoryview]) -> None:
        stream.pending_bytes -= length
        while length:
            body = stream.pending.popleft()
            if len(body) > length:
                view = memoryview(body)
                stream.pending.appendleft(view[length:])
                body = view[:length]
            length -= len(body)
            parts.append(body)

    def _send_fin(self, stream: _Stream, parts: list[bytes | bytearray | memoryview] | None = None) -> None:
        fin = HEADER.pack(0, WINDOW_UPDATE, FIN, stream.id, 0)
        if parts is None:
            self._control.append(fin)
        else:
            parts.append(fin)
        stream.fin_sent = True
        if stream.fin_received:
            self._forget(stream)

    def _give_back(self, stream: _Stream, size: int) -> None:
        # A reader that keeps up earns a doubled window: bulk on a long link needs it, and a slow reader never gets it.
        stream.credit += size
        if stream.credit * 2 < stream.window or stream.fin_received:
            return
        grown = min(stream.window * 2, self._config.max_window)
        increment = stream.credit + max(0, grown - stream.window)
        stream.window = max(grown, stream.window)
        stream.credit = 0
        stream.granted += increment
        self._control.append(HEADER.pack(0, WINDOW_UPDATE, 0, stream.id, increment))

    def _forget(self, stream: _Stream) -> None:
        self.held -= stream.held
        stream.held = 0
        stream.pending.clear()
        stream.pending_bytes = 0
        self._outbound -= not stream.inbound
        self._over.append(stream.id)
        del self._streams[stream.id]
