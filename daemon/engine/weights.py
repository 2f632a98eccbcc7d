"""Hashes model files, which may have many gigabytes, without holding up the loop."""

import hashlib
from pathlib import Path

import trio

from daemon.engine.interface import EngineError

_PIECE_BYTES = 16 << 20


class WeightsHash:
    """SHA-256 of a file, computed once for each size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[int, int], str] = {}

    async def hex(self) -> str:
        try:
            found = self._path.stat()
            state = (found.st_size, found.st_mtime_ns)
            if state not in self._known:
                self._known = {state: await file_sha256(self._path)}
        except OSError as error:
            raise EngineError(f"the model file cannot be read: {error.strerror}") from None
        return self._known[state]


async def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, in pieces, so that a cancelled caller waits for one piece at most; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := await trio.to_thread.run_sync(file.read, _PIECE_BYTES):
            await trio.to_thread.run_sync(digest.update, piece)
    return digest.hexdigest()
