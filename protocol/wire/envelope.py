"""Signed statements: who said exactly these bytes, in which domain. Signs and hashes bytes as received, never a re-encoding."""

from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId, PeerIdField, peer_id_of, public_key_of, sha256
from protocol.wire.limits import MAX_FRAME_BYTES

_TAG = b"swarmd/1/"

# RFC 8032 section 5.1: the group order L, and the field prime p.
_ORDER = (1 << 252) + 27742317777372353535851937790883648493
_PRIME = (1 << 255) - 19

# The y coordinates of the eight points of small order (RFC 7748 section 7 lists the curve's small subgroup);
# a key or R among them makes one signature valid for many messages.
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    }
)


class Envelope(Message, frozen=True):
    """One signed statement. `payload` is opaque here; `signature` covers the domain tag and the payload."""

    signer: PeerIdField
    payload: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class Opened(msgspec.Struct, frozen=True):
    """A verified envelope: who signed, what, and the statement's address."""

    signer: PeerId
    payload: bytes
    hash: Hash


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The raw 32-byte public key of `key`."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def seal(domain: str, payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The encoded envelope of `payload`, signed by `key` for `domain` (such as "claim" or "round")."""
    signer = peer_id_of(public_bytes(key))
    return encode(Envelope(signer, payload, key.sign(_signed_bytes(domain, payload))))


def open_envelope(domain: str, raw: bytes, limit: int = MAX_FRAME_BYTES) -> Opened:
    """Verify an encoded envelope; raises RemoteError(malformed | oversized | bad_signature)."""
    envelope = decode(Envelope, raw, limit)
    require_signature(domain, envelope)
    return Opened(PeerId(envelope.signer), envelope.payload, statement_hash(domain, PeerId(envelope.signer), envelope.payload))


def require_signature(domain: str, envelope: Envelope) -> None:
    """Raises RemoteError(malformed | bad_signature) unless the signer signed this payload for `domain`."""
    if not verify(public_key_of(envelope.signer), envelope.signature, _signed_bytes(domain, envelope.payload)):
        raise RemoteError(Code.BAD_SIGNATURE, "a signature does not fit its signer and domain")


def statement_hash(domain: str, signer: PeerId, payload: bytes) -> Hash:
    """The address of a statement: independent of the signature's bytes, so one statement has one address."""
    return sha256(_TAG + domain.encode(), signer.encode(), payload)


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """The one Ed25519 verdict of this project: RFC 8032 with canonical S, canonical points and no point of small order.

    Libraries disagree on those edge cases; refusing them all gives every replica the same verdict.
    """
    if len(public_key) != 32 or len(signature) != 64:
        return False
    if int.from_bytes(signature[32:], "little") >= _ORDER or not _proper_point(public_key) or not _proper_point(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _proper_point(encoded: bytes) -> bool:
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    return y < _PRIME and y not in _SMALL_ORDER_Y


def _signed_bytes(domain: str, payload: bytes) -> bytes:
    return _TAG + domain.encode() + b"\0" + payload
