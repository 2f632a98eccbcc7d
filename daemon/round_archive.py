"""Keeps the transcripts of closed rounds on disk, within bounds. Decides what is kept, never what a round means."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
import trio

from daemon.paths import private_folder, write_durably
from protocol.round.transcript import MAX_TRANSCRIPT_BYTES
from protocol.wire.errors import Code, RemoteError

log = structlog.get_logger("swarmd.rounds")

MAX_ROUNDS = 1000
"""Rounds kept; a transcript of 7 members has about 15 KB, so some 15 MB."""

MAX_BYTES = 256 << 20
"""Of all transcripts: strangers who invite us choose how long theirs are."""

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
    is_probe: bool = False
    """A round of our own on a question of known answer: "last" is never this one."""


class RoundArchive:
    """Transcripts by round id (hex). Files are named by it: `<id>.round` and `<id>.json`.

    Where there is no more room the oldest goes; but rounds that others asked for never push out ours while they are more.
    """

    def __init__(self, folder: Path, max_rounds: int = MAX_ROUNDS, max_bytes: int = MAX_BYTES) -> None:
        private_folder(folder, "rounds")
        self._folder = folder
        self._max_rounds = max_rounds
        self._max_bytes = max_bytes
        self._writing = trio.Lock()
        self._notes: dict[str, Note] = {}
        self._sizes: dict[str, int] = {}
        self._load()

    async def keep(self, note: Note, transcript: bytes) -> None:
        """Store a round; what its own requester recorded is not replaced by what a member recorded."""
        async with self._writing:
            known = self._notes.get(note.round_id)
            if known is not None and known.requested and not note.requested:
                return
            try:
                await trio.to_thread.run_sync(self._write, note, transcript)
            except OSError as error:
                log.error("a transcript could not be stored", round=note.round_id[:12], reason=error.strerror)
                return
            self._notes[note.round_id] = note
            self._sizes[note.round_id] = len(transcript)
            self._make_room()

    def notes(self) -> list[Note]:
        """Every kept round, the newest first."""
        return sorted(self._notes.values(), key=lambda note: note.created, reverse=True)

    def newest(self) -> Note | None:
        """The latest that somebody asked for, or of our probes where there is no other."""
        notes = self.notes()
        return next((note for note in notes if not note.is_probe), notes[0] if notes else None)

    def find(self, text: str) -> Note:
        """The round whose id starts with `text` (hex, 6 characters at least), or "last"; raises RemoteError(not_found)."""
        if text == "last" and (newest := self.newest()) is not None:
            return newest
        found = [note for name, note in self._notes.items() if len(text) >= 6 and name.startswith(text.lower())]
        if len(found) != 1:
            which = "more than one round" if found else "no round"
            raise RemoteError(Code.NOT_FOUND, f"{which} has an id that starts with {text[:64]!r}; swarmd rounds lists them")
        return found[0]

    async def transcript(self, note: Note) -> bytes:
        """The stored bytes, as they are on disk now; raises RemoteError(not_found)."""
        try:
            return await trio.to_thread.run_sync(self._read, note.round_id)
        except OSError as error:
            reason = f"the transcript of {note.round_id[:12]} cannot be read: {error.strerror}"
            raise RemoteError(Code.NOT_FOUND, reason) from None

    def _write(self, note: Note, transcript: bytes) -> None:
        # The note last: a file without one is an unfinished write, which `_load` clears.
        write_durably(self._folder / f"{note.round_id}.round", transcript)
        write_durably(self._folder / f"{note.round_id}.json", msgspec.json.encode(note))

    def _read(self, round_id: str) -> bytes:
        with (self._folder / f"{round_id}.round").open("rb") as file:
            return file.read(MAX_TRANSCRIPT_BYTES + 1)

    def _make_room(self) -> None:
        while len(self._notes) > self._max_rounds or (sum(self._sizes.values()) > self._max_bytes and len(self._notes) > 1):
            oldest = sorted(self._notes.values(), key=lambda note: note.created)
            others = [note for note in oldest if not note.requested]
            self._drop((others if 2 * len(others) >= len(oldest) else oldest)[0].round_id)

    def _load(self) -> None:
        for path in self._folder.glob("*.json"):
            try:
                with path.open("rb") as file:
                    note = msgspec.json.decode(file.read(MAX_NOTE_BYTES), type=Note)
                if note.round_id != path.stem:
                    raise msgspec.DecodeError("it is another round's note")
                self._sizes[note.round_id] = path.with_suffix(".round").stat().st_size
                self._notes[note.round_id] = note
            except (OSError, msgspec.DecodeError) as error:
                log.warning("a stored round cannot be read", file=path.name, reason=str(error))
        unfinished = [path for path in self._folder.glob("*.round") if path.stem not in self._notes]
        for path in (*unfinished, *self._folder.glob(".*.new")):
            self._remove(path)
        self._make_room()

    def _drop(self, round_id: str) -> None:
        del self._notes[round_id], self._sizes[round_id]
        self._remove(self._folder / f"{round_id}.round")
        self._remove(self._folder / f"{round_id}.json")

    def _remove(self, path: Path) -> None:
        try:
            path.unlink()
        except OSError as error:
            log.warning("an old transcript stays", file=path.name, reason=error.strerror)
