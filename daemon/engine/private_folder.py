"""Decides where an engine's socket lies and makes sure that nobody else can reach it."""

import os
import stat
from pathlib import Path

from daemon.engine.interface import EngineError
from daemon.engine.process_group import RECORD_SUFFIX

MAX_SOCKET_PATH_BYTES = 107
"""sun_path of Linux holds 108 bytes with its final NUL (unix(7))."""


def private_socket(run_folder: Path, name: str) -> Path:
    """The path `run_folder`/engine/`name`.sock in a folder of mode 0700; raises EngineError where that cannot be had."""
    folder = run_folder / "engine"
    path = folder / f"{name}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise EngineError(f"the engine's socket path is over {MAX_SOCKET_PATH_BYTES} bytes: choose a shorter run directory")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise EngineError(f"the engine's run directory cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EngineError("the engine's run directory is a link or belongs to someone else")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return path


def record_path(socket: Path) -> Path:
    """Where the child behind `socket` is written down."""
    return socket.with_suffix(RECORD_SUFFIX)
