"""Claims and fork proofs as one file that other tools can read. Decides its framing and order; opens no file, judges no claim.

docs/wire.md ("Archives of claims") gives the format byte by byte. Every frame has its own checksums, so that damage is found
where it is, and where one byte was changed that byte is named.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from crdt_store.checkpoints import is_checkpoint
from crdt_store.forks import ForkProof
from crdt_store.replica import Replica
from protocol.wire.codec import decode, encode
from protocol.wire.errors import RemoteError, SwarmdError
from protocol.wire.ids import PeerId
from protocol.wire.limits import MAX_CHECKPOINT_BYTES, MAX_CLAIM_BYTES

MAGIC = b"swarmdRA"
VERSION = 2
"""1 had no checkpoints, and is still read."""

HEADER = MAGIC + struct.pack(">H", VERSION)

_FIRST_HEADER = MAGIC + struct.pack(">H", 1)

CLAIM, CHECKPOINT, PROOF, END = b"C", b"K", b"F", b"E"
MAX_BODY = {CLAIM: MAX_CLAIM_BYTES, CHECKPOINT: MAX_CHECKPOINT_BYTES, PROOF: 2 * MAX_CHECKPOINT_BYTES + 16, END: 8}
"""The longest body of each frame, in bytes."""

_CRC_BYTES = 4
_HEAD_BYTES = 8

Record = bytes | ForkProof
"""One thing of an archive: a claim's signed bytes, a checkpoint, or a proof."""


