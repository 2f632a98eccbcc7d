"""Many claims under one signature: the last one, signed, and rows of those before it, which its chain of hashes vouches for.

`previous` of a signed claim is the hash of the claim before it, which holds the hash of the one before that: so every claim is
a checkpoint of its log. A row gives all fields of a claim and leaves out its signature alone. What is made from the rows either
hashes to what the last claim says or is refused, so that no row can belie its claim, and logs, heads and scores are the same
with and without. Knows no replica and no storage.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import msgspec

from crdt_store.claims import DOMAIN, MAX_EPOCH, NO_HASH, Claim, RawClaim, SignedClaim, Skill, read_claim, verify_claim
from protocol.wire.codec import Message, decoder, encode
from protocol.wire.envelope import statement_hash
from protocol.wire.errors import LocalError, RemoteError, malformed
from protocol.wire.ids import Hash, HashField, PeerId, peer_id_of, public_key_of
from protocol.wire.limits import MAX_CHECKPOINT_BYTES

CHECKPOINT_CLAIMS = 64
"""Claims under one signature, the signed one among them: 47 bytes each instead of 325. More would save a tenth, and make a proof
that one of them contradicts another claim longer."""

_ROWS = CHECKPOINT_CLAIMS - 1
_KEY_BYTES = 32

RawRecord = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CHECKPOINT_BYTES)]
"""A claim in its envelope, or a checkpoint."""


class Row(Message, frozen=True):
    """A claim without issuer, epoch, seq and previous hash, which its place gives. `subject` and `skill` are places in the
    checkpoint's lists; `later` is how many ms its time is behind that of the signed claim; no `evidence` stands for zeros.
    """

    subject: Annotated[int, msgspec.Meta(ge=0, lt=_ROWS)]
    kind: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
    skill: Annotated[int, msgspec.Meta(ge=0, lt=_ROWS)]
    value: Annotated[int, msgspec.Meta(ge=-MAX_EPOCH, le=MAX_EPOCH)]
    later: Annotated[int, msgspec.Meta(ge=-MAX_EPOCH, le=MAX_EPOCH)]
    evidence: HashField | None = None


class Checkpoint(Message, frozen=True):
    """`claim` is signed; `rows` are the claims before it, oldest first; `previous` is that of the first of them.

    `subjects` (32-byte keys) and `skills` stand in the order of their first use, each once, so that there is one form.
    """

    previous: HashField
    subjects: Annotated[bytes, msgspec.Meta(max_length=_KEY_BYTES * _ROWS)]
    skills: Annotated[tuple[Skill, ...], msgspec.Meta(max_length=_ROWS)]
    rows: Annotated[tuple[Row, ...], msgspec.Meta(min_length=1, max_length=_ROWS)]
    claim: RawClaim


class CheckpointEntry(SignedClaim, frozen=True, gc=False, kw_only=True):
    """The signed claim of a checkpoint, in whose bytes `raw` it came; `before` are the claims of its rows, once made.

    `before` have no `raw`: nobody here has their signatures.
    """

    checkpoint: Checkpoint
    before: tuple[SignedClaim, ...] = ()

    @property
    def start(self) -> int:
        """The seq of the first row."""
        return self.claim.seq - len(self.checkpoint.rows)

    @property
    def signed(self) -> SignedClaim:
        """The signed claim alone, as it would come without rows."""
        return SignedClaim(self.claim, self.hash, self.checkpoint.claim, self.envelope)


_decode_checkpoint = decoder(Checkpoint, MAX_CHECKPOINT_BYTES)
_name_of = lru_cache(maxsize=4096)(peer_id_of)  # base58: as in protocol.wire.ids, subjects are few

_BIN = 0xC4
"""The second byte of a checkpoint: its first field is a hash, that of an envelope a text."""


def is_checkpoint(raw: bytes) -> bool:
    """Whether these bytes, if they are valid at all, are a checkpoint and not a claim's envelope."""
    return len(raw) > 1 and raw[1] == _BIN


def read_record(raw: bytes) -> SignedClaim:
    """As `claims.read_claim`, for either form: nothing is verified, and of a checkpoint `before` is not made yet."""
    if not is_checkpoint(raw):
        return read_claim(raw)
    checkpoint = _decode_checkpoint(raw)
    end = read_claim(checkpoint.claim)
    start = end.claim.seq - len(checkpoint.rows)
    if start < 0 or (start == 0) != (checkpoint.previous == NO_HASH):
        raise malformed("rows of a checkpoint that lie before the beginning of its log")
    if end.raw != checkpoint.claim:
        raise malformed("a checkpoint that is not in its one form")
    return CheckpointEntry(end.claim, end.hash, raw, end.envelope, checkpoint=checkpoint)


def expand(entry: SignedClaim) -> SignedClaim:
    """Make the claims of the rows; raises RemoteError(malformed) unless the signed claim vouches for exactly these bytes."""
    if not isinstance(entry, CheckpointEntry) or entry.before:
        return entry
    checkpoint = entry.checkpoint
    if encode(checkpoint) != entry.raw or not _in_order(checkpoint):
        raise malformed("a checkpoint that is not in its one form")
    before: list[SignedClaim] = []
    previous = Hash(checkpoint.previous)
    issuer = PeerId(entry.claim.issuer)
    for seq in range(entry.start, entry.claim.seq):
        claim = row_claim(entry, seq, previous)
        previous = statement_hash(DOMAIN, issuer, encode(claim))
        before.append(SignedClaim(claim, previous, b""))
    if entry.claim.previous != previous:
        raise malformed("rows that their signed claim does not vouch for")
    return CheckpointEntry(entry.claim, entry.hash, entry.raw, entry.envelope, checkpoint=checkpoint, before=tuple(before))


