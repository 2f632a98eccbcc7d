"""Claims in an SQLite file. Decides how bytes reach the disk and which file is refused; knows nothing of merging.

Our own claims are written with synchronous=FULL: in WAL mode SQLite then syncs at every commit, so that no power loss can make
us sign an old seq again. Copies of others' claims use NORMAL, which may lose the latest commits and costs a hundredth.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

from crdt_store.audit import Row, checksum
from crdt_store.claims import SignedClaim
from crdt_store.forks import Fork, ForkProof
from crdt_store.outcomes import Compacted, Forked, Inserted
from crdt_store.own_log import next_epoch
from crdt_store.store import Change, StorageError, Stored
from protocol.wire.ids import PeerId

SCHEMA_VERSION = 2
"""Since 2 a row of `claims` may be a checkpoint, under the key of its last claim; the tables are those of 1."""

APPLICATION_ID = 0x73776D64
""""swmd": tells our file from any other SQLite file."""

_LOG_PAGES = 128
"""The write-ahead log is folded into the file at 512 KiB, so that a small disk is not filled by it."""

_TOGETHER = 64
"""Rows in one statement."""

_SCHEMA = (
    "CREATE TABLE epochs (issuer TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE claims (issuer TEXT, epoch INTEGER, seq INTEGER, own INTEGER NOT NULL, raw BLOB NOT NULL,"
    " checksum BLOB NOT NULL, PRIMARY KEY (issuer, epoch, seq)) WITHOUT ROWID",
    "CREATE TABLE forks (issuer TEXT PRIMARY KEY, epoch INTEGER NOT NULL, first BLOB NOT NULL, second BLOB NOT NULL,"
    " checksum BLOB NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class ClaimStorage:
    """One file, one process: a second one that opens it is refused, because two writers of one log are a fork."""

    def __init__(self, path: Path) -> None:
        """Open or create `path` (0600); raises StorageError for a file that is damaged, foreign, newer, or in use."""
        self._path = path
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0.25, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{path} cannot be opened: {_reason(error)}") from None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def reading(cls, path: Path) -> Self:
        """Open `path` to look at it alone, also on a read-only disk; raises StorageError. Nothing in it changes."""
        self = cls.__new__(cls)
        self._path = path
        if not path.is_file():
            raise StorageError(f"there is no database of claims at {path}")
        log = path.with_name(path.name + "-wal")
        # On a read-only disk SQLite cannot make the index of its write-ahead log, which an empty log has no need of.
        whole = not log.exists() or log.stat().st_size == 0
        mode = "mode=ro&immutable=1" if whole and not os.access(path.parent, os.W_OK) else "mode=ro"
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=0.25)
        except sqlite3.Error as error:
            raise StorageError(f"{path} cannot be opened: {_reason(error)}") from None
        try:
            self._examine()
        except BaseException:
            self._db.close()
            raise
        return self

    def _examine(self) -> bool:
        """Whether the file is new; raises StorageError for a foreign or a newer one, before anything is written into it."""
        with self._faults():
            version, application = self._pragma("user_version"), self._pragma("application_id")
            new = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == version == application == 0
        if not new and application != APPLICATION_ID:
            raise StorageError(f"{self._path} is an SQLite file, and not one of claims; name another path")
        if version > SCHEMA_VERSION:
            raise StorageError(f"{self._path} was written by a newer swarmd (schema {version}, known: {SCHEMA_VERSION}); upgrade")
        return bool(new)

    def _prepare(self) -> None:
        with self._faults():
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        new = self._examine()
        with self._faults():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            self._db.execute("BEGIN IMMEDIATE").execute("COMMIT")  # takes the lock, which lasts until close
            verdict = " ".join(self._db.execute("PRAGMA quick_check(1)").fetchone()[0].split())
        if verdict != "ok":
            raise self._damaged(verdict)
        if new:
            with self._transaction(durable=True):
                for statement in _SCHEMA:
                    self._db.execute(statement)
        elif self._pragma("user_version") < SCHEMA_VERSION:
            with self._transaction(durable=True):
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def open_epoch(self, issuer: PeerId, above: int, now_ms: int) -> int:
        with self._transaction(durable=True):
            kept, held = self._db.execute(
                "SELECT (SELECT epoch FROM epochs WHERE issuer = ?1), (SELECT max(epoch) FROM claims WHERE issuer = ?1)",
                (issuer,),
            ).fetchone()
            epoch = next_epoch(max(above, kept or 0, held or 0), now_ms)
            self._db.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (issuer, epoch))
        return epoch

    def load(self) -> Stored:
        """Every claim and proof whose checksum holds. A log that is damaged ends before the damage; peers give the rest again."""
        claims: list[bytes] = []
        cut: dict[tuple[str, int], int] = {}
        damaged = 0
        with self._faults(), closing(self._db.execute("SELECT issuer, epoch, seq, raw, checksum FROM claims")) as rows:
            for issuer, epoch, seq, raw, kept in rows:
                if (issuer, epoch) in cut or checksum(raw) != kept:
                    cut.setdefault((issuer, epoch), seq)
                    damaged += 1
                else:
                    claims.append(raw)
        proofs: list[ForkProof] = []
        with self._faults():
            for first, second, kept in self._db.execute("SELECT first, second, checksum FROM forks").fetchall():
                if checksum(first, second) == kept:
                    proofs.append(ForkProof(first, second))
                else:
                    damaged += 1
        if cut:
            with self._transaction(durable=False):
                self._db.executemany(
                    "DELETE FROM claims WHERE issuer = ? AND epoch = ? AND seq >= ?",
                    [(issuer, epoch, seq) for (issuer, epoch), seq in cut.items()],
                )
        return Stored(claims, proofs, damaged)

    def append_own(self, entries: Sequence[SignedClaim]) -> None:
        with self._transaction(durable=True):
            self._db.executemany("INSERT INTO claims VALUES (?, ?, ?, 1, ?, ?)", map(_row, entries))

    def add_foreign(self, changes: Sequence[Change]) -> None:
        with self._transaction(durable=False):
            rows: list[tuple[str, int, int, bytes, bytes]] = []  # of claims that drop nothing: most of them, written at once
            for change in changes:
                if isinstance(change, Inserted) and not change.dropped:
                    rows.append(_row(change.entry))
                    if len(rows) == _TOGETHER:
                        self._insert_foreign(rows)
                        rows = []
                    continue
                self._insert_foreign(rows)
                rows = []
                if isinstance(change, Forked):
                    self._freeze(change.fork)
                elif isinstance(change, Compacted):
                    claim = change.entry.claim
                    self._db.execute(
                        "DELETE FROM claims WHERE issuer = ? AND epoch = ? AND seq >= ? AND seq < ? AND own = 0",
                        (claim.issuer, claim.epoch, change.entry.start, claim.seq),
                    )
                    self._insert_foreign([_row(change.entry)])
                else:
                    self._insert_foreign([_row(change.entry)])
                    self._db.executemany(
                        "DELETE FROM claims WHERE issuer = ? AND epoch = ? AND own = 0",
                        [(gone.issuer, gone.epoch) for gone in change.dropped],
                    )
            self._insert_foreign(rows)

    def _insert_foreign(self, rows: Sequence[tuple[str, int, int, bytes, bytes]]) -> None:
        # Many rows a statement: sqlite3 lets go of the interpreter's lock once for each, and waits to have it back.
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            places = ", ".join(["(?, ?, ?, 0, ?, ?)"] * len(some))
            columns = [column for row in some for column in row]
            self._db.execute(f"INSERT OR REPLACE INTO claims VALUES {places}", columns)  # noqa: S608 - question marks alone

    def _freeze(self, fork: Fork) -> None:
        proof = fork.proof
        self._db.execute("DELETE FROM claims WHERE issuer = ? AND epoch >= ? AND own = 0", (fork.issuer, fork.epoch))
        self._db.execute(
            "INSERT OR REPLACE INTO forks VALUES (?, ?, ?, ?, ?)",
            (fork.issuer, fork.epoch, proof.first, proof.second, checksum(proof.first, proof.second)),
        )

    def integrity(self) -> str:
        """What SQLite's own check of every page says: "ok", or the first fault."""
        with self._faults():
            return " ".join(str(self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]).split())

    def rows(self, after: tuple[str, int, int], limit: int) -> list[Row]:
        """At most `limit` records behind the key `after` (issuer, epoch, seq), by key; own ones of a forked log too."""
        with self._faults():
            found = self._db.execute(
                "SELECT issuer, epoch, seq, raw, checksum FROM claims WHERE (issuer, epoch, seq) > (?, ?, ?)"
                " ORDER BY issuer, epoch, seq LIMIT ?",
                (*after, limit),
            ).fetchall()
        return [Row(issuer, epoch, seq, (raw,), kept) for issuer, epoch, seq, raw, kept in found]

    def proofs(self) -> list[Row]:
        """Every fork proof, by issuer."""
        with self._faults():
            found = self._db.execute("SELECT issuer, epoch, first, second, checksum FROM forks ORDER BY issuer").fetchall()
        return [Row(issuer, epoch, -1, (first, second), kept) for issuer, epoch, first, second, kept in found]

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        with self._faults():
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                    self._fold_log()
                raise

    def _fold_log(self) -> None:
        """A full disk: the write-ahead log holds each page many times; folded into the file it leaves room for the next try."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns what SQLite reports into one clear sentence."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StorageError(f"{self._path} is in use by another process; stop that one first") from None
            raise StorageError(f"{self._path} cannot be read or written now: {_reason(error)}") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(_reason(error)) from None

    def _damaged(self, reason: str) -> StorageError:
        return StorageError(
            f"{self._path} is damaged ({reason}); move it away and start again: a new epoch begins, peers return their copies"
        )

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])


def _row(entry: SignedClaim) -> tuple[str, int, int, bytes, bytes]:
    return entry.claim.issuer, entry.claim.epoch, entry.claim.seq, entry.raw, checksum(entry.raw)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
