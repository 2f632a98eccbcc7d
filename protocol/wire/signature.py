"""The one Ed25519 verdict of this project: whether a key signed a message. Knows no envelope, no domain and no peer id.

RFC 8032 with the equation that has no cofactor ([S]B = R + [k]A, compared as bytes), canonical S, canonical points, and no key or
R of small order. Libraries disagree on those edge cases ("Taming the many EdDSAs", 2020); one verdict keeps replicas equal.
tests/vectors/ed25519.jsonl holds it, keys and nonces of mixed order included.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

KEY_BYTES = 32
SIGNATURE_BYTES = 64

# RFC 8032 section 5.1: the group order L, and the field prime p.
_ORDER = (1 << 252) + 27742317777372353535851937790883648493
_PRIME = (1 << 255) - 19

# The y coordinates of the eight points of small order (RFC 7748 section 7 lists the curve's small subgroup);
# a key or R among them makes one signature valid for many messages.
_SMALL_ORDER_Y = (
    0,
    1,
    _PRIME - 1,
    2707385501144840649318225287225658788936804267575313519463743609750303402022,
    55188659117513257062467267217118295137698188065244968500265048394206261417927,
)
_SMALL_ORDER = frozenset((y | sign << 255).to_bytes(32, "little") for y in _SMALL_ORDER_Y for sign in (0, 1))
_ONES = b"\xff" * 30


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of `public_key` (32 bytes) signed `message` so; False for keys and signatures that none should make."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    if not (_proper_scalar(signature[32:]) and _proper_point(public_key) and _proper_point(signature[:32])):
        return False
    return _equation(public_key, signature, message)


def _proper_scalar(encoded: bytes) -> bool:
    return encoded[31] < 0x10 or int.from_bytes(encoded, "little") < _ORDER


def _proper_point(encoded: bytes) -> bool:
    outside = encoded[0] >= 0xED and encoded[31] & 0x7F == 0x7F and encoded[1:31] == _ONES  # y is not below p = 2^255 - 19
    return not outside and encoded not in _SMALL_ORDER


def by_sodium(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """libsodium's verdict on the equation: half the time of OpenSSL's, and other threads run meanwhile."""
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


def by_openssl(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """OpenSSL's verdict on the equation, which has no cofactor either."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _without_cofactor() -> bool:
    """Whether the installed libsodium holds our equation: its verdict on two signatures that tell the equations apart.

    Both are of mixed order (tests/vectors/ed25519.jsonl): an equation with a cofactor accepts the first, a check that points
    lie in the prime-order subgroup refuses the second.
    """
    with_cofactor = by_sodium(
        bytes.fromhex("46a55ae40d342d4e216a5c513ca9095603fd0b672660c8ef2efadb31e43338de"),
        bytes.fromhex(
            "e7e46e58362d8c09ceb2015b51a5c21b6d0a72100158d1b2d6c1f11541218d0c"
            "6d4f84fb956d3177a54e19e1cdb7dc91092ce92339937f9da775675bf48a4c0e"
        ),
        b"mixed order 0 1",
    )
    cancelling = by_sodium(
        bytes.fromhex("8d217f5b5ccd9239f7ffb06f7dc8bd41f46b87505365544e43a494d3d6abcd1c"),
        bytes.fromhex(
            "3ec3dcf8563c1d64bc06d51528b5adf2bf79c0ad56faedf6eadf083f24dbed49"
            "cead2f85d9612056d3816bfcccf9325738d8b5ff550a7d80a8db0303e1c8de0b"
        ),
        b"cancelling 17",
    )
    return cancelling and not with_cofactor


_equation = by_sodium if _without_cofactor() else by_openssl
