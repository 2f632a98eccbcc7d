"""The folders of the daemon on this box, made private before anything is put into them. Decides no setting."""

import errno
import os
import stat
from pathlib import Path

import platformdirs

from swarmd import places


class UnsafeFolder(Exception):
    """A folder cannot be made or is not ours alone. The message is one sentence."""


def log_file(data_dir: Path) -> Path:
    """Where a detached daemon writes: the state folder, or the data folder where that is not the usual one."""
    usual = os.path.realpath(data_dir) == os.path.realpath(platformdirs.user_data_path("swarmd"))
    return (platformdirs.user_state_path("swarmd") if usual else data_dir) / "swarmd.log"


def private_folder(path: Path, purpose: str) -> None:
    """Make `path` and its parents where missing, and make sure that it is ours, no link, and mode 0700; raises UnsafeFolder.

    A folder of ours that others may read is closed; one that others may write is refused: something may already be planted there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        cause = "it is a link or no folder" if isinstance(error, NotADirectoryError | FileExistsError) else error.strerror
        raise UnsafeFolder(f"the {purpose} folder {path} cannot be used: {cause}") from None
    try:
        info = os.fstat(descriptor)
        if info.st_uid != os.geteuid():
            raise UnsafeFolder(f"the {purpose} folder {path} belongs to another user (uid {info.st_uid})")
        if stat.S_IMODE(info.st_mode) & 0o022:
            raise UnsafeFolder(f"others may write the {purpose} folder {path}; check what is in it, then run: chmod 700 {path}")
        if stat.S_IMODE(info.st_mode) & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UnsafeFolder(f"the {purpose} folder {path} cannot be written")


def prepare_runtime_dir(path: Path) -> None:
    """Make the folder of the sockets; raises UnsafeFolder.

    Our folder above it, such as /tmp/swarmd-<uid>, is made private first: whoever owns that one could swap this one.
    """
    if path.parent == places.runtime_dir():
        private_folder(path.parent, "runtime")
    private_folder(path, "runtime")


def read_file(path: Path, limit: int, follow_links: bool = True) -> tuple[os.stat_result, bytes]:
    """What the regular file `path` is, and at most `limit` + 1 bytes of it; raises OSError with a `strerror` for people.

    What it says is about the file that was opened, so nobody can swap it between the check and the reading.
    """
    # O_NONBLOCK: opening a FIFO must not hang.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise OSError(errno.ELOOP, "it is a link") from None
        raise
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        # A signal or a full pipe cannot cut this short: it is a regular file.
        return info, os.read(descriptor, limit + 1)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`. The caller holds its lock, so no such writer lives."""
    for left in folder.glob(".*.new"):
        left.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Put `content` (mode 0600) at `path` so that a crash or a full disk leaves either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
