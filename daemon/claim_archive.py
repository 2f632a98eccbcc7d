"""Lends the claims held here page by page, takes in pages of an archive, and checks the database. Knows no file and no HTTP."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from crdt_store.archive import Page, Place, page
from crdt_store.audit import Audit, Report
from crdt_store.checkpoints import claims_of, read_record, verify_records
from crdt_store.claims import SignedClaim
from crdt_store.forks import ForkProof, open_proofs
from crdt_store.outcomes import Duplicate, Forked, Gap, Ignored, Inserted, Outcome
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore, StorageError
from daemon.claim_sync import ClaimSync, in_thread
from protocol.wire.errors import RemoteError

MAX_PAGE_BYTES = 384 << 10
"""Claims and proofs in one page of an export; in JSON they are a third longer, and a body of the local API has 1 MiB."""

_ROWS = 500
"""Rows looked at while the storage is held."""


@dataclass
class Taken:
    """What became of a page: `inserted` and `duplicate` claims, new `proofs`, and `refused` ones by reason."""

    inserted: int = 0
    duplicate: int = 0
    proofs: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def note(self, outcome: Outcome | RemoteError, claims: int = 1) -> None:
        """Count one outcome, of a record that holds so many claims."""
        match outcome:
            case Inserted(entry):
                self.inserted += claims_of(entry)
            case Forked():
                self.proofs += 1
            case Duplicate():
                self.duplicate += claims
            case Gap():
                self.refused["gap"] += 1
            case Ignored(reason):
                self.refused[reason] += 1
            case RemoteError():
                self.refused[str(outcome.code)] += 1


class ClaimArchive:
    """The claims of a running daemon, for its owner."""

    def __init__(self, store: ClaimStore, storage: ClaimStorage, sync: ClaimSync) -> None:
        self._store = store
        self._storage = storage
        self._sync = sync

    def page(self, after: Place) -> Page:
        """Claims and proofs behind `after`."""
        return page(self._store.replica, after, MAX_PAGE_BYTES)

    async def take(self, proofs: Sequence[ForkProof], claims: Sequence[bytes]) -> dict[str, Any]:
        """Add proofs and claims as if a stranger had sent them; on return they are on disk. Raises StorageError."""
        taken = Taken()
        for fork in await in_thread(lambda: open_proofs(proofs)):
            taken.note(fork if isinstance(fork, RemoteError) else self._store.insert_fork(fork))
        unknown: list[SignedClaim] = []
        for raw in claims:
            try:
                entry = read_record(raw)
            except RemoteError as error:
                taken.note(error)
                continue
            known = self._store.replica.foresee(entry)
            if known is None:
                unknown.append(entry)
            else:
                taken.note(known, claims_of(entry))
        for opened in await in_thread(lambda: verify_records(unknown)):
            if isinstance(opened, RemoteError):
                taken.note(opened)
                continue
            for outcome in self._store.insert_opened([opened]):
                taken.note(outcome, claims_of(opened))
            await trio.lowlevel.checkpoint()  # a page may hold 8,000 claims, which take 0.03 ms each
        async with self._sync.storing:
            await in_thread(self._store.save)
        if self._store.storage_error is not None:
            raise StorageError(self._store.storage_error)
        if taken.inserted or taken.proofs:
            self._sync.announce()
        return {**vars(taken), "refused": dict(taken.refused)}  # `asdict` would count a Counter's pairs

    async def check(self) -> Report:
        """Look at the whole database: its pages, then every row. Writing goes on between two pieces of it."""
        audit = Audit()
        async with self._sync.storing:
            pages = await in_thread(self._storage.integrity)
            proofs = await in_thread(self._storage.proofs)
        if pages != "ok":
            audit.report.fault = f"SQLite: {pages}"
            return audit.report
        if not await in_thread(lambda: audit.rows(proofs)):
            return audit.report
        after: Place = ("", 0, 0)
        while True:
            async with self._sync.storing:
                rows = await in_thread(partial(self._storage.rows, after, _ROWS))
            if not rows or not await in_thread(partial(audit.rows, rows, rewritten=True)):
                return audit.report
            after = (rows[-1].issuer, rows[-1].epoch, rows[-1].seq)


def check_file(path: Path) -> Report:
    """The same of the database of a stopped daemon, which is opened for reading alone; raises StorageError."""
    storage = ClaimStorage.reading(path)
    try:
        audit = Audit()
        pages = storage.integrity()
        if pages != "ok":
            audit.report.fault = f"SQLite: {pages}"
            return audit.report
        if not audit.rows(storage.proofs()):
            return audit.report
        after: Place = ("", 0, 0)
        while (rows := storage.rows(after, _ROWS)) and audit.rows(rows):
            after = (rows[-1].issuer, rows[-1].epoch, rows[-1].seq)
        return audit.report
    finally:
        storage.close()
