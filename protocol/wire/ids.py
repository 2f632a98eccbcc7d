"""Names of peers, models and rounds, and what makes each of them well formed. Knows no network and no storage."""

import hashlib
import re
from functools import lru_cache
from typing import Annotated, NewType

import base58
import msgspec

from protocol.wire.errors import malformed
from protocol.wire.limits import MAX_NAME_CHARS

PeerId = NewType("PeerId", str)
"""A libp2p PeerId in base58 text: the identity multihash of a protobuf-encoded Ed25519 key ("12D3KooW...")."""

Hash = NewType("Hash", bytes)
"""A SHA-256 digest, 32 bytes."""

PeerIdField = Annotated[str, msgspec.Meta(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z", max_length=52)]
HashField = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z"
ModelField = Annotated[str, msgspec.Meta(pattern=MODEL_PATTERN, max_length=MAX_NAME_CHARS)]

# libp2p peer-ids spec: identity multihash (0x00), 36 bytes, of protobuf {Type: Ed25519 (1), Data: 32 bytes}.
_ED25519_PREFIX = bytes.fromhex("002408011220")
_MODEL_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def peer_id_of(public_key: bytes) -> PeerId:
    """The PeerId of a raw 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise malformed("an Ed25519 public key has 32 bytes")
    return PeerId(base58.b58encode(_ED25519_PREFIX + public_key).decode("ascii"))


@lru_cache(maxsize=4096)  # base58 is a fifth of checking a signature, and the same few peers sign nearly everything
def public_key_of(peer_id: str) -> bytes:
    """The raw 32-byte Ed25519 public key inside a PeerId; raises RemoteError(malformed) for any other text."""
    try:
        multihash = base58.b58decode(peer_id)
    except ValueError:
        raise malformed("a peer id is not base58") from None
    if len(multihash) != 38 or not multihash.startswith(_ED25519_PREFIX):
        raise malformed("a peer id is not an Ed25519 identity")
    return multihash[len(_ED25519_PREFIX) :]


@lru_cache(maxsize=4096)  # base58, as above: subjects of claims are few as well
def is_peer_id(text: str) -> bool:
    """Whether `text` is the PeerId of an Ed25519 key."""
    try:
        return peer_id_of(public_key_of(text)) == text
    except Exception:  # noqa: BLE001 - any failure to parse means no
        return False


def short(peer_id: str) -> str:
    """Eight characters for people; never used to identify a peer."""
    return peer_id[-8:]


def is_model_name(text: str) -> bool:
    """Whether `text` is `name` or `owner/name` and so can be neither a flag nor a path (no leading '-' or '.', no '..')."""
    parts = text.split("/")
    return len(text) <= MAX_NAME_CHARS and 1 <= len(parts) <= 2 and all(_MODEL_PART.fullmatch(p) and ".." not in p for p in parts)


def sha256(*parts: bytes) -> Hash:
    """SHA-256 over the parts, each preceded by its length (8 bytes, big endian), so that boundaries cannot move."""
    return Hash(hashlib.sha256(b"".join(map(framed, parts))).digest())


def framed(part: bytes) -> bytes:
    """A part as `sha256` takes it in: behind its length."""
    return len(part).to_bytes(8, "big") + part
