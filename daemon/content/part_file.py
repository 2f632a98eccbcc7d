"""A file that is being fetched, on disk: its chunks where they belong, and which are there. Checks every chunk by its hash.

All of it blocks, so it is called in worker threads. What `present` says after a crash was on disk before it was said.
"""

import hashlib
import os
from pathlib import Path
from threading import Lock

from daemon.paths import read_file, write_durably
from protocol.content.manifest import Manifest
from protocol.content.messages import Held, bits_of, held_chunks
from protocol.wire.codec import decode, encode
from protocol.wire.errors import RemoteError

NOTE_BYTES = 64 << 20
"""Fetched bytes after which it is noted what is there: as much is fetched again after a crash at the most."""

_MAX_NOTE_BYTES = 64 << 10


class PartFile:
    """`folder`/`name`.part, opened for writing; `name`.have beside it tells what is there."""

    def __init__(self, folder: Path, name: str, manifest: Manifest) -> None:
        self.path = folder / f"{name}.part"
        self.present: set[int] = set()
        self._note = folder / f"{name}.have"
        self._manifest = manifest
        self._unnoted = 0
        self._noting = Lock()
        self._resume()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)

    def store(self, index: int, chunk: bytes | bytearray) -> bool:
        """Write a chunk; False, and nothing written, where it is not the file's. Raises OSError where the disk takes no more."""
        # In one piece: for each, this thread would wait for the interpreter, which the event loop holds.
        if hashlib.sha256(chunk).digest() != self._manifest.hash_of(index):
            return False
        at, rest = index * self._manifest.chunk_bytes, memoryview(chunk)
        while rest:
            written = os.pwrite(self._descriptor, rest, at)
            at, rest = at + written, rest[written:]
        self.present.add(index)
        self._unnoted += self._manifest.length(index)
        if self._unnoted >= NOTE_BYTES:
            self.note()
        return True

    def read(self, index: int) -> bytes:
        """A chunk that is there."""
        return os.pread(self._descriptor, self._manifest.length(index), index * self._manifest.chunk_bytes)

    def note(self) -> None:
        """Make what is there durable, then say that it is there."""
        with self._noting:
            present = set(self.present)
            self._unnoted = 0
            os.fdatasync(self._descriptor)
            write_durably(self._note, encode(Held(False, bits_of(present, self._manifest.chunks))))

    def finish(self, target: Path) -> None:
        """The file is whole: put it at `target`, durably."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self.path.rename(target)
        self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop; what there is stays for a later fetch. Raises OSError where that cannot be noted."""
        if self._descriptor < 0:
            return
        try:
            self.note()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """The file is not wanted: leave nothing of it."""
        os.close(self._descriptor)
        self._descriptor = -1
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Take over what an earlier fetch left. A note that does not fit is worth nothing: everything is fetched again."""
        try:
            noted = decode(Held, read_file(self._note, _MAX_NOTE_BYTES, follow_links=False)[1])
            size = self.path.stat().st_size
            chunks = held_chunks(noted, self._manifest.chunks) or frozenset()
        except (OSError, RemoteError):
            return
        step = self._manifest.chunk_bytes
        self.present = {index for index in chunks if index * step + self._manifest.length(index) <= size}


def hash_file(path: Path, chunk_bytes: int) -> bytes:
    """The SHA-256 of each chunk of a file, one after the other."""
    hashes = bytearray()
    buffer = bytearray(chunk_bytes)
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            hashes += hashlib.sha256(memoryview(buffer)[:count]).digest()
    return bytes(hashes)
