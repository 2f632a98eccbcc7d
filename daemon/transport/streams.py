"""Our streams over Yamux: agreeing on a protocol in one round trip, then bytes. Knows nothing of what the bytes mean."""

from collections.abc import Callable
from typing import Any, TypeVar

import trio
from google.protobuf.message import Message
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamEOF, MuxedStreamError
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from daemon.transport.interface import TransportError, WantsToSend
from daemon.transport.muxed_stream import MuxedStream
from daemon.transport.muxer import MuxedConnection
from protocol.wire.codec import FrameReader, decode
from protocol.wire.ids import PeerId, short

M = TypeVar("M")
P = TypeVar("P", bound=Message)

MULTISTREAM = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
MAX_LINE = 1024
MAX_RECEIVE = 256 << 10


class UnsupportedError(TransportError):
    """The peer answered, and does not serve the protocol."""


class Libp2pStream:
    """One stream to an authenticated peer; implements `daemon.transport.interface.Stream`."""

    def __init__(self, peer: PeerId, muxed: MuxedStream, early: bytes = b"") -> None:
        self._peer = peer
        self._muxed = muxed
        self._early = early
        muxed.owned = True

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def is_open(self) -> bool:
        """Whether both directions stand, as far as we know."""
        return self._muxed.is_open

    @property
    def parked(self) -> bool:
        """Whether it waits for further use, so that the connection may be closed under it."""
        return not self._muxed.owned

    @parked.setter
    def parked(self, parked: bool) -> None:
        self._muxed.owned = not parked

    async def receive_some(self) -> bytes:
        """The next bytes (at most 256 KiB), b"" once the peer finished; raises TransportError on reset or loss."""
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            return await self._muxed.read(MAX_RECEIVE)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as error:
            raise TransportError(f"the stream from {short(self._peer)} broke: {error}") from None

    async def send_all(self, payload: bytes) -> None:
        """Queue all of `payload`, once less than the queue's limit waits; a cancelled call has queued all of it or nothing."""
        try:
            await self._muxed.write(payload)
        except MuxedStreamError as error:
            raise TransportError(f"the stream to {short(self._peer)} broke: {error}") from None

    def plug(self, take: Callable[[], bytes | bytearray], arrived: Callable[[bytes | memoryview], bool | None]) -> WantsToSend:
        """Have the connection move the bytes by itself: see `daemon.transport.interface.PluggableStream`."""
        early, self._early = self._early, b""
        if early:
            arrived(early)
        self._muxed.plug(take, arrived)
        return self._muxed.wants_to_send

    async def aclose(self) -> None:
        """Finish our direction and release the stream; what is queued still leaves."""
        self.release()
        await trio.lowlevel.checkpoint()

    def release(self) -> None:
        """As `aclose`, at once."""
        self._muxed.release()

    async def reset(self) -> None:
        """Drop both directions at once."""
        await self._muxed.reset()


async def open_stream(peer: PeerId, connection: MuxedConnection, protocol: str, early: bytes = b"") -> Libp2pStream:
    """Open a stream and agree on `protocol`; raises UnsupportedError or TransportError. Our lines and `early` travel together."""
    try:
        muxed = await connection.open_stream()
    except MuxedConnError as error:
        raise TransportError(f"no stream to {short(peer)}: {error}") from None
    assert isinstance(muxed, MuxedStream)  # noqa: S101 - for the type checker
    agreed = False
    try:
        await muxed.write(_line(MULTISTREAM) + _line(protocol) + early)
        first, rest = await _read_line(muxed, b"")
        if first != MULTISTREAM:
            raise TransportError(f"{short(peer)} does not speak multistream")
        answer, rest = await _read_line(muxed, rest)
        if answer == NOT_AVAILABLE:
            raise UnsupportedError(f"{short(peer)} does not serve {protocol}")
        if answer != protocol:
            raise TransportError(f"{short(peer)} answered {answer[:80]!r} instead of {protocol}")
        agreed = True
        return Libp2pStream(peer, muxed, rest)
    except MuxedStreamError as error:
        raise TransportError(f"the stream to {short(peer)} broke while agreeing on {protocol}: {error}") from None
    finally:
        if not agreed:
            with trio.CancelScope(shield=True):
                await muxed.reset()


def _line(text: str) -> bytes:
    raw = text.encode() + b"\n"
    size = len(raw)
    head = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    return head + raw


async def _read_line(muxed: MuxedStream, rest: bytes) -> tuple[str, bytes]:
    while True:
        parsed = _cut_line(rest)
        if parsed is not None:
            return parsed
        rest += await muxed.read(MAX_LINE)


def _cut_line(received: bytes) -> tuple[str, bytes] | None:
    head = 1 if received and received[0] < 0x80 else 2
    if len(received) < head:
        return None
    size = received[0] if head == 1 else (received[0] & 0x7F) | (received[1] << 7)
    if not 0 < size <= MAX_LINE:
        raise TransportError(f"a negotiation line of {size} bytes")
    if len(received) < head + size:
        return None
    line = received[head : head + size]
    if not line.endswith(b"\n"):
        raise TransportError("a negotiation line without its end")
    return line[:-1].decode("utf-8", "replace"), received[head + size :]


async def receive_message(stream: Libp2pStream, kind: type[M], limit: int) -> M:
    """The one message that comes next, of at most `limit` bytes; raises TransportError, RemoteError(oversized | malformed)."""
    frames = FrameReader(limit)
    while received := await stream.receive_some():
        for raw in frames.feed(received):
            return decode(kind, raw, limit)
    raise TransportError("the stream ended before the message did")


async def receive_protobuf(stream: Any, kind: type[P], limit: int) -> P:
    """The one message that comes next behind its length; raises DecodeError where it is none, and what reading raises."""
    message = kind()
    message.ParseFromString(await read_varint_prefixed_bytes_limited(stream, limit))
    return message
