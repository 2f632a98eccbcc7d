"""What peers say to each other to become equal, and the answering side, which is a function of the replica alone."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec

from crdt_store.checkpoints import CHECKPOINT_CLAIMS, RawRecord
from crdt_store.claims import MAX_EPOCH, MAX_LOG_CLAIMS, Epoch, RawClaim, Seq
from crdt_store.forks import Fork, ForkProof
from crdt_store.heads import IssuerHeads
from crdt_store.replica import FROZEN_PLACE, Replica
from crdt_store.sketch import CELL_BYTES, ITEM_BYTES, MAX_CELLS, pack
from protocol.wire.codec import Message
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, HashField, PeerId, PeerIdField
from protocol.wire.limits import MAX_CHECKPOINT_BYTES, MAX_CHUNK_BYTES

TOPIC = "/swarmd/heads/1"
HEADS_METHOD = "claims.heads"
RANGE_METHOD = "claims.range"

MAX_RANGE_BYTES = 256 << 10
MAX_RANGE_CLAIMS = 1_000
"""One answer holds 256 KiB or 1,000 claims, whichever is less: a slow link carries it in seconds, a lost one costs little.
(hashicorp/memberlist pushes up to 20 MiB at once, which suits a trusted LAN.)"""

MOST_RANGE_CLAIMS = MAX_RANGE_CLAIMS + CHECKPOINT_CLAIMS
"""Where the last one lies within a checkpoint, the rest of that comes with it."""

AS_HELD, FOLDED = 1, 2
"""How records are wanted: claims in their envelopes where the peer has these, or all in as few checkpoints as may be."""

MAX_SUMMARIES = 2_048
"""Issuers in one page: 184 KiB of names and digests."""

MAX_ASKED = 256
MAX_HEADS_BYTES = 200 << 10
MAX_RANGES = 64

MAX_ROWS = 14_000
"""Logs in one page of rows: 178 KiB."""

MAX_LISTED_ROWS = 4 * MAX_ROWS
"""Rows that a listing has at most: a replica of 64 MiB with ten claims a log holds fewer."""

MAX_ANNOUNCED_PROOFS = 4
"""Of claims in their envelopes: 32 KiB at most. Checking them (0.17 ms each), and one with checkpoints beside them (0.7 ms),
holds a receiver's loop for 1.4 ms."""

_PICK_BYTES = 12
MAX_PICKS = 1_000

_ISSUER_BYTES = 64
_HEAD_BYTES = 48
_CHUNK_BYTES = MAX_CHUNK_BYTES - 2 * MAX_CHECKPOINT_BYTES - 256
"""A chunk is closed above this, so that the item that closes it (a proof is two records) still fits 64 KiB."""

MAX_CHUNK_CLAIMS = 64
MAX_CHUNK_PROOFS = 16
"""Items that a receiver verifies in one go: 64 at 0.2 ms each keep its loop from standing still for 20 ms."""

_CHUNK_ROWS = 128
MAX_CHUNK_ROWS = _CHUNK_ROWS + CHECKPOINT_CLAIMS
"""Claims without their own signature that a receiver takes in in one go, in checkpoints: 30 us each on its loop. A chunk is
closed at the first figure, and holds less than the second."""


class IssuerSummary(Message, frozen=True):
    """One issuer and the hash of all that is held of it."""

    issuer: PeerIdField
    digest: HashField


class HeadsRequest(Message, frozen=True):
    """ "claims.heads": what do you hold? Four ways to ask, from the cheapest to the most exact.

    `cells` > 0 asks for that many cells of the sketch of all rows (`sketch`, `heads.LogRow`), without the first `skip`, or for
    the rows themselves where those are fewer bytes; `listed` >= 0 for the rows from there on; `issuers` for their heads, with
    whole hashes; else for the page of issuers' digests after the issuer `after`. `digest` is the asker's replica hash.
    """

    digest: HashField
    after: Annotated[str, msgspec.Meta(max_length=52)] = ""
    issuers: Annotated[tuple[PeerIdField, ...], msgspec.Meta(max_length=MAX_ASKED)] = ()
    cells: Annotated[int, msgspec.Meta(ge=0, le=MAX_CELLS)] = 0
    skip: Annotated[int, msgspec.Meta(ge=0, le=MAX_CELLS)] = 0
    listed: Annotated[int, msgspec.Meta(ge=-1, le=MAX_LISTED_ROWS)] = -1


class HeadsReply(Message, frozen=True):
    """What was asked for, or nothing but `digest` where that is the asker's own. `more`: another page follows.

    Summaries are in ascending order; heads are as many as fit; `logs` is how many rows there are; rows come most useful first.
    """

    digest: HashField
    summaries: Annotated[tuple[IssuerSummary, ...], msgspec.Meta(max_length=MAX_SUMMARIES)] = ()
    more: bool = False
    heads: Annotated[tuple[IssuerHeads, ...], msgspec.Meta(max_length=MAX_ASKED)] = ()
    logs: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)] = 0
    cells: Annotated[bytes, msgspec.Meta(max_length=MAX_CELLS * CELL_BYTES)] = b""
    rows: Annotated[bytes, msgspec.Meta(max_length=MAX_ROWS * ITEM_BYTES)] = b""