def row_claim(entry: CheckpointEntry, seq: int, previous: Hash) -> Claim:
    """The claim that one row stands for, given the hash of the one before it; raises RemoteError(malformed)."""
    checkpoint, end = entry.checkpoint, entry.claim
    row = checkpoint.rows[seq - entry.start]
    key = checkpoint.subjects[_KEY_BYTES * row.subject : _KEY_BYTES * (row.subject + 1)]
    time = end.time + row.later
    if len(key) != _KEY_BYTES or row.skill >= len(checkpoint.skills) or not 0 <= time <= MAX_EPOCH or row.evidence == NO_HASH:
        raise malformed("a row of a checkpoint that stands for no claim")
    skill, evidence = checkpoint.skills[row.skill], row.evidence or NO_HASH
    return Claim(end.issuer, end.epoch, seq, previous, _name_of(key), row.kind, skill, row.value, evidence, time)


def _in_order(checkpoint: Checkpoint) -> bool:
    """Whether subjects and skills are listed at their first use: else bytes could be added that nobody signed."""
    subjects = skills = 0
    for row in checkpoint.rows:
        if row.subject > subjects or row.skill > skills:
            return False
        subjects += row.subject == subjects
        skills += row.skill == skills
    keys = {checkpoint.subjects[at : at + _KEY_BYTES] for at in range(0, len(checkpoint.subjects), _KEY_BYTES)}
    once = len(keys) == subjects and len(set(checkpoint.skills)) == skills
    return once and (len(checkpoint.subjects), len(checkpoint.skills)) == (_KEY_BYTES * subjects, skills)


def stretch(entry: SignedClaim) -> tuple[SignedClaim, ...]:
    """The claims that a record holds, oldest first: one, or those of a checkpoint that was expanded."""
    return (*entry.before, entry) if isinstance(entry, CheckpointEntry) else (entry,)


def claims_of(entry: SignedClaim) -> int:
    """How many claims a record holds, expanded or not."""
    return 1 + len(entry.checkpoint.rows) if isinstance(entry, CheckpointEntry) else 1


def beginning(entry: SignedClaim) -> tuple[int, bytes]:
    """The seq of a record's first claim, and the hash of the claim before it."""
    if isinstance(entry, CheckpointEntry):
        return entry.start, entry.checkpoint.previous
    return entry.claim.seq, entry.claim.previous


def can_be_row(entry: SignedClaim) -> bool:
    """Whether a row can stand for this claim: its bytes, which its hash is of, must be those that its fields alone give."""
    said = encode(entry.claim)
    if entry.envelope is not None:
        return said == entry.envelope.payload
    return not entry.raw or statement_hash(DOMAIN, PeerId(entry.claim.issuer), said) == entry.hash


def compact(entries: Sequence[SignedClaim]) -> SignedClaim:
    """One record of claims that follow each other, the last of them signed: that claim alone, or a checkpoint of them.

    Raises LocalError as `checkpoint_of`.
    """
    return checkpoint_of(entries) if len(entries) > 1 else _bare(entries[0])


def checkpoint_of(entries: Sequence[SignedClaim]) -> CheckpointEntry:
    """The checkpoint of claims that follow each other, the last of them signed.

    Raises LocalError for less than two and more than CHECKPOINT_CLAIMS, and where a row cannot stand for one.
    """
    before, end = tuple(entries[:-1]), _bare(entries[-1])
    if not end.raw or not 0 < len(before) <= _ROWS or not all(map(can_be_row, before)):
        raise LocalError("these claims make no checkpoint")
    subjects: dict[str, int] = {}
    skills: dict[str, int] = {}
    rows = tuple(
        Row(
            subjects.setdefault(one.claim.subject, len(subjects)),
            one.claim.kind,
            skills.setdefault(one.claim.skill, len(skills)),
            one.claim.value,
            one.claim.time - end.claim.time,
            None if one.claim.evidence == NO_HASH else one.claim.evidence,
        )
        for one in before
    )
    keys = b"".join(map(public_key_of, subjects))
    checkpoint = Checkpoint(before[0].claim.previous, keys, tuple(skills), rows, end.raw)
    bare = tuple(one if not one.raw else SignedClaim(one.claim, one.hash, b"") for one in before)
    return CheckpointEntry(end.claim, end.hash, encode(checkpoint), end.envelope, checkpoint=checkpoint, before=bare)


def _bare(entry: SignedClaim) -> SignedClaim:
    return entry.signed if isinstance(entry, CheckpointEntry) else entry


def verify_record(entry: SignedClaim) -> SignedClaim:
    """The signature of what `read_record` gave, and its rows; raises RemoteError(bad_signature | malformed)."""
    return verify_claim(expand(entry))


def open_record(raw: bytes) -> SignedClaim:
    """Verify an encoded claim or checkpoint; raises RemoteError(malformed | oversized | bad_signature)."""
    return verify_record(read_record(raw))


def verify_records(entries: Sequence[SignedClaim]) -> list[SignedClaim | RemoteError]:
    """`verify_record` of many, one result each. Touches no shared state, so that it may run in another thread."""
    verified: list[SignedClaim | RemoteError] = []
    for entry in entries:
        try:
            verified.append(verify_record(entry))
        except RemoteError as error:
            verified.append(error)
    return verified
