"""Keeps the transcripts of closed rounds on disk, the newest `MAX_ROUNDS`. Decides what is kept, never what a round means."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from daemon.paths import private_folder, write_durably
from protocol.wire.errors import Code, RemoteError

log = structlog.get_logger("swarmd.rounds")

MAX_ROUNDS = 1000
"""Rounds kept; a transcript of 7 members has about 20 KB, so some 20 MB."""

MAX_NOTE_BYTES = 64 << 10


class Note(msgspec.Struct, frozen=True):
    """What the list of rounds shows of one, and what only its own peer knows: when it ran and how long each phase took."""

    round_id: str
    created: float
    strategy: str
    state: str
    reason: str
    question: str
    winner: str | None
    members: int
    verdict_hash: str | None
    requested: bool
    timings_ms: Mapping[str, int] = {}


class RoundArchive:
    """Transcripts by round id (hex). Files are named by it: `<id>.round` and `<id>.json`."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder, "rounds")
        self._folder = folder
        self._notes = self._load()

    def keep(self, note: Note, transcript: bytes) -> None:
        """Store a round; what its own requester recorded is not replaced by what a member recorded."""
        known = self._notes.get(note.round_id)
        if known is not None and known.requested and not note.requested:
            return
        try:
            write_durably(self._folder / f"{note.round_id}.round", transcript)
            write_durably(self._folder / f"{note.round_id}.json", msgspec.json.encode(note))
        except OSError as error:
            log.error("a transcript could not be stored", round=note.round_id[:12], reason=error.strerror)
            return
        self._notes[note.round_id] = note
        while len(self._notes) > MAX_ROUNDS:
            self._drop(min(self._notes.values(), key=lambda each: each.created).round_id)

    def notes(self) -> list[Note]:
        """Every kept round, the newest first."""
        return sorted(self._notes.values(), key=lambda note: note.created, reverse=True)

    def find(self, text: str) -> Note:
        """The round whose id starts with `text` (hex, 6 characters at least), or "last"; raises RemoteError(not_found)."""
        if text == "last" and self._notes:
            return self.notes()[0]
        found = [note for name, note in self._notes.items() if len(text) >= 6 and name.startswith(text.lower())]
        if len(found) != 1:
            which = "more than one round" if found else "no round"
            raise RemoteError(Code.NOT_FOUND, f"{which} has an id that starts with {text[:64]!r}; swarmd rounds lists them")
        return found[0]

    def transcript(self, note: Note) -> bytes:
        """The stored bytes, as they are on disk now; raises RemoteError(not_found)."""
        try:
            return (self._folder / f"{note.round_id}.round").read_bytes()
        except OSError as error:
            reason = f"the transcript of {note.round_id[:12]} cannot be read: {error.strerror}"
            raise RemoteError(Code.NOT_FOUND, reason) from None

    def _load(self) -> dict[str, Note]:
        notes = {}
        for path in self._folder.glob("*.json"):
            try:
                if path.stat().st_size <= MAX_NOTE_BYTES:
                    notes[path.stem] = msgspec.json.decode(path.read_bytes(), type=Note)
            except (OSError, msgspec.DecodeError) as error:
                log.warning("a stored round cannot be read", file=path.name, reason=str(error))
        return notes

    def _drop(self, round_id: str) -> None:
        del self._notes[round_id]
        for suffix in ("round", "json"):
            try:
                os.unlink(self._folder / f"{round_id}.{suffix}")
            except OSError as error:
                log.warning("an old transcript stays", round=round_id[:12], reason=error.strerror)
