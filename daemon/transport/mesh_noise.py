"""Noise of a private mesh: strangers fail at the first message, and each side proves its membership before the muxer starts.

`Noise_XXpsk0_25519_ChaChaPoly_SHA256` under a protocol name of its own: the mesh key is mixed in before anything is answered. It
runs inside every kind of connection (TCP, simultaneous open, punched UDP, relayed), so that one check holds on all. Who is a
member, the `MeshGate` decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IncompleteReadError, IOException
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.io import NoiseHandshakeReadWriter, NoiseTransportReadWriter
from libp2p.security.noise.transport import Transport
from libp2p.security.secure_session import SecureSession
from noise.connection import Keypair, NoiseConnection

from daemon.transport.interface import MAX_PROOF_BYTES, MeshGate
from daemon.transport.noise_session import NoiseSession
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import open_envelope, seal
from protocol.wire.errors import malformed
from protocol.wire.ids import PeerId

MESH_NOISE = TProtocol("/swarmd/mesh-noise/1")
DOMAIN = "mesh_noise"
_NAME = b"Noise_XXpsk0_25519_ChaChaPoly_SHA256"
_WELCOME = b"\0"
_MAX_INTRODUCTION = MAX_PROOF_BYTES + 512


class Introduction(Message, frozen=True):
    """What each side says of itself in the handshake: its Noise key signed by its identity, and its proof of membership."""

    signed: Annotated[bytes, msgspec.Meta(max_length=256)]
    proof: Annotated[bytes, msgspec.Meta(max_length=MAX_PROOF_BYTES)]


class NotAdmitted(HandshakeFailure, IOException):
    """One side of a private mesh does not take the other; the message says why."""


class MeshNoise(Transport):
    """The security transport of a private mesh, in place of Noise."""

    def __init__(self, key: Ed25519PrivateKey, key_pair: KeyPair, gate: MeshGate, on_failure: Callable[[str], None]) -> None:
        super().__init__(key_pair, noise_privkey=create_x25519_key_pair().private_key)
        self._key = key
        self._gate = gate
        self._on_failure = on_failure

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Let a member in; what it is refused for, a peer that holds the mesh key is told."""
        try:
            shake = self._begin(conn, initiator=False)
            await shake.wire.read_msg()
            await shake.wire.write_msg(self._introduction())
            peer, proof = shake.introduced(await shake.wire.read_msg())
            session = self._session(conn, shake, peer, initiator=False)
            refusal = self._gate.judge(peer, proof)
            await session.write(refusal.encode()[:512] if refusal else _WELCOME)
            if refusal:
                raise NotAdmitted(f"{peer} was refused: {refusal}")
            return session
        except Exception as error:  # noqa: BLE001 - a stranger's bytes decide what is raised here
            raise self._failure(error, "it does not hold our mesh key") from None

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Present ourselves to a member; nobody else learns who we are."""
        try:
            shake = self._begin(conn, initiator=True)
            await shake.wire.write_msg(b"")
            peer, proof = shake.introduced(await shake.wire.read_msg())
            if peer != peer_id.to_base58():
                raise PeerIDMismatchesPubkey(f"peer id mismatch: remote_peer={peer_id}, remote_peer_id_from_pubkey={peer}")
            refusal = self._gate.judge(peer, proof)
            if refusal:
                raise NotAdmitted(f"we refuse it: {refusal}")
            await shake.wire.write_msg(self._introduction())
            return self._session(conn, shake, peer, initiator=True)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error, "it does not hold our mesh key, or we do not hold its") from None

    def _begin(self, conn: IRawConnection, initiator: bool) -> "_Handshake":
        noise = NoiseConnection.from_name(_NAME)
        noise.set_psks(psk=self._gate.key)
        noise.set_keypair_from_private_bytes(Keypair.STATIC, self.noise_privkey.to_bytes())
        if initiator:
            noise.set_as_initiator()
        else:
            noise.set_as_responder()
        noise.start_handshake()
        return _Handshake(noise, NoiseHandshakeReadWriter(conn, noise), noise.noise_protocol.handshake_state)

    def _introduction(self) -> bytes:
        static = self.noise_privkey.get_public_key().to_bytes()
        return encode(Introduction(seal(DOMAIN, static, self._key), self._gate.proof()))

    def _session(self, conn: IRawConnection, shake: "_Handshake", peer: PeerId, initiator: bool) -> "_MeshSession":
        remote = ID.from_base58(peer)
        identity = remote.extract_public_key()
        assert identity is not None  # noqa: S101 - an Ed25519 id holds its key
        handshaken = SecureSession(
            local_peer=self.local_peer,
            local_private_key=self.libp2p_privkey,
            remote_peer=remote,
            remote_permanent_pubkey=identity,
            is_initiator=initiator,
            conn=NoiseTransportReadWriter(conn, shake.noise),
        )
        return _MeshSession(handshaken, conn)

    def _failure(self, error: Exception, strangers: str) -> HandshakeFailure:
        self._on_failure(type(error).__name__)
        if isinstance(error, HandshakeFailure):
            return error
        if isinstance(error, IncompleteReadError | InvalidTag):
            return HandshakeFailure(strangers)
        return HandshakeFailure(f"the mesh's handshake failed: {str(error)[:100] or type(error).__name__}")


class _MeshSession(NoiseSession):
    """A session whose first inbound message, for the initiator, is the other side's verdict on us."""

    def __init__(self, handshaken: SecureSession, raw: IRawConnection) -> None:
        super().__init__(handshaken, raw)
        self._judged = not handshaken.is_initiator

    async def read(self, n: int | None = None) -> bytes:
        """As NoiseSession; raises NotAdmitted where the other side does not take us."""
        if not self._judged:
            self._judged = True
            verdict = await super().read()
            if verdict != _WELCOME:
                raise NotAdmitted(f"it refuses us: {verdict.decode('utf-8', 'replace')[:512] or 'without a word'}")
        return await super().read(n)


@dataclass
class _Handshake:
    noise: NoiseConnection
    wire: NoiseHandshakeReadWriter
    state: Any
    """The library's own, which it lets go of when the handshake ends; it holds the other side's Noise key."""

    def introduced(self, raw: bytes) -> tuple[PeerId, bytes]:
        """Who signed the Noise key that was just used, and its proof; raises RemoteError."""
        said = decode(Introduction, raw, _MAX_INTRODUCTION)
        opened = open_envelope(DOMAIN, said.signed)
        if opened.payload != self.state.rs.public_bytes:
            raise malformed("the Noise key is not the one that was signed")
        return opened.signer, said.proof
