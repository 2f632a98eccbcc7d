"""What a file is, by the hashes of its chunks, and the address that follows. Decides what is well formed; reads no file.

The address is the hash of the manifest, and the manifest follows from the bytes alone: whoever shares the same file shares the
same address, whatever they call it, and each chunk can be checked as it comes.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import LocalError, malformed
from protocol.wire.ids import Hash, sha256

_DOMAIN = b"swarmd/1/content"

CHUNK_SIZES = (1 << 20, 2 << 20, 4 << 20, 8 << 20)
"""Bytes in a chunk. A chunk is held in memory until it is checked, so the largest is what some peers at once cost."""

MAX_CHUNKS = 28_672
"""Hashes in a manifest, 896 KiB: with its other fields it fits one RPC frame of 1 MiB."""

MAX_FILE_BYTES = MAX_CHUNKS * CHUNK_SIZES[-1]
"""224 GiB; larger models come in shards."""

HASH_BYTES = 32


class Manifest(Message, frozen=True):
    """A file's size, the size of its chunks (the last one may be shorter), and the SHA-256 of each, one after the other."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_FILE_BYTES)]
    chunk_bytes: int
    hashes: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=MAX_CHUNKS * HASH_BYTES)]

    @property
    def chunks(self) -> int:
        return len(self.hashes) // HASH_BYTES

    def length(self, index: int) -> int:
        """Bytes in chunk `index`."""
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    def hash_of(self, index: int) -> bytes:
        """The SHA-256 of chunk `index`."""
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def chunk_bytes_of(size: int) -> int:
    """The smallest chunk size that keeps the chunks of `size` bytes few enough; raises LocalError beyond 224 GiB."""
    for chunk_bytes in CHUNK_SIZES:
        if size <= chunk_bytes * MAX_CHUNKS:
            return chunk_bytes
    raise LocalError(f"a file of {size} bytes where {MAX_FILE_BYTES} are the most")


def spans(size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each chunk of a file of `size` bytes."""
    step = chunk_bytes_of(size)
    return ((start, min(step, size - start)) for start in range(0, size, step))


def write_manifest(size: int, hashes: bytes) -> tuple[Hash, bytes]:
    """The address and the bytes of the manifest of a file with these chunk hashes."""
    raw = encode(Manifest(size, chunk_bytes_of(size), hashes))
    return address_of(raw), raw


def address_of(raw: bytes) -> Hash:
    """The content's address: the hash of its manifest's bytes."""
    return sha256(_DOMAIN, raw)


def open_manifest(address: bytes, raw: bytes) -> Manifest:
    """The manifest that `address` names; raises RemoteError(malformed | oversized) for any other bytes."""
    if address_of(raw) != address:
        raise malformed("a manifest does not hash to its address")
    manifest = decode(Manifest, raw)
    if manifest.chunk_bytes != chunk_bytes_of(manifest.size):
        raise malformed("a manifest's chunks have another size than its file's length asks for")
    if len(manifest.hashes) != -(-manifest.size // manifest.chunk_bytes) * HASH_BYTES:
        raise malformed("a manifest has another number of hashes than its file has chunks")
    return manifest