class ArchiveError(SwarmdError):
    """An archive is damaged. `offset` is the first bad byte of it, from 0; the message is one sentence that names it."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Framed:
    """A record, and where its body lies in the archive."""

    offset: int
    record: Record


def write(records: Iterable[Record]) -> Iterator[bytes]:
    """The archive of `records`, piece by piece."""
    yield HEADER
    count = 0
    for record in records:
        if isinstance(record, ForkProof):
            yield _frame(PROOF, encode(record))
        else:
            yield _frame(CHECKPOINT if is_checkpoint(record) else CLAIM, record)
        count += 1
    yield _frame(END, struct.pack(">Q", count))


def read(take: Callable[[int], bytes]) -> Iterator[Framed]:
    """The records of the archive that `take(n)` gives n bytes of, fewer at its end alone; raises ArchiveError at damage.

    Memory is bounded by one frame. What was yielded before the error is whole.
    """
    source = _Source(take)
    header = source.exactly(len(HEADER), "an archive begins with its header")
    if header not in (HEADER, _FIRST_HEADER):
        wrong = next(place for place, byte in enumerate(header) if byte != HEADER[place])
        known = "" if wrong < len(MAGIC) else f": version {int.from_bytes(header[-2:], 'big')}, and 1 to {VERSION} are known here"
        raise ArchiveError(wrong, f"this is no archive of claims that can be read{known}")
    count = 0
    while True:
        kind, length = _head(source)
        start = source.offset
        body = source.exactly(length, "a frame is cut short")
        _check(body, source.exactly(_CRC_BYTES, "a frame is cut short"), start)
        if kind == END:
            break
        count += 1
        if (kind == CHECKPOINT) != (kind != PROOF and is_checkpoint(body)):
            raise ArchiveError(start, "a claim in the frame of a checkpoint, or the other way round")
        yield Framed(start, _proof(body, start) if kind == PROOF else body)
    if body != struct.pack(">Q", count):
        raise ArchiveError(start, f"the end speaks of another number of records than the {count} before it")
    if take(1):
        raise ArchiveError(source.offset, "something follows the end")


def _frame(kind: bytes, body: bytes) -> bytes:
    head = kind + len(body).to_bytes(3, "big")
    return head + _crc(head) + body + _crc(body)


def _head(source: "_Source") -> tuple[bytes, int]:
    start = source.offset
    head = source.exactly(_HEAD_BYTES, "the archive ends before its last frame")
    _check(head[:4], head[4:], start)
    kind, length = head[:1], int.from_bytes(head[1:4], "big")
    if kind not in MAX_BODY:
        raise ArchiveError(start, "a frame of an unknown kind")
    if not 0 < length <= MAX_BODY[kind] or (kind == END and length != MAX_BODY[END]):
        raise ArchiveError(start + 1, f"a frame of {length} bytes, where at most {MAX_BODY[kind]} may be")
    return kind, length


def _proof(body: bytes, start: int) -> ForkProof:
    try:
        return decode(ForkProof, body, MAX_BODY[PROOF])
    except RemoteError as error:
        raise ArchiveError(start, f"this is no fork proof: {error.message}") from None


class _Source:
    def __init__(self, take: Callable[[int], bytes]) -> None:
        self._take = take
        self.offset = 0

    def exactly(self, count: int, otherwise: str) -> bytes:
        found = self._take(count)
        self.offset += len(found)
        if len(found) < count:
            raise ArchiveError(self.offset, f"the file ends here; {otherwise}")
        return found


# Checksums: CRC-32 as in zlib and PNG (ISO 3309), big-endian.


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "big")


def _check(content: bytes, checksum: bytes, start: int) -> None:
    if _crc(content) != checksum:
        place, exact = _changed_byte(content, checksum)
        what = "this byte was changed" if exact else f"some of the {len(content) + _CRC_BYTES} bytes from here on were changed"
        raise ArchiveError(start + place, what)


def _changed_byte(content: bytes, checksum: bytes) -> tuple[int, bool]:
    """Where in `content` + `checksum` the one byte lies whose change explains the mismatch; (0, False) where no single one does.

    A CRC is linear: the difference of two checksums depends on the change alone. One changed byte makes a difference of one
    table entry, which each byte behind it moves on by one step; undoing the steps one by one finds it. Other damage looks so by
    chance in one case of some thousands.
    """
    difference = zlib.crc32(content) ^ int.from_bytes(checksum, "big")
    stored = difference.to_bytes(_CRC_BYTES, "big")
    if sum(byte != 0 for byte in stored) == 1:
        return len(content) + next(place for place, byte in enumerate(stored) if byte), True
    for place in range(len(content) - 1, -1, -1):
        index = _BY_TOP[difference >> 24]
        difference = ((difference ^ _TABLE[index]) << 8 | index) & 0xFFFFFFFF
        if difference <= 0xFF:
            return place, True
    return 0, False


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))
_BY_TOP = {entry >> 24: index for index, entry in enumerate(_TABLE)}


# The order of an archive, and a replica's part of it.

Place = tuple[str, int, int]
"""Issuer, epoch, seq of a record's last claim; (issuer, -1, -1) is the issuer's fork proof, which goes before its claims."""

FIRST: Place = ("", 0, 0)
"""Before every record."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some records in order; `last` is the place of the latest one, None where nothing follows."""

    records: tuple[Record, ...]
    last: Place | None


def page(replica: Replica, after: Place, max_bytes: int) -> Page:
    """What `replica` holds behind `after`, in order, `max_bytes` of it (and one record at least).

    Logs only grow at their ends, so pages asked for one after the other give whole logs whatever came in meanwhile.
    """
    records: list[Record] = []
    size, last = 0, after
    for place, record in _behind(replica, after):
        length = len(record) if isinstance(record, bytes) else len(record.first) + len(record.second)
        if records and size + length > max_bytes:
            return Page(tuple(records), last)
        records.append(record)
        size, last = size + length, place
    return Page(tuple(records), None)


def _behind(replica: Replica, after: Place) -> Iterator[tuple[Place, Record]]:
    for issuer in replica.issuers():
        if issuer < after[0]:
            continue
        fork = replica.fork_of(issuer)
        if fork is not None and (issuer, -1, -1) > after:
            yield (issuer, -1, -1), fork.proof
        for head in replica.heads(issuer).logs:
            if (issuer, head.epoch, head.length - 1) <= after:
                continue
            seq = after[2] + 1 if after[:2] == (issuer, head.epoch) else 0
            for raw, claims in replica.records(PeerId(issuer), head.epoch, seq):
                seq += claims
                yield (issuer, head.epoch, seq - 1), raw
