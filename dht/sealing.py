"""Bytes that one peer alone can read, sealed to the Ed25519 key in its id: X25519, HKDF-SHA256, ChaCha20-Poly1305 (as ECIES).

Decides nothing of what is sealed. The map between the two curves is RFC 7748's (section 4.1), the private half RFC 8032's.
"""

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.wire.envelope import public_bytes
from protocol.wire.errors import malformed
from protocol.wire.ids import PeerId, public_key_of

_PRIME = 2**255 - 19
_NONCE = bytes(12)
"""A key is used once: it comes from an ephemeral one."""


def seal_to(peer: PeerId, plaintext: bytes, ephemeral: bytes, purpose: bytes) -> bytes:
    """`plaintext` for `peer` alone; `ephemeral` are 32 fresh random bytes. The result begins with their public key, 32 bytes."""
    own = X25519PrivateKey.from_private_bytes(ephemeral)
    theirs = _montgomery(public_key_of(peer))
    shared = own.exchange(X25519PublicKey.from_public_bytes(theirs))
    sent = own.public_key().public_bytes_raw()
    return sent + ChaCha20Poly1305(_key(shared, sent, theirs, purpose)).encrypt(_NONCE, plaintext, purpose)


def open_sealed(key: Ed25519PrivateKey, sealed: bytes, purpose: bytes) -> bytes:
    """What was sealed to `key`; raises RemoteError(malformed) where it is damaged or another's."""
    sent, box = sealed[:32], sealed[32:]
    scalar = hashlib.sha512(key.private_bytes_raw()).digest()[:32]
    try:
        shared = X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(sent))
        own = _montgomery(public_bytes(key))
        return ChaCha20Poly1305(_key(shared, sent, own, purpose)).decrypt(_NONCE, box, purpose)
    except (InvalidTag, ValueError):
        raise malformed("it is damaged, or sealed to another peer") from None


def _montgomery(edwards: bytes) -> bytes:
    """The X25519 public key of an Ed25519 one: u = (1 + y) / (1 - y)."""
    y = int.from_bytes(edwards, "little") & ((1 << 255) - 1)
    return ((1 + y) * pow(1 - y, -1, _PRIME) % _PRIME).to_bytes(32, "little")


def _key(shared: bytes, sent: bytes, theirs: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=sent + theirs, info=purpose).derive(shared)