class Range(Message, frozen=True):
    """Claims `start` to `start + count - 1` of one log."""

    issuer: PeerIdField
    epoch: Epoch
    start: Seq
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOG_CLAIMS)]


class RangeRequest(Message, frozen=True):
    """ "claims.range": what is missing, most wanted first: by name, by short name (`Pick`), and issuers whose fork proof is.

    `records`: how claims may come (AS_HELD, FOLDED); 0 is said by who knows no checkpoints, and gets claims alone.
    """

    ranges: Annotated[tuple[Range, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()
    proofs: Annotated[tuple[PeerIdField, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()
    picks: Annotated[bytes, msgspec.Meta(max_length=MAX_PICKS * _PICK_BYTES)] = b""
    records: Annotated[int, msgspec.Meta(ge=0, le=0xFF)] = 0


@dataclass(frozen=True, slots=True)
class Pick:
    """Claims of the log `id` in 12 bytes; `start` is FROZEN for a fork proof, whose id it then is."""

    id: bytes
    start: int
    count: int

    def pack(self) -> bytes:
        return self.id + self.start.to_bytes(2, "big") + self.count.to_bytes(2, "big")


def unpack_picks(packed: bytes) -> Iterator[Pick]:
    """The picks of a request; a last piece that is none is dropped."""
    for i in range(0, len(packed) - _PICK_BYTES + 1, _PICK_BYTES):
        piece = packed[i : i + _PICK_BYTES]
        yield Pick(piece[:8], int.from_bytes(piece[8:10], "big"), int.from_bytes(piece[10:], "big"))


def split_rows(packed: bytes) -> list[bytes]:
    """The rows of a reply, each packed; a last piece that is none is dropped."""
    return [packed[i : i + ITEM_BYTES] for i in range(0, len(packed) - ITEM_BYTES + 1, ITEM_BYTES)]


class RangeChunk(Message, frozen=True):
    """One item of the answer's stream, at most 64 KiB: what was asked for, in that order, and fork proofs.

    `claims` to who knows no checkpoints, `records` (claims and checkpoints) to all others.
    """

    claims: Annotated[tuple[RawClaim, ...], msgspec.Meta(max_length=MAX_CHUNK_CLAIMS)] = ()
    proofs: Annotated[tuple[ForkProof, ...], msgspec.Meta(max_length=MAX_CHUNK_PROOFS)] = ()
    records: Annotated[tuple[RawRecord, ...], msgspec.Meta(max_length=MAX_CHUNK_CLAIMS)] = ()


class Announcement(Message, frozen=True):
    """Gossip: the author's replica hash, heads that just moved, and fork proofs that it just learned. Only proofs prove.

    `proofs` are of claims in their envelopes, which every version understands; `folded` has one with a checkpoint in it.
    """

    digest: HashField
    heads: Annotated[tuple[IssuerHeads, ...], msgspec.Meta(max_length=8)] = ()
    proofs: Annotated[tuple[ForkProof, ...], msgspec.Meta(max_length=MAX_ANNOUNCED_PROOFS)] = ()
    folded: Annotated[tuple[ForkProof, ...], msgspec.Meta(max_length=1)] = ()


def take_proofs(waiting: deque[ForkProof]) -> tuple[ForkProof, ...]:
    """Take from `waiting` what one announcement has room for: MAX_ANNOUNCED_PROOFS, one of them with a checkpoint in it."""
    taken: list[ForkProof] = []
    while waiting and len(taken) < MAX_ANNOUNCED_PROOFS:
        if not waiting[0].plain and not all(proof.plain for proof in taken):
            break
        taken.append(waiting.popleft())
    return tuple(taken)


def announce(replica: Replica, issuer: PeerId, proofs: tuple[ForkProof, ...] = ()) -> Announcement:
    """What to gossip after `issuer` (usually ourselves) wrote a claim: its newest head alone, and `proofs` of `take_proofs`."""
    heads = replica.heads(issuer)
    newest = IssuerHeads(issuer, heads.logs[-1:], heads.frozen_from)
    plain = tuple(proof for proof in proofs if proof.plain)
    folded = tuple(proof for proof in proofs if not proof.plain)
    return Announcement(replica.digest(), (newest,) if newest.logs else (), plain, folded)


def serve_heads(replica: Replica, request: HeadsRequest) -> HeadsReply:
    """The answer to "claims.heads"."""
    digest = replica.digest()
    if request.issuers:
        heads: list[IssuerHeads] = []
        room = MAX_HEADS_BYTES
        for issuer in request.issuers:
            found = replica.heads(PeerId(issuer))
            room -= _ISSUER_BYTES + _HEAD_BYTES * len(found.logs)
            if room < 0 and heads:
                break
            heads.append(found)
        return HeadsReply(digest, heads=tuple(heads))
    if request.digest == digest:
        return HeadsReply(digest)
    if request.cells > 0 or request.listed >= 0:
        return _rows_or_cells(replica, request, digest)
    names = [issuer for issuer in replica.issuers() if issuer > request.after]
    page = tuple(IssuerSummary(issuer, replica.issuer_digest(issuer)) for issuer in names[:MAX_SUMMARIES])
    return HeadsReply(digest, page, more=len(names) > MAX_SUMMARIES)


def _rows_or_cells(replica: Replica, request: HeadsRequest, digest: Hash) -> HeadsReply:
    sketch = replica.sketch()
    if request.listed < 0 and request.cells * CELL_BYTES < len(sketch) * ITEM_BYTES:
        cells = sketch.cells(request.cells)[request.skip :]
        return HeadsReply(digest, logs=len(sketch), cells=pack(cells))
    start = max(request.listed, 0)
    rows = replica.rows()[: MAX_LISTED_ROWS * ITEM_BYTES]
    page = rows[start * ITEM_BYTES : (start + MAX_ROWS) * ITEM_BYTES]
    return HeadsReply(digest, more=len(rows) > (start + MAX_ROWS) * ITEM_BYTES, logs=len(sketch), rows=page)


def serve_range(replica: Replica, request: RangeRequest) -> Iterator[RangeChunk]:
    """The answer to "claims.range", item by item: within MAX_RANGE_BYTES and MOST_RANGE_CLAIMS altogether.

    Raises RemoteError(unsupported) at its end where something can be had as a checkpoint alone, and the asker knows none: it has
    what it can read, and nobody is to blame.
    """
    raws: list[bytes] = []
    proofs: list[ForkProof] = []
    size = rows = total = 0
    unreadable = False
    for item, claims in _items(replica, request):
        if not claims and not isinstance(item, ForkProof):
            unreadable = True
            continue
        cost = len(item) if isinstance(item, bytes) else len(item.first) + len(item.second)
        total += cost + 8
        if total > MAX_RANGE_BYTES:
            break
        if isinstance(item, bytes):
            raws.append(item)
        else:
            proofs.append(item)
        size += cost + 8
        rows += claims - 1
        if size > _CHUNK_BYTES or rows >= _CHUNK_ROWS or len(raws) == MAX_CHUNK_CLAIMS or len(proofs) == MAX_CHUNK_PROOFS:
            yield _chunk(request, raws, proofs)
            raws, proofs, size, rows = [], [], 0, 0
    if raws or proofs:
        yield _chunk(request, raws, proofs)
    if unreadable:
        raise RemoteError(Code.UNSUPPORTED, "some of these claims are held as checkpoints alone: ask for records")


def _chunk(request: RangeRequest, raws: list[bytes], proofs: list[ForkProof]) -> RangeChunk:
    if request.records:
        return RangeChunk((), tuple(proofs), tuple(raws))
    return RangeChunk(tuple(raws), tuple(proofs))


def _items(replica: Replica, request: RangeRequest) -> Iterator[tuple[bytes | ForkProof, int]]:
    """What was asked for, and how many claims each item holds; (b"", 0) stands for what the asker cannot read."""
    for issuer in request.proofs:
        yield from _proof(replica.fork_of(PeerId(issuer)), request)
    left = MAX_RANGE_CLAIMS
    for issuer, epoch, start, count in _wanted(replica, request):
        fork = replica.fork_of(issuer)
        if epoch == FROZEN_PLACE:
            yield from _proof(fork, request)
            continue
        nothing = True
        for raw, claims in _records(replica, (issuer, epoch, start, min(count, left)), request):
            nothing = False
            left -= claims
            yield raw, claims
        if nothing and fork is not None and fork.epoch <= epoch:
            yield from _proof(fork, request)  # proved since we said that we hold the log
        if left <= 0:
            return


def _records(replica: Replica, part: tuple[PeerId, int, int, int], request: RangeRequest) -> Iterator[tuple[bytes, int]]:
    issuer, epoch, start, count = part
    if request.records:
        yield from replica.records(issuer, epoch, start, count, request.records == FOLDED)
        return
    raws = replica.raws(issuer, epoch, start, count)
    yield from ((raw, 1) for raw in raws)
    if len(raws) < min(count, replica.length(issuer, epoch) - start):
        yield b"", 0


def _proof(fork: Fork | None, request: RangeRequest) -> Iterator[tuple[bytes | ForkProof, int]]:
    if fork is not None:
        yield (fork.proof, 1) if request.records or fork.proof.plain else (b"", 0)


def _wanted(replica: Replica, request: RangeRequest) -> Iterator[tuple[PeerId, int, int, int]]:
    for named in request.ranges:
        yield PeerId(named.issuer), named.epoch, named.start, named.count
    for pick in unpack_picks(request.picks):
        place = replica.place(pick.id)
        if place is not None:
            yield *place, pick.start, pick.count
