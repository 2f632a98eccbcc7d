"""The Kademlia key space: where peers and keys stand, and names that stand in a wanted part of it. Pure arithmetic."""

import hashlib
from functools import lru_cache

from protocol.wire.ids import PeerId, public_key_of, sha256

BITS = 256
"""Places are SHA-256 digests of names (libp2p kad-dht spec), read as whole numbers; distance is their exclusive or."""

MAX_POINT_BITS = 16
"""The longest prefix for which a name is sought: 2^16 tries take 0.1 s. go-libp2p has a table of as many."""

_TABLE_BITS = 12
_IDENTITY = bytes.fromhex("002408011220")
_MULTIHASH_SHA256 = b"\x12\x20"


def place_of(name: bytes) -> int:
    """Where a name stands: a record's key, a provider key or a peer's binary id."""
    return int.from_bytes(hashlib.sha256(name).digest(), "big")


@lru_cache(maxsize=2048)  # the same few hundred peers are in every reply
def name_of_peer(peer: PeerId) -> bytes:
    """The binary id of a peer; raises RemoteError(malformed) where it is no Ed25519 identity."""
    return _IDENTITY + public_key_of(peer)


def provider_name(key: str) -> bytes:
    """The name under which providers of `key` are listed: a multihash (kad-dht spec), so that others store it too."""
    return _MULTIHASH_SHA256 + sha256(key.encode())


def shared_bits(a: int, b: int) -> int:
    """How many leading bits two places have in common, 0 to 256."""
    return BITS - (a ^ b).bit_length()


def point_in(place: int, bits: int) -> bytes:
    """A name whose place shares the first `bits` with `place` (at most MAX_POINT_BITS of them); the same one each time."""
    bits = min(bits, MAX_POINT_BITS)
    prefix = place >> (BITS - bits)
    return _points(bits)[prefix] if bits <= _TABLE_BITS else _search(prefix, bits)


def parts_of(place: int, bits: int, more: int) -> list[int]:
    """One place in each of the 2^`more` equal parts of the region that shares `bits` with `place`."""
    bits = min(bits, BITS - more)
    start = place >> (BITS - bits) << (BITS - bits)
    return [start | part << (BITS - bits - more) for part in range(1 << more)]


@lru_cache(maxsize=_TABLE_BITS + 1)
def _points(bits: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < 1 << bits:
        name = _counted(number)
        found.setdefault(place_of(name) >> (BITS - bits), name)
        number += 1
    return found


@lru_cache(maxsize=4096)
def _search(prefix: int, bits: int) -> bytes:
    number = 0
    while place_of(name := _counted(number)) >> (BITS - bits) != prefix:
        number += 1
    return name


def _counted(number: int) -> bytes:
    """A name in the shape of a peer id, which is what FIND_NODE asks for; nobody has its key."""
    return _IDENTITY + number.to_bytes(32, "big")
