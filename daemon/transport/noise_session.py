"""Noise as libp2p speaks it: py-libp2p's handshake, then our own transport phase. Seals and opens; knows no meaning.

The stock session reads a length and a body per message and loses its place when a write is cancelled; this one decrypts all that
one receive brought, seals a whole batch at once, and is driven by one reader and one writer task only.
"""

from collections import deque
from collections.abc import Callable
from typing import cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr

from daemon.transport.addresses import remote_end
from daemon.transport.tcp import plain_socket, receive, receive_now, send_all, send_now
from nat.addresses import multiaddr_of

NOISE = PROTOCOL_ID

MAX_MESSAGE = 65535
TAG_BYTES = 16
MAX_PLAINTEXT = MAX_MESSAGE - TAG_BYTES
LENGTH_BYTES = 2
RECEIVE_BYTES = 256 << 10
WRITE_BYTES = MAX_PLAINTEXT
"""Sealed and written at once: the peer opens one message while we seal the next, which an eighth more calls of 256 KiB show."""

READS_AT_ONCE = 4
"""Of a message at most, without a turn of the event loop: 256 KiB together, which take a third of a millisecond to open."""


class CipherFault(IOException):
    """A message did not authenticate: the connection, and nothing else, is lost."""


class Sealer:
    """One direction of ChaCha20-Poly1305 under Noise's counting nonce (Noise specification, section 5.1)."""

    def __init__(self, key: bytes, nonce: int) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = nonce

    def seal(self, plaintext: bytes) -> bytes:
        """`plaintext` as length-prefixed Noise messages of at most 65535 bytes."""
        parts: list[bytes] = []
        view = memoryview(plaintext)
        for start in range(0, len(view), MAX_PLAINTEXT):
            message = self._cipher.encrypt(self._next(), view[start : start + MAX_PLAINTEXT], b"")
            parts += (len(message).to_bytes(LENGTH_BYTES, "big"), message)
        return b"".join(parts)

    def open(self, buffer: bytes, plaintext: "deque[bytes]") -> int:
        """Open every whole message of `buffer` into `plaintext` and give their bytes' number; raises CipherFault."""
        start, end = 0, len(buffer)
        with memoryview(buffer) as view:
            while end - start >= LENGTH_BYTES:
                after = start + LENGTH_BYTES + ((buffer[start] << 8) | buffer[start + 1])
                if after > end:
                    break
                try:
                    opened = self._cipher.decrypt(self._next(), view[start + LENGTH_BYTES : after], b"")
                except (InvalidTag, ValueError):
                    raise CipherFault("a message that does not authenticate") from None
                if opened:
                    plaintext.append(opened)
                start = after
        return start

    def _next(self) -> bytes:
        nonce = self._nonce
        self._nonce += 1
        return b"\0\0\0\0" + nonce.to_bytes(8, "little")


class NoiseSession(BaseSession):
    """The transport phase of one connection. `read` and `write` may each be used by one task at a time."""

    def __init__(self, handshaken: SecureSession, raw: IRawConnection) -> None:
        super().__init__(
            local_peer=handshaken.local_peer,
            local_private_key=handshaken.local_private_key,
            remote_peer=handshaken.remote_peer,
            remote_permanent_pubkey=handshaken.remote_permanent_pubkey,
            is_initiator=handshaken.is_initiator,
        )
        self.raw = raw
        protocol = handshaken.conn.noise_state.noise_protocol  # type: ignore[attr-defined]
        sending, receiving = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
        self._sealer = Sealer(bytes(sending.k), sending.n)
        self._opener = Sealer(bytes(receiving.k), receiving.n)
        self._socket = plain_socket(raw)
        self._rest = b""
        self._plaintext: deque[bytes] = deque()
        self._at_once = 0
        self.unsent = b""
        """Sealed, and left over by `write_now` to the next `write`."""

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes (None: one message), at least one; b"" once the peer has closed."""
        while not self._plaintext:
            received = await self._received()
            if not received:
                return b""
            if self._rest:
                received = self._rest + received
            opened = self._opener.open(received, self._plaintext)
            self._rest = received[opened:]
        taken = self._plaintext.popleft()
        if n is not None and n < len(taken):
            self._plaintext.appendleft(taken[n:])
            taken = taken[:n]
        return taken

    async def _received(self) -> bytes:
        """Some bytes, b"" at the end. After about one message the next read is tried at once: whoever sends more has sealed it by
        now, and a turn of the event loop to be told so takes half as long as to open it. After more, others have their turn."""
        if self._socket is None:
            return await self.raw.read(RECEIVE_BYTES)
        if self._at_once:
            self._at_once -= 1
            if received := receive_now(self._socket, LENGTH_BYTES + MAX_MESSAGE):
                return received
        received = await receive(self._socket, RECEIVE_BYTES)
        self._at_once = READS_AT_ONCE if MAX_MESSAGE // 2 < len(received) < 2 * MAX_MESSAGE else 0
        return received

    @property
    def has_more(self) -> bool:
        """Whether the next `read` returns at once."""
        return bool(self._plaintext)

    async def write(self, data: bytes) -> None:
        """Seal and send `data`; a cancelled call leaves the connection unusable, so only the muxer's writer task calls it."""
        if self.unsent and self._socket is not None:
            unsent, self.unsent = self.unsent, b""
            await send_all(self._socket, unsent)
        for start in range(0, len(data), WRITE_BYTES):
            sealed = self._sealer.seal(data[start : start + WRITE_BYTES] if len(data) > WRITE_BYTES else data)
            await (self.raw.write(sealed) if self._socket is None else send_all(self._socket, sealed))

    @property
    def can_write_now(self) -> bool:
        """Whether `write_now` may be called while no `write` is under way."""
        return self._socket is not None and not self.unsent

    def write_now(self, data: bytes) -> None:
        """Seal `data` and send what the kernel takes at once; the next `write` sends the rest, or finds what is wrong."""
        assert self._socket is not None  # noqa: S101 - for the type checker
        self.unsent = send_now(self._socket, self._sealer.seal(data))

    async def close(self) -> None:
        await self.raw.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.raw.get_remote_address() or remote_end(getattr(self.raw, "stream", None))

    def get_transport_addresses(self) -> list[Multiaddr]:
        known = list(self.raw.get_transport_addresses())
        remote = None if known else self.get_remote_address()
        if remote is None:
            return known
        return [Multiaddr(multiaddr_of(*remote))]

    def get_connection_type(self) -> ConnectionType:
        return self.raw.get_connection_type()


class NoiseSecurity(Transport):
    """The only security transport that we offer; stock hosts also take plaintext and secio."""

    def __init__(self, key_pair: KeyPair, on_failure: Callable[[str], None]) -> None:
        super().__init__(key_pair, noise_privkey=create_x25519_key_pair().private_key)
        self._on_failure = on_failure

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        try:
            return NoiseSession(cast("SecureSession", await super().secure_inbound(conn)), conn)
        except Exception as error:
            raise self._failure(error) from error

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        try:
            return NoiseSession(cast("SecureSession", await super().secure_outbound(conn, peer_id)), conn)
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> HandshakeFailure:
        self._on_failure(type(error).__name__)
        if isinstance(error, PeerIDMismatchesPubkey):
            return error
        return HandshakeFailure(f"the Noise handshake failed: {type(error).__name__}")
