"""Where the local socket of a daemon is, for the client and the daemon alike. Reads the environment; creates nothing."""

import hashlib
import os
import stat
from pathlib import Path

SOCKET_NAME = "api.sock"


def runtime_dir(data_dir: Path | None = None) -> Path:
    """The folder of the sockets of the daemon on `data_dir` (None: on the user's default data folder).

    `$XDG_RUNTIME_DIR/swarmd`, or `/tmp/swarmd-<uid>` where no login session made a runtime folder. A daemon on another data
    folder gets a folder of its own below it, named by a hash, because a socket's path may have 107 bytes only.
    """
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(session) / "swarmd" if session.startswith("/") else _shared_base()
    if data_dir is None:
        return base
    return base / hashlib.sha256(os.path.realpath(data_dir).encode()).hexdigest()[:12]


def socket_path() -> Path:
    """The socket a client uses when it was told none: `$SWARMD_SOCKET`, else `$SWARMD_RUNTIME_DIR`, else the default place."""
    if named := os.environ.get("SWARMD_SOCKET", ""):
        return Path(named)
    configured = os.environ.get("SWARMD_RUNTIME_DIR", "")
    return (Path(configured) if configured else runtime_dir()) / SOCKET_NAME


def may_be_planted(socket: str) -> bool:
    """Whether `socket` lies in our folder below /tmp while that is not ours alone, so that anybody may answer on it."""
    base = _shared_base()
    if base not in Path(socket).parents:
        return False
    try:
        info = os.lstat(base)
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or bool(info.st_mode & 0o022)


def _shared_base() -> Path:
    return Path(f"/tmp/swarmd-{os.getuid()}")  # noqa: S108 - the daemon and the client both check whose it is before they use it
