"""Whether records that were kept are what was signed: signature, hash, place in the log. Names the fault and mends nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

from crdt_store.archive import ArchiveError, Framed, read
from crdt_store.checkpoints import open_record, stretch
from crdt_store.claims import NO_HASH, SignedClaim
from crdt_store.forks import Fork, ForkProof, open_proof
from protocol.wire.errors import RemoteError
from protocol.wire.ids import Hash

CHECKSUM_BYTES = 16
"""Of the SHA-256 beside each row of a database."""


_SEARCHED_BYTES = 8 << 10


def checksum(*parts: bytes) -> bytes:
    """What a row is kept under: SQLite has none of its own, and a flipped bit in a signature would make a forger of us."""
    return sha256(b"".join(parts)).digest()[:CHECKSUM_BYTES]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a database: a claim or checkpoint, or a proof (two parts; `seq` is -1). The key as its columns say it."""

    issuer: str
    epoch: int
    seq: int
    parts: tuple[bytes, ...]
    checksum: bytes

    @property
    def name(self) -> str:
        """The row in words."""
        return f"proof of {self.issuer}" if self.seq < 0 else f"claim {self.issuer} {self.epoch}/{self.seq}"


@dataclass(slots=True)
class Report:
    """What was found. `fault` is one sentence on the first bad byte, "" where all is well; `offset` is that byte, from 0, in an
    archive or in the row that `row` names."""

    claims: int = 0
    proofs: int = 0
    fault: str = ""
    row: str = ""
    offset: int | None = None


class Audit:
    """Follows records in the order of an archive: each issuer's proof, then its logs by epoch and seq."""

    def __init__(self) -> None:
        self.report = Report()
        self._before: SignedClaim | None = None

    def archive(self, take: Callable[[int], bytes]) -> Report:
        """Read a whole archive; stops at the first fault."""
        try:
            for framed in read(take):
                self._framed(framed)
        except ArchiveError as error:
            self.report.fault, self.report.offset = str(error), error.offset
        return self.report

    def rows(self, rows: Iterable[Row], rewritten: bool = False) -> bool:
        """Look at rows of a database, in order; False at the first fault, which the report then names.

        `rewritten`: rows may have been put together since the latest call, so that the first one may begin with what was seen.
        """
        for number, row in enumerate(rows):
            fault = self._row(row, rewritten and number == 0)
            if fault is not None:
                offset, reason = fault
                self.report.row, self.report.offset = row.name, offset
                self.report.fault = f"row {row.name}, byte {offset}: {reason}"
                return False
        return True

    def _framed(self, framed: Framed) -> None:
        try:
            self._proof(framed.record) if isinstance(framed.record, ForkProof) else self._claim(framed.record)
        except _Fault as fault:
            raise ArchiveError(framed.offset, str(fault)) from None

    def _row(self, row: Row, rewritten: bool) -> tuple[int, str] | None:
        if checksum(*row.parts) != row.checksum:
            return _changed_byte(b"".join(row.parts), row.checksum)
        try:
            if row.seq < 0:
                first, second = row.parts
                fork = self._proof(ForkProof(first, second))
                same = (fork.issuer, fork.epoch) == (row.issuer, row.epoch)
            else:
                claim = self._claim(row.parts[0], rewritten).claim
                same = (claim.issuer, claim.epoch, claim.seq) == (row.issuer, row.epoch, row.seq)
        except _Fault as fault:
            return 0, str(fault)
        return None if same else (0, "it lies under the key of another")

    def _proof(self, proof: ForkProof) -> Fork:
        try:
            fork = open_proof(proof)
        except RemoteError as error:
            raise _Fault(error.message) from None
        self.report.proofs += 1
        return fork

    def _claim(self, raw: bytes, rewritten: bool = False) -> SignedClaim:
        try:
            entry = open_record(raw)
        except RemoteError as error:
            raise _Fault(error.message) from None
        said, before = stretch(entry), self._before
        follows, tip = 0, NO_HASH
        if before is not None and (before.claim.issuer, before.claim.epoch) == (entry.claim.issuer, entry.claim.epoch):
            follows, tip = before.claim.seq + 1, before.hash
        seen = follows - said[0].claim.seq
        if rewritten and 0 < seen < len(said) and said[seen - 1].hash == tip:
            said = said[seen:]
        claim = said[0].claim
        if claim.seq != follows:
            raise _Fault(f"claim {claim.seq} of its log stands where {follows} belongs")
        if claim.previous != Hash(tip):
            raise _Fault("it does not follow the claim before it: the chain of hashes is broken")
        self._before = entry
        self.report.claims += len(said)
        return entry


class _Fault(Exception):
    pass


def _changed_byte(content: bytes, kept: bytes) -> tuple[int, str]:
    """The byte whose change alone explains the mismatch, by trying all (up to 8 KiB: some seconds); else the row's first."""
    told = checksum(content)
    if len(kept) != CHECKSUM_BYTES or sum(a != b for a, b in zip(told, kept, strict=True)) == 1:
        return len(content), "its checksum was changed"
    prefix = sha256()
    for place in range(len(content) if len(content) <= _SEARCHED_BYTES else 0):
        rest = content[place + 1 :]
        for value in range(256):
            tried = prefix.copy()
            tried.update(bytes((value,)) + rest)
            if tried.digest()[:CHECKSUM_BYTES] == kept:
                return place, "this byte was changed"
        prefix.update(content[place : place + 1])
    return 0, "its bytes and its checksum do not belong together"
