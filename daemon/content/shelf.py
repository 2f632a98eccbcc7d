"""The files that this peer shares, and the manifest of each. Decides what is shared and under which address; opens no connection.

A shared file may lie anywhere: it is read where it is, and no longer shared once its size or time of change differs from what was
hashed. What was fetched lies in this folder.
"""

import os
import re
import time
from pathlib import Path
from typing import Annotated

import msgspec

from daemon.content.events import SharedFile
from daemon.content.formats import model_suffix
from daemon.content.part_file import hash_file
from daemon.paths import private_folder, read_file, write_durably
from protocol.content.manifest import MAX_FILE_BYTES, Manifest, chunk_bytes_of, open_manifest, write_manifest
from protocol.content.messages import MAX_SHELF, FileName
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import Hash
from protocol.wire.limits import MAX_FRAME_BYTES

_MAX_INDEX_BYTES = 1 << 20


class ShelfError(Exception):
    """A file cannot be shared or kept. The message is one sentence."""


class _Entry(msgspec.Struct, frozen=True):
    """A line of index.json; `since` in unix seconds, `fetched` where the file came from peers into our folder."""

    address: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    name: FileName
    path: str
    size: int
    changed_ns: int
    since: float
    fetched: bool


class Shelf:
    """What is shared, by address. Methods that touch files block: call them in a worker thread."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder, "content")
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        self._manifests: dict[str, Manifest] = {}
        self._load()

    def files(self) -> list[SharedFile]:
        """Every shared file, the newest first."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.since, reverse=True)
        return [_shared(entry) for entry in entries]

    def find(self, address: bytes) -> SharedFile:
        """The file at `address`; raises RemoteError(not_found)."""
        return _shared(self._entry(address))

    def named(self, text: str) -> SharedFile:
        """The file whose address starts with `text` (6 characters at least), or of that name; raises RemoteError(not_found)."""
        found = [one for key, one in self._entries.items() if (len(text) >= 6 and key.startswith(text)) or one.name == text]
        if len(found) != 1:
            which = "more than one shared file" if found else "no shared file"
            raise RemoteError(Code.NOT_FOUND, f"{which} is called {text[:64]!r}; swarmd models list shows them")
        return _shared(found[0])

    def add(self, path: Path, fetched: bool = False) -> SharedFile:
        """Hash a model file and share it; raises ShelfError. Takes some seconds per gigabyte."""
        path = Path(os.path.realpath(path))
        if not path.is_file():
            raise ShelfError(f"there is no file {path}")
        suffix = model_suffix(path)
        before = path.stat()
        if before.st_size > MAX_FILE_BYTES:
            raise ShelfError(f"{path.name} has {before.st_size} bytes, and files of more than {MAX_FILE_BYTES} are not shared")
        known = next((one for one in self._entries.values() if _unchanged(one, path, before)), None)
        if known is not None:
            return _shared(known)
        address, raw = write_manifest(before.st_size, hash_file(path, chunk_bytes_of(before.st_size)))
        if _stamp(path.stat()) != _stamp(before):
            raise ShelfError(f"{path.name} was changed while it was read; share it when it is finished")
        return self.put(address, raw, path, file_name(path.name, address, suffix), fetched)

    def put(self, address: Hash, raw_manifest: bytes, path: Path, name: str, fetched: bool) -> SharedFile:
        """Share a file whose manifest is known to be right; raises ShelfError where the shelf is full."""
        if address.hex() not in self._entries and len(self._entries) >= MAX_SHELF:
            raise ShelfError(f"{MAX_SHELF} files are shared already, which is the most; remove one first")
        info = path.stat()
        entry = _Entry(address.hex(), name, str(path), info.st_size, info.st_mtime_ns, time.time(), fetched)
        write_durably(self._manifest_file(entry.address), raw_manifest)
        self._manifests.pop(entry.address, None)
        self._entries[entry.address] = entry
        self._save()
        return _shared(entry)

    def remove(self, address: bytes) -> None:
        """Share it no more; a file that was fetched is deleted, one of the user's own stays."""
        entry = self._entries.pop(address.hex(), None)
        if entry is None:
            return
        self._save()
        self._manifests.pop(entry.address, None)
        self._manifest_file(entry.address).unlink(missing_ok=True)
        if entry.fetched:
            Path(entry.path).unlink(missing_ok=True)

    def manifest(self, address: bytes) -> tuple[Manifest, bytes]:
        """The manifest of a shared file, and its bytes; raises RemoteError(not_found)."""
        entry = self._entry(address)
        try:
            raw = read_file(self._manifest_file(entry.address), MAX_FRAME_BYTES)[1]
            return self._manifests.setdefault(entry.address, open_manifest(address, raw)), raw
        except (OSError, RemoteError):
            self.remove(address)
            raise RemoteError(Code.NOT_FOUND, "this content is not here any more") from None

    def read(self, address: bytes, index: int) -> bytes:
        """One chunk of a shared file as it is on disk now; raises RemoteError(not_found | malformed)."""
        entry = self._entry(address)
        manifest = self._manifests.get(entry.address) or self.manifest(address)[0]
        if index >= manifest.chunks:
            raise RemoteError(Code.MALFORMED, f"the file has {manifest.chunks} chunks")
        try:
            with Path(entry.path).open("rb", buffering=0) as file:
                if not _unchanged(entry, Path(entry.path), os.fstat(file.fileno())):
                    raise OSError("changed")
                file.seek(index * manifest.chunk_bytes)
                chunk = file.read(manifest.length(index))
        except OSError:
            self._forget_changed(entry)
            raise RemoteError(Code.NOT_FOUND, "this content is not here any more") from None
        return chunk

    def held_bytes(self) -> int:
        """Bytes in the folder: what was fetched, and what is being fetched."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def _forget_changed(self, entry: _Entry) -> None:
        """The file is another one by now. It is the user's: nothing is deleted."""
        if self._entries.pop(entry.address, None) is not None:
            self._manifest_file(entry.address).unlink(missing_ok=True)
            self._save()

    def _entry(self, address: bytes) -> _Entry:
        entry = self._entries.get(address.hex())
        if entry is None:
            raise RemoteError(Code.NOT_FOUND, "this peer does not share that content")
        return entry

    def _manifest_file(self, address: str) -> Path:
        return self.folder / f"{address}.manifest"

    def _save(self) -> None:
        write_durably(self.folder / "index.json", msgspec.json.encode(list(self._entries.values())))

    def _load(self) -> None:
        try:
            raw = read_file(self.folder / "index.json", _MAX_INDEX_BYTES)[1]
        except FileNotFoundError:
            return
        try:
            entries = msgspec.json.decode(raw, type=list[_Entry])
        except (msgspec.DecodeError, RecursionError):
            raise LocalError(f"the list of shared files {self.folder / 'index.json'} is damaged; move it away") from None
        for entry in entries:
            try:
                if _unchanged(entry, Path(entry.path), Path(entry.path).stat()):
                    self._entries[entry.address] = entry
            except OSError:
                continue


def file_name(wish: str, address: Hash, suffix: str) -> str:
    """`wish` as a name that is only a name, with the suffix of what the file really is."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", wish.removesuffix(suffix)).strip(".-_")[:100]
    return (stem or address.hex()[:16]) + suffix


def _shared(entry: _Entry) -> SharedFile:
    return SharedFile(Hash(bytes.fromhex(entry.address)), entry.name, Path(entry.path), entry.size, entry.fetched)


def _stamp(info: os.stat_result) -> tuple[int, int]:
    return info.st_size, info.st_mtime_ns


def _unchanged(entry: _Entry, path: Path, info: os.stat_result) -> bool:
    return entry.path == str(path) and (entry.size, entry.changed_ns) == _stamp(info)
