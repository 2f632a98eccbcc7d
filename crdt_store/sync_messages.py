"""What peers say to each other to become equal, and the answering side, which is a function of the replica alone."""

from collections.abc import Iterator
from typing import Annotated

import msgspec

from crdt_store.claims import MAX_LOG_CLAIMS, Epoch, Seq
from crdt_store.forks import ForkProof, RawClaim
from crdt_store.heads import IssuerHeads
from crdt_store.replica import Replica
from protocol.wire.codec import Message
from protocol.wire.ids import HashField, PeerId, PeerIdField
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_CLAIM_BYTES

TOPIC = "/swarmd/heads/1"
HEADS_METHOD = "claims.heads"
RANGE_METHOD = "claims.range"

MAX_RANGE_BYTES = 256 << 10
MAX_RANGE_CLAIMS = 1_000
"""One answer holds 256 KiB or 1,000 claims, whichever is less: a slow link carries it in seconds, a lost one costs little.
(hashicorp/memberlist pushes up to 20 MiB at once, which suits a trusted LAN.)"""

MAX_SUMMARIES = 2_048
"""Issuers in one page: 184 KiB of names and digests."""

MAX_ASKED = 256
MAX_HEADS_BYTES = 200 << 10
MAX_RANGES = 64

_ISSUER_BYTES = 64
_HEAD_BYTES = 48
_CHUNK_BYTES = MAX_CHUNK_BYTES - 2 * MAX_CLAIM_BYTES - 256
"""A chunk is closed above this, so that the item that closes it (a proof is two claims) still fits 64 KiB."""

MAX_CHUNK_CLAIMS = 64
MAX_CHUNK_PROOFS = 16
"""Items that a receiver verifies in one go: 64 at 0.2 ms each keep its loop from standing still for 20 ms."""


class IssuerSummary(Message, frozen=True):
    """One issuer and the hash of all that is held of it."""

    issuer: PeerIdField
    digest: HashField


class HeadsRequest(Message, frozen=True):
    """ "claims.heads": with no `issuers`, asks for the page of summaries after the issuer `after`; else for those issuers' heads.

    `digest` is the asker's replica hash: where it differs from ours we have something to ask the asker, too.
    """

    digest: HashField
    after: Annotated[str, msgspec.Meta(max_length=52)] = ""
    issuers: Annotated[tuple[PeerIdField, ...], msgspec.Meta(max_length=MAX_ASKED)] = ()


class HeadsReply(Message, frozen=True):
    """The summaries in ascending order (`more`: another page follows), or as many of the asked heads as fit."""

    digest: HashField
    summaries: Annotated[tuple[IssuerSummary, ...], msgspec.Meta(max_length=MAX_SUMMARIES)] = ()
    more: bool = False
    heads: Annotated[tuple[IssuerHeads, ...], msgspec.Meta(max_length=MAX_ASKED)] = ()


class Range(Message, frozen=True):
    """Claims `start` to `start + count - 1` of one log."""

    issuer: PeerIdField
    epoch: Epoch
    start: Seq
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOG_CLAIMS)]


class RangeRequest(Message, frozen=True):
    """ "claims.range": what is missing, most wanted first, and the issuers whose fork proof is missing."""

    ranges: Annotated[tuple[Range, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()
    proofs: Annotated[tuple[PeerIdField, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()


class RangeChunk(Message, frozen=True):
    """One item of the answer's stream, at most 64 KiB: raw claims in the order asked, and fork proofs."""

    claims: Annotated[tuple[RawClaim, ...], msgspec.Meta(max_length=MAX_CHUNK_CLAIMS)] = ()
    proofs: Annotated[tuple[ForkProof, ...], msgspec.Meta(max_length=MAX_CHUNK_PROOFS)] = ()


class Announcement(Message, frozen=True):
    """Gossip: the author's replica hash, heads that just moved, and fork proofs that it just learned. Only proofs prove."""

    digest: HashField
    heads: Annotated[tuple[IssuerHeads, ...], msgspec.Meta(max_length=8)] = ()
    proofs: Annotated[tuple[ForkProof, ...], msgspec.Meta(max_length=4)] = ()


def announce(replica: Replica, issuer: PeerId, proofs: tuple[ForkProof, ...] = ()) -> Announcement:
    """What to gossip after `issuer` (usually ourselves) wrote a claim: its newest head alone."""
    heads = replica.heads(issuer)
    newest = IssuerHeads(issuer, heads.logs[-1:], heads.frozen_from)
    return Announcement(replica.digest(), (newest,) if newest.logs else (), proofs[:4])


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
    names = [issuer for issuer in replica.issuers() if issuer > request.after]
    page = tuple(IssuerSummary(issuer, replica.issuer_digest(issuer)) for issuer in names[:MAX_SUMMARIES])
    return HeadsReply(digest, page, more=len(names) > MAX_SUMMARIES)


def serve_range(replica: Replica, request: RangeRequest) -> Iterator[RangeChunk]:
    """The answer to "claims.range", item by item: within MAX_RANGE_BYTES and MAX_RANGE_CLAIMS altogether."""
    claims: list[bytes] = []
    proofs: list[ForkProof] = []
    size = total = 0
    for item in _items(replica, request):
        cost = len(item) if isinstance(item, bytes) else len(item.first) + len(item.second)
        total += cost + 8
        if total > MAX_RANGE_BYTES:
            break
        if isinstance(item, bytes):
            claims.append(item)
        else:
            proofs.append(item)
        size += cost + 8
        if size > _CHUNK_BYTES or len(claims) == MAX_CHUNK_CLAIMS or len(proofs) == MAX_CHUNK_PROOFS:
            yield RangeChunk(tuple(claims), tuple(proofs))
            claims, proofs, size = [], [], 0
    if claims or proofs:
        yield RangeChunk(tuple(claims), tuple(proofs))


def _items(replica: Replica, request: RangeRequest) -> Iterator[bytes | ForkProof]:
    for issuer in request.proofs:
        fork = replica.fork_of(PeerId(issuer))
        if fork is not None:
            yield fork.proof
    left = MAX_RANGE_CLAIMS
    for wanted in request.ranges:
        raws = replica.raws(PeerId(wanted.issuer), wanted.epoch, wanted.start, min(wanted.count, left))
        left -= len(raws)
        yield from raws
        if left <= 0:
            return
