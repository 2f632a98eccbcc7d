"""Signed statements: who said exactly these bytes, in which domain. Signs and hashes bytes as received, never a re-encoding."""

import hashlib
from functools import lru_cache
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId, PeerIdField, framed, peer_id_of, public_key_of
from protocol.wire.limits import MAX_FRAME_BYTES
from protocol.wire.signature import verify

_TAG = b"swarmd/1/"


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
    return encode(Envelope(signer, payload, key.sign(signed_bytes(domain, payload))))


def open_envelope(domain: str, raw: bytes, limit: int = MAX_FRAME_BYTES) -> Opened:
    """Verify an encoded envelope; raises RemoteError(malformed | oversized | bad_signature)."""
    envelope = decode(Envelope, raw, limit)
    require_signature(domain, envelope)
    return Opened(PeerId(envelope.signer), envelope.payload, statement_hash(domain, PeerId(envelope.signer), envelope.payload))


def require_signature(domain: str, envelope: Envelope) -> None:
    """Raises RemoteError(malformed | bad_signature) unless the signer signed this payload for `domain`."""
    if not verify(public_key_of(envelope.signer), envelope.signature, signed_bytes(domain, envelope.payload)):
        raise RemoteError(Code.BAD_SIGNATURE, "a signature does not fit its signer and domain")


def statement_hash(domain: str, signer: PeerId, payload: bytes) -> Hash:
    """The address of a statement: independent of the signature's bytes, so one statement has one address."""
    return Hash(hashlib.sha256(_address_of(domain, signer) + framed(payload)).digest())


@lru_cache(maxsize=4096)  # the same few peers sign nearly everything
def _address_of(domain: str, signer: PeerId) -> bytes:
    """What `sha256` of domain, signer and payload begins with."""
    return framed(_TAG + domain.encode()) + framed(signer.encode())


def signed_bytes(domain: str, payload: bytes) -> bytes:
    """What a signature covers."""
    return _TAG + domain.encode() + b"\0" + payload
