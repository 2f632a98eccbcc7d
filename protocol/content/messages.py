"""What crosses the wire when peers hand each other content, and its bounds. Moves no bytes.

One call of content.chunks serves a whole fetch, so that its window has grown and no chunk waits for a call to be opened.

| method | body | answer |
|---|---|---|
| content.list | b"" | Shelf |
| content.manifest | ContentRequest | the manifest, streamed in items of 64 KiB at most |
| content.held | ContentRequest | Held |
| content.chunks | ContentRequest, then ChunkRequest as items | for each, in order: ChunkHead, then the chunk in items of 64 KiB |
| content.take | Offered | b"" once the peer has begun to fetch |
"""

from typing import Annotated

import msgspec

from protocol.content.manifest import CHUNK_SIZES, MAX_CHUNKS, MAX_FILE_BYTES
from protocol.wire.codec import Message
from protocol.wire.errors import malformed
from protocol.wire.ids import HashField

LIST_METHOD = "content.list"
MANIFEST_METHOD = "content.manifest"
HELD_METHOD = "content.held"
CHUNKS_METHOD = "content.chunks"
TAKE_METHOD = "content.take"

MAX_SHELF = 256
"""Files that one peer lists: 256 of some 200 B are one chunk of a stream."""

MAX_SHELF_BYTES = 64 << 10
MAX_REQUEST_BYTES = 512

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z", max_length=128)]
"""A file's name for people: no folder, no leading dot, nothing that steers a terminal. Never a key to anything."""


class ContentRequest(Message, frozen=True):
    """Names content."""

    address: HashField


class ChunkRequest(Message, frozen=True):
    """Asks for one chunk of the call's content."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CHUNKS)]


class ChunkHead(Message, frozen=True):
    """What comes next: chunk `index` in `length` bytes, or nothing (0) where the peer does not have it."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CHUNKS)]
    length: Annotated[int, msgspec.Meta(ge=0, le=CHUNK_SIZES[-1])]


class Held(Message, frozen=True):
    """Which chunks a peer has: all of them, or those whose bit is set (chunk i is bit i % 8, from the lowest, of byte i // 8)."""

    all: bool
    bits: Annotated[bytes, msgspec.Meta(max_length=MAX_CHUNKS // 8)] = b""


class Offered(Message, frozen=True):
    """One file that a peer has, as it names it."""

    address: HashField
    name: FileName
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_FILE_BYTES)]


class Shelf(Message, frozen=True):
    """The files that a peer shares, the newest first."""

    files: Annotated[tuple[Offered, ...], msgspec.Meta(max_length=MAX_SHELF)] = ()


def held_chunks(held: Held, chunks: int) -> frozenset[int] | None:
    """The chunks that `held` names of a file of so many, None for all; raises RemoteError(malformed) where it names others."""
    if held.all:
        return None
    found = frozenset(8 * place + bit for place, byte in enumerate(held.bits) if byte for bit in range(8) if byte >> bit & 1)
    if found and max(found) >= chunks:
        raise malformed("a peer says that it holds chunks which the file does not have")
    return found


def bits_of(present: set[int], chunks: int) -> bytes:
    """The bits of `Held` for these chunks."""
    bits = bytearray(-(-chunks // 8))
    for index in present:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)
