"""A byte pipe to one peer over a punched UDP path: QUIC with one stream, on a socket that others own. Decides no address.

QUIC brings order, congestion control and its own encryption; who the peer is, Noise inside it says, as over TCP. So its
certificate is made up and nobody checks it. aioquic does the protocol and this module moves its datagrams.
"""

import datetime
import functools
import logging
from collections import deque
from typing import Any

import trio
from aioquic._buffer import Buffer, BufferReadError
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent, StreamDataReceived, StreamReset
from aioquic.quic.packet import QuicHeader, QuicPacketType, pull_quic_header
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from libp2p.io.abc import ReadWriteCloser

from daemon.transport.interface import TransportError
from daemon.transport.udp_port import Address

log = logging.getLogger(__name__)

ALPN = "swarmd-pipe/1"
MAX_UNREAD = 16 << 20
"""More than all that Yamux lets a peer have on the way; a pipe that holds it is closed."""

MAX_UNSENT = 1 << 20
_STREAM = 0
_QUEUE_DATAGRAMS = 2048
_IDLE_SECONDS = 30.0
_CID_BYTES = 8


class QuicPipe(ReadWriteCloser):
    """One end; `serve` runs it. The client opens the stream, and the server can write once the client has."""

    def __init__(self, sender: Any, address: Address, first: bytes | None = None, ticket: bytes = b"") -> None:
        """`sender(address, payload)` sends a datagram. A server begins with the client's `first` one; raises TransportError.

        A client shows `ticket`, by which the server knows that the client receives at its address (RFC 9000 section 8.1.3).
        """
        self._send = sender
        self._address = address
        configuration = QuicConfiguration(
            is_client=first is None,
            alpn_protocols=[ALPN],
            max_data=MAX_UNREAD,
            max_stream_data=MAX_UNREAD // 2,
            idle_timeout=_IDLE_SECONDS,
            verify_mode=0,  # ssl.CERT_NONE; Noise inside says who it is
            token=ticket,
        )
        if first is None:
            self._quic = QuicConnection(configuration=configuration)
            self._quic.connect(address, trio.current_time())
        else:
            configuration.certificate, configuration.private_key = _certificate()
            named = _initial(first).destination_cid
            self._quic = QuicConnection(configuration=configuration, original_destination_connection_id=named)
        self.opened = trio.Event()
        """The handshake is over, and for a server the client's stream is there."""
        self._client = first is None
        self._arrived: deque[bytes] = deque([first] if first is not None else [])
        self._kick = trio.Event()
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._received: deque[bytes] = deque()
        self._unread = 0
        self._finished = False
        self.ended = trio.Event()
        self.reason = ""

    # ---- the driver

    def arrived(self, _address: Address, payload: bytes) -> None:
        """Take a datagram from the socket's owner; beyond 2,048 that wait it is lost, as in a router's queue."""
        if len(self._arrived) < _QUEUE_DATAGRAMS:
            self._arrived.append(payload)
            self._kick.set()

    async def serve(self) -> None:
        """Run until either end closes it, it falls silent for 30 s, or it is cancelled."""
        try:
            while not self.ended.is_set():
                self._turn()
                timer = self._quic.get_timer()
                with trio.move_on_at(timer if timer is not None else float("inf")):
                    await self._kick.wait()
                self._kick = trio.Event() if self._kick.is_set() else self._kick
        finally:
            self._quic.close()
            self._flush(trio.current_time())
            self._end("the pipe is closed")

    def _turn(self) -> None:
        now = trio.current_time()
        while self._arrived:
            self._quic.receive_datagram(self._arrived.popleft(), self._address, now)
        timer = self._quic.get_timer()
        if timer is not None and now >= timer:
            self._quic.handle_timer(now)
        while (event := self._quic.next_event()) is not None:
            self._apply(event)
        self._flush(now)
        if self._pending() < MAX_UNSENT:
            self._writable.set()

    def _apply(self, event: QuicEvent) -> None:
        match event:
            case HandshakeCompleted() if self._client:
                self.opened.set()
            case StreamDataReceived(stream_id=stream) if stream == _STREAM:
                self.opened.set()
                if event.data:
                    self._received.append(event.data)
                    self._unread += len(event.data)
                self._finished = self._finished or event.end_stream
                self._readable.set()
                if self._unread > MAX_UNREAD:
                    self._end("it holds too much that nobody reads")
            case StreamReset():
                self._end("the peer reset it")
            case ConnectionTerminated():
                self._end(event.reason_phrase or f"it ended with code {event.error_code}")

    def _flush(self, now: float) -> None:
        for payload, _ in self._quic.datagrams_to_send(now):
            self._send(self._address, payload)

    def _pending(self) -> int:
        """Bytes that we wrote and the peer has not acknowledged."""
        stream = self._quic._streams.get(_STREAM)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    def _end(self, reason: str) -> None:
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()
        self._readable.set()
        self._writable.set()
        self._kick.set()

    # ---- ReadWriteCloser

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, at least one; b"" once the peer finished or the pipe is gone."""
        while not self._received:
            if self._finished or self.ended.is_set():
                return b""
            self._readable = trio.Event()
            await self._readable.wait()
        taken = self._received.popleft()
        if n is not None and n < len(taken):
            self._received.appendleft(taken[n:])
            taken = taken[:n]
        self._unread -= len(taken)
        return taken

    async def write(self, data: bytes) -> None:
        """Queue `data` once less than 1 MiB is on its way; raises TransportError where the pipe is gone."""
        while self._pending() >= MAX_UNSENT and not self.ended.is_set():
            self._writable = trio.Event()
            await self._writable.wait()
        if self.ended.is_set():
            raise TransportError(f"the punched path is gone: {self.reason}")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._quic.send_stream_data(_STREAM, data)
        self._kick.set()

    async def close(self) -> None:
        """End both directions; what the kernel has taken still leaves."""
        self._end("we closed it")
        await trio.lowlevel.checkpoint()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._address


def ticket_in(datagram: bytes) -> bytes:
    """The ticket that a client's first datagram shows, b"" where there is none; raises TransportError where that is no QUIC."""
    return _initial(datagram).token


def _initial(datagram: bytes) -> QuicHeader:
    try:
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=_CID_BYTES)
    except (ValueError, BufferReadError):
        raise TransportError("that is no QUIC packet") from None
    if header.packet_type is not QuicPacketType.INITIAL or len(datagram) < 1200:
        raise TransportError("a QUIC connection begins with an Initial packet of 1,200 bytes")
    return header


@functools.cache
def _certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A key and a certificate for this process; they prove nothing and name nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarmd")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
    )
    return built.sign(key, hashes.SHA256()), key
