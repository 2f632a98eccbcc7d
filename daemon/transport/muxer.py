"""Drives one Yamux session over one secured connection: a reader, a writer, a keep-alive. Owns no rule of the protocol.

Only the writer task touches the wire, so a caller that is cancelled gives up its wait and never a half-sent frame.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
)
from multiaddr import Multiaddr

from daemon.transport.interface import PathKind
from daemon.transport.muxed_stream import MuxedStream
from daemon.transport.muxer_settings import MuxerSettings
from daemon.transport.noise_session import CipherFault, NoiseSession
from daemon.transport.yamux import Yamux
from daemon.transport.yamux_frames import (
    MESSAGE_BYTES,
    NORMAL,
    PROTOCOL_ERROR,
    Arrived,
    Effect,
    Finished,
    GoneAway,
    Opened,
    Pong,
    Refused,
    WasReset,
    YamuxFault,
)

BATCH_BYTES = 256 << 10
FLUSH_SECONDS = 0.5
EFFECTS_AT_ONCE = 512
"""Of what one receive brought, before others have their turn: single bytes in messages of their own take 40 ms by 100 KiB."""

SUSPECT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Ping:
    token: int
    at: float
    times_heard: int


class MuxedConnection(IMuxedConn):
    """All streams to one peer over one connection."""

    def __init__(self, conn: ISecureConn, peer_id: ID, settings: MuxerSettings) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.settings = settings
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.waiting: set[MuxedStream] = set()
        self._pulled: dict[MuxedStream, None] = {}
        """Streams whose source may have something, in the order in which they said so."""
        self._taken: Counter[int] = Counter()
        self._behind: list[MuxedStream] = []
        """Those whose sinks are not done with what came."""
        self.rtt: float | None = None
        self.path_kind: PathKind | None = None
        """Set by whoever made the connection in a special way, such as by hole punching."""
        self.since = trio.current_time()
        self.received = 0
        """Bytes that came, without what secures them."""
        self.cause = ""
        """Why it ended: one word for the counters."""
        self.detail = ""
        """Why it ended, for people."""
        self._client = conn.is_initiator
        self._machine = Yamux(self._client, settings.yamux, lambda: settings.slots.take(peer_id))
        self._streams: dict[int, MuxedStream] = {}
        self._slots: set[int] = set()
        self._accounted = 0
        self._writing = False
        self._idle = trio.Event()
        self._accepted, self._to_accept = trio.open_memory_channel[MuxedStream](settings.yamux.max_inbound)
        self._kick = trio.Event()
        self._close_asked = trio.Event()
        self._scope = trio.CancelScope()
        self._running = False
        self._heard = trio.Event()
        self._times_heard = 0
        self._ping: _Ping | None = None

    # ---- IMuxedConn

    @property
    def is_initiator(self) -> bool:
        return self._client

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        return self.event_closed.is_set()

    @property
    def in_use(self) -> bool:
        """Whether streams of the daemon's own protocols are open on it: calls, not the library's services."""
        return any(stream.owned for stream in self._streams.values())

    @property
    def is_suspect(self) -> bool:
        """A ping has been out for a second and nothing came back: new streams should take another path."""
        ping = self._ping
        return ping is not None and self._times_heard == ping.times_heard and trio.current_time() - ping.at > SUSPECT_SECONDS

    async def start(self) -> None:
        """Run until either side closes. Raises nothing: whatever goes wrong ends this connection alone."""
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                for task in (self._read_loop, self._write_loop, self._keep_alive, self._close_when_asked):
                    nursery.start_soon(self._contained, task)
                self.event_started.set()
        finally:
            await self._shut()

    async def close(self) -> None:
        """Say goodbye, flush for half a second at most, and close."""
        self._close_asked.set()
        if self._running:
            with trio.CancelScope(shield=True), trio.move_on_after(4 * FLUSH_SECONDS):
                await self.event_closed.wait()
                return
        self.event_started.set()
        await self._shut()

    async def open_stream(self) -> IMuxedStream:
        if self.is_closed or self._close_asked.is_set():
            raise MuxedConnUnavailable("the connection is closed")
        stream_id = self._machine.open()
        if stream_id is None:
            raise MuxedConnUnavailable("too many streams to this peer are open")
        stream = self._streams[stream_id] = MuxedStream(self, stream_id, inbound=False)
        self._flush()
        return stream

    async def accept_stream(self) -> IMuxedStream:
        try:
            return await self._to_accept.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise MuxedConnUnavailable("the connection is closed") from None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()

    # ---- for its streams

    def pending(self, stream_id: int) -> int:
        return self._machine.pending(stream_id)

    def is_open(self, stream_id: int) -> bool:
        return not self.is_closed and self._machine.is_open(stream_id)

    def send(self, stream_id: int, payload: bytes) -> bool:
        taken = self._machine.send(stream_id, payload)
        self._flush()
        return taken

    def queue(self, stream_id: int, payload: bytes | bytearray) -> bool:
        """As `send`, by the writer itself, which need not be woken."""
        return self._machine.send(stream_id, payload)

    def pull(self, stream: MuxedStream, at_once: bool = False) -> None:
        """Have the writer ask `stream` for what it has to send; `at_once` does it without the writer, which saves a turn."""
        if not self.is_closed:
            self._pulled[stream] = None
            if not (at_once and self._sent_without_the_writer()):
                self._kick.set()

    def _sent_without_the_writer(self) -> bool:
        secured = self.secured_conn
        if self._writing or not isinstance(secured, NoiseSession) or not secured.can_write_now:
            return False
        if batch := self._next_batch():
            secured.write_now(batch)
        self._settle()
        return not self._pulled and not secured.unsent

    def taken(self, stream_id: int, size: int) -> None:
        """As `consumed`, for what the reader hands on itself: it tells the peer once, after all that came at once."""
        self._taken[stream_id] += size

    def consumed(self, stream_id: int, size: int) -> None:
        self._machine.consumed(stream_id, size)
        self._settle()

    def finish(self, stream_id: int) -> None:
        self._machine.finish(stream_id)
        self._settle()

    def release(self, stream_id: int) -> None:
        self._machine.release(stream_id)
        self._settle()

    def reset(self, stream_id: int) -> None:
        self._machine.reset(stream_id)
        self._settle()

    def retire(self, stream_id: int) -> None:
        if stream_id in self._slots:
            self._slots.discard(stream_id)
            self._machine.retire(stream_id)
            self.settings.slots.free(self.peer_id)

    def _settle(self) -> None:
        if self.is_closed:
            return
        self.settings.memory.held += self._machine.held - self._accounted
        self._accounted = self._machine.held
        for stream_id in self._machine.ended():
            stream = self._streams.pop(stream_id, None)
            if stream is not None:
                stream.ended()
        self._flush()

    def _flush(self) -> None:
        if self._machine.has_output and not self.is_closed:
            self._kick.set()

    # ---- tasks

    async def _contained(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except YamuxFault as fault:
            self._end("protocol", str(fault))
        except CipherFault as fault:
            self._end("cipher", str(fault))
        except Exception as error:  # noqa: BLE001 - the peer's end of the wire decides what is raised here
            self._end("lost", f"{type(error).__name__}: {error}")
        self._scope.cancel()

    def _end(self, cause: str, detail: str) -> None:
        if not self.cause:
            self.cause, self.detail = cause, detail

    async def _read_loop(self) -> None:
        memory, applied = self.settings.memory, 0
        while True:
            received = await self.secured_conn.read()
            if not received:
                self._end("peer", "the peer closed it")
                return
            self._times_heard += 1
            self.received += len(received)
            self._heard.set()
            effects = self._machine.receive(received)
            for effect in effects:
                self._apply(effect)
            while self._behind:
                await trio.lowlevel.checkpoint()
                self._behind = [stream for stream in self._behind if stream.catch_up()]
            if self._taken and not getattr(self.secured_conn, "has_more", False):
                for stream_id, size in self._taken.items():
                    self._machine.consumed(stream_id, size)
                self._taken.clear()
            self._settle()
            if memory.held > memory.limit and self._machine.held > memory.share:
                self._end("memory", "it holds more unread bytes than its share while the network memory is full")
                return
            applied += 1 + len(effects)
            if applied >= EFFECTS_AT_ONCE:
                applied = 0
                await trio.lowlevel.checkpoint()

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Arrived(stream, chunk):
                if stream in self._streams and self._streams[stream].arrived(chunk):
                    self._behind.append(self._streams[stream])
            case Opened(stream):
                opened = self._streams[stream] = MuxedStream(self, stream, inbound=True)
                self._slots.add(stream)
                self._accepted.send_nowait(opened)
            case Finished(stream):
                if stream in self._streams:
                    self._streams[stream].finished()
            case WasReset(stream):
                if stream in self._streams:
                    self._streams[stream].dropped()
            case Refused(_):
                self.settings.on_stream_refused(self.peer_id)
            case Pong(token):
                if self._ping is not None and self._ping.token == token:
                    measured = trio.current_time() - self._ping.at
                    self.rtt = measured if self.rtt is None else self.rtt * 0.75 + measured * 0.25
                    self._ping = None
            case GoneAway(code):
                self._end("peer", "the peer said goodbye" if code == NORMAL else f"the peer left with code {code}")
                self._scope.cancel()

    async def _write_loop(self) -> None:
        while True:
            while (batch := self._next_batch()) or getattr(self.secured_conn, "unsent", b""):
                self._settle()
                if self.waiting:
                    self._wake_writers()
                self._writing = True
                await self.secured_conn.write(batch)
                self._writing = False
            self._idle.set()
            self._kick = trio.Event()
            await self._kick.wait()

    def _next_batch(self) -> bytes:
        for stream in tuple(self._pulled):
            if not stream.pull(BATCH_BYTES):
                self._pulled.pop(stream, None)
        return self._machine.take(MESSAGE_BYTES)

    def _wake_writers(self) -> None:
        for stream in tuple(self.waiting):
            if self._machine.pending(stream.stream_id) * 2 <= self.settings.send_queue:
                self.waiting.discard(stream)
                stream.wake_writer()

    async def _keep_alive(self) -> None:
        token = 0
        while True:
            token = (token + 1) & 0xFFFFFFFF
            ping = self._ping = _Ping(token, trio.current_time(), self._times_heard)
            self._machine.ping(token)
            self._flush()
            if not await self._hears_after(ping):
                self._end("silent", f"nothing heard for {trio.current_time() - ping.at:.1f} s")
                return
            await trio.sleep(self.settings.keepalive_interval)

    async def _hears_after(self, ping: "_Ping") -> bool:
        # The second, short wait is for ourselves: after our own stall the answer lies unread in the socket.
        for patience in (self.settings.keepalive_timeout, min(0.5, self.settings.keepalive_timeout / 2)):
            with trio.move_on_after(patience):
                while self._times_heard == ping.times_heard:
                    self._heard = trio.Event()
                    await self._heard.wait()
                return True
        return False

    async def _close_when_asked(self) -> None:
        await self._close_asked.wait()
        self._end("local", "we closed it")
        with trio.move_on_after(FLUSH_SECONDS):
            while self._machine.has_output or self._writing:
                self._idle = trio.Event()
                await self._idle.wait()

    async def _shut(self) -> None:
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        self._end("local", "we closed it")
        self.settings.memory.held -= self._accounted
        for stream in tuple(self._streams.values()):
            stream.dropped()
        self._streams.clear()
        self._pulled.clear()
        self._accepted.close()
        for _ in tuple(self._slots):
            self.settings.slots.free(self.peer_id)
        self._slots.clear()
        with trio.CancelScope(shield=True), trio.move_on_after(FLUSH_SECONDS):
            if self.cause in ("local", "protocol", "memory") and not self._writing:
                # Half a frame on the wire could not be followed by another, so a goodbye needs a writer that is between two.
                self._machine.go_away(NORMAL if self.cause == "local" else PROTOCOL_ERROR)
                await self._say_goodbye()
            await self.secured_conn.close()

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(FLUSH_SECONDS / 2):
            try:
                await self.secured_conn.write(self._machine.take(BATCH_BYTES))
            except Exception as error:  # noqa: BLE001 - the peer may be gone already, and this connection is over either way
                self.detail += f" (no goodbye: {type(error).__name__})"
