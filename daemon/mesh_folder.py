"""A private mesh as one data folder keeps it: the mesh key, our grants, the invites we gave, the revocations. Decides nothing.

One data folder is one identity in one mesh. Every file is mode 0600 in a folder of mode 0700, because the mesh key is a secret.
"""

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from daemon.paths import read_file, write_durably
from dht.grants import MESH_NAME, Chain, Mesh, Rights, open_grant
from dht.invites import KEY_BYTES, Entry, InviteBook
from dht.offers import Address
from dht.revocations import MAX_REVOCATION_BYTES, MAX_REVOCATIONS, RawRevocation
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerIdField

MESH_NAME_FILE = "mesh.json"
INVITES_FILE = "invites.json"
REVOCATIONS_FILE = "revocations.json"
LEFT_FILE = "left-mesh.json"
PEERS_FILE = "peers.json"
MAX_FILE_BYTES = 64 << 10
MAX_BOOK_BYTES = 1 << 20
_MAX_SET_BYTES = 2 * MAX_REVOCATIONS * MAX_REVOCATION_BYTES

T = TypeVar("T")


class MeshFolderError(Exception):
    """What a folder keeps of its mesh cannot be used. The message is one sentence that says what to do."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mesh that a data folder belongs to. `addresses` are of peers to join it by. `key` is the secret."""

    name: Annotated[str, msgspec.Meta(pattern=MESH_NAME)]
    founder: PeerIdField
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    chain: Chain = ()
    addresses: tuple[Address, ...] = ()
    version: int = 1

    @property
    def mesh(self) -> Mesh:
        """What the mesh is."""
        return Mesh(self.name, self.founder, self.salt)

    @property
    def may_invite(self) -> bool:
        """Whether our own grant lets us invite others."""
        return not self.chain or open_grant(self.chain[-1]).grant.rights is Rights.INVITER

    def __repr__(self) -> str:
        return f"Kept({self.name!r})"  # a key in a log would be a key for everybody


class _Left(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    founder: str
    salt: bytes


class _Set(msgspec.Struct, frozen=True):
    revocations: tuple[RawRevocation, ...]
    version: int = 1


class _Book(msgspec.Struct, frozen=True):
    invites: tuple[Entry, ...]
    version: int = 1


class MeshFolder:
    """The files of one data folder. The caller holds its lock when it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> Kept | None:
        """The folder's private mesh; None for the public one. Raises MeshFolderError."""
        raw = self._read(MESH_NAME_FILE, MAX_FILE_BYTES)
        if raw is None:
            return None
        kept = self._decode(MESH_NAME_FILE, raw, Kept)
        try:
            for grant in kept.chain:
                open_grant(grant)
        except RemoteError:
            raise self._damaged(MESH_NAME_FILE) from None
        return kept

    def write(self, kept: Kept) -> None:
        """Make the folder one of this mesh; raises OSError."""
        write_durably(self.folder / MESH_NAME_FILE, msgspec.json.format(msgspec.json.encode(kept), indent=1))
        (self.folder / LEFT_FILE).unlink(missing_ok=True)

    def left(self) -> Mesh | None:
        """The mesh that this folder's peer left: it may come back to that one alone."""
        raw = self._read(LEFT_FILE, MAX_FILE_BYTES)
        if raw is None:
            return None
        old = self._decode(LEFT_FILE, raw, _Left)
        return Mesh(old.name, old.founder, old.salt)

    def leave(self, kept: Kept) -> None:
        """Forget the mesh key, our grants, the invites and who was met; remember which mesh it was."""
        left = msgspec.json.encode(_Left(kept.name, kept.founder, kept.salt))
        write_durably(self.folder / LEFT_FILE, left)
        for name in (MESH_NAME_FILE, INVITES_FILE, REVOCATIONS_FILE, PEERS_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def invites(self) -> InviteBook:
        """The invites that we gave; raises MeshFolderError."""
        raw = self._read(INVITES_FILE, MAX_BOOK_BYTES)
        return InviteBook() if raw is None else InviteBook(self._decode(INVITES_FILE, raw, _Book).invites)

    def write_invites(self, book: InviteBook) -> None:
        write_durably(self.folder / INVITES_FILE, msgspec.json.encode(_Book(book.entries)))

    def revocations(self) -> tuple[bytes, ...]:
        """The revocations that were known; raises MeshFolderError."""
        raw = self._read(REVOCATIONS_FILE, _MAX_SET_BYTES)
        return () if raw is None else self._decode(REVOCATIONS_FILE, raw, _Set).revocations

    def write_revocations(self, revocations: tuple[bytes, ...]) -> None:
        write_durably(self.folder / REVOCATIONS_FILE, msgspec.json.encode(_Set(revocations)))

    def _read(self, name: str, limit: int) -> bytes | None:
        path = self.folder / name
        try:
            info, raw = read_file(path, limit, follow_links=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MeshFolderError(f"{path} cannot be read: {error.strerror}") from None
        if info.st_mode & 0o077:
            raise MeshFolderError(f"others may read {path}, which holds secrets of a mesh; run: chmod 600 {path}")
        return raw

    def _decode(self, name: str, raw: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> MeshFolderError:
        return MeshFolderError(f"{self.folder / name} is damaged; restore it from a copy, or join anew with another --data-dir")
