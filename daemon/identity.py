"""Who this peer is: its key, its epoch, and the lock that keeps a second daemon off its data folder. Replaces no key, ever."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from daemon.paths import UnsafeFolder, private_folder, read_file, remove_unfinished, write_durably
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of

KEY_NAME = "identity.pem"
EPOCH_NAME = "epoch"
LOCK_NAME = "lock"
MAX_KEY_BYTES = 4 << 10
MAX_EPOCH = 1 << 53
"""Beyond it a JSON reader would round the epoch."""


class IdentityError(Exception):
    """The identity or its data folder cannot be used. The message is one sentence, with the command that helps."""


@dataclass(frozen=True, slots=True)
class Identity:
    """This peer's key, its PeerId, and the epoch of this run: higher than that of every run before it."""

    key: Ed25519PrivateKey
    peer_id: PeerId
    epoch: int


@contextmanager
def open_identity(data_dir: Path, clock: Callable[[], float]) -> Iterator[Identity]:
    """Hold the data folder and the peer's identity; made on first use. `clock` gives unix seconds. Raises IdentityError."""
    with locked(data_dir):
        key = load_or_create_key(data_dir)
        yield Identity(key, peer_id_of(public_bytes(key)), next_epoch(data_dir, clock))


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data folder alone, making it where missing; raises IdentityError, naming the process that holds it."""
    try:
        private_folder(data_dir, "data")
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except UnsafeFolder as error:
        raise IdentityError(str(error)) from None
    except OSError as error:
        raise IdentityError(f"the data folder {data_dir} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode("ascii", "replace").strip()
            who = f"swarmd with process id {holder}" if holder.isdigit() else "another swarmd"
            raise IdentityError(f"the data folder {data_dir} is in use by {who}; stop it or name another --data-dir") from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise IdentityError(f"the data folder {data_dir} cannot be written: {error.strerror}") from None
        remove_unfinished(data_dir)
        yield
    finally:
        # The file stays: removing it would let a third process lock a new one beside a second's old one.
        os.close(descriptor)


def load_or_create_key(data_dir: Path) -> Ed25519PrivateKey:
    """The peer's key; a new one only in a folder that never had one. Raises IdentityError. The caller holds the folder's lock."""
    path = data_dir / KEY_NAME
    try:
        return _load_key(path)
    except FileNotFoundError:
        pass
    if (data_dir / EPOCH_NAME).exists():
        raise IdentityError(f"{path} is gone from a folder in use; restore it, or start as a new peer on a new --data-dir")
    key = Ed25519PrivateKey.generate()
    try:
        write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as error:
        raise IdentityError(f"the key {path} cannot be written: {error.strerror}") from None
    return key


def next_epoch(data_dir: Path, clock: Callable[[], float]) -> int:
    """This run's epoch, on disk before it is used: max(the last one + 1, unix seconds), so that it grows even without the file.

    Raises IdentityError.
    """
    path = data_dir / EPOCH_NAME
    last = 0
    try:
        text = read_file(path, 32, follow_links=False)[1].decode("ascii", "replace").strip()
        if not text.isdigit() or int(text) >= MAX_EPOCH:
            hint = "where the clock of this box is right, delete it and the time takes its place"
            raise IdentityError(f"{path} is damaged; it must hold the number of the last run: {hint}")
        last = int(text)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}") from None
    epoch = max(last + 1, int(clock()))
    try:
        write_durably(path, f"{epoch}\n".encode())
    except OSError as error:
        raise IdentityError(f"{path} cannot be written: {error.strerror}") from None
    return epoch


def _load_key(path: Path) -> Ed25519PrivateKey:
    """Raises FileNotFoundError where nothing is there and IdentityError where the wrong thing is."""
    try:
        info, raw = read_file(path, MAX_KEY_BYTES, follow_links=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IdentityError(f"the key {path} cannot be read: {error.strerror}") from None
    if info.st_uid != os.geteuid():
        raise IdentityError(f"the key {path} belongs to another user (uid {info.st_uid})")
    if info.st_mode & 0o077:
        raise IdentityError(f"others may read the key {path}; run: chmod 600 {path}")
    if not raw:
        raise IdentityError(f"the key {path} is empty; restore it from a copy")
    try:
        key = load_pem_private_key(raw, None) if len(raw) <= MAX_KEY_BYTES else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"the key {path} is damaged or not an unencrypted PEM private key; restore it from a copy") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"the key {path} is not an Ed25519 key")
    return key
