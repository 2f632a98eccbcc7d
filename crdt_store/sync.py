"""How one peer pulls from others what it lacks: summaries, heads, then ranges. Decides what to ask whom; sends nothing itself.

Bytes grow with the difference: equal replicas exchange one hash, and heads are asked of differing issuers alone. Every answer
either adds a verified claim or proof, or closes what was asked of that peer until its head changes, so that no lie makes a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from crdt_store.forks import ForkProof
from crdt_store.heads import IssuerHeads
from crdt_store.replica import Forked, Inserted, Outcome, Replica
from crdt_store.sync_messages import (
    MAX_ASKED,
    MAX_RANGE_BYTES,
    MAX_RANGE_CLAIMS,
    MAX_RANGES,
    Announcement,
    HeadsReply,
    HeadsRequest,
    Range,
    RangeChunk,
    RangeRequest,
)
from protocol.wire.errors import RemoteError, malformed
from protocol.wire.ids import PeerId

# Events


@dataclass(frozen=True, slots=True)
class Begin:
    """Compare with `peer` now (the driver picks a random connected peer about every SYNC_EVERY seconds)."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Announced:
    """`peer` gossiped that heads moved or that a fork was proven."""

    peer: PeerId
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class HeadsArrived:
    peer: PeerId
    reply: HeadsReply


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    peer: PeerId
    chunk: RangeChunk


@dataclass(frozen=True, slots=True)
class RangeEnded:
    """The answer to the latest AskRange is complete."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The latest call to `peer` failed or ran past its deadline."""

    peer: PeerId


Event = Begin | Announced | HeadsArrived | ChunkArrived | RangeEnded | CallFailed


# Effects


@dataclass(frozen=True, slots=True)
class AskHeads:
    peer: PeerId
    request: HeadsRequest


@dataclass(frozen=True, slots=True)
class AskRange:
    peer: PeerId
    request: RangeRequest


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that costs `peer`: count it."""

    peer: PeerId
    error: RemoteError


@dataclass(frozen=True, slots=True)
class Finished:
    """The exchange with `peer` is over; `inserted` claims and proofs were new. A call still open for it should be cancelled."""

    peer: PeerId
    inserted: int


Effect = AskHeads | AskRange | Fault | Finished


# Config

SYNC_EVERY = 30.0
"""Seconds between two `Begin`s, to be jittered by a fifth. Gossip brings news at once; this closes what gossip lost."""

MAX_FAULTS = 3
SHUN_SECONDS = 600.0
"""A peer that lied three times is not asked for ten minutes; a lie costs us one round trip, so that is three in ten minutes."""

MAX_REQUESTS = 64
"""Range requests of one exchange: 16 MiB at most, then another peer gets its turn."""

MAX_PEERS = 1_024
MAX_BARREN = 4_096


# State


class Target(Protocol):
    """Where claims go: `store.ClaimStore`."""

    replica: Replica

    def insert_many(self, raws: Sequence[bytes]) -> list[Outcome | RemoteError]: ...

    def insert_proof(self, proof: ForkProof) -> Outcome: ...


class _Phase(Enum):
    IDLE = auto()
    SUMMARIES = auto()
    HEADS = auto()
    RANGES = auto()


_Place = tuple[PeerId, int]
_PROOF = -1
"""In place of an epoch: the issuer's fork proof."""


@dataclass(slots=True)
class _Exchange:
    """What is under way with one peer, and what is remembered of it between exchanges."""

    phase: _Phase = _Phase.IDLE
    cursor: str = ""
    differing: list[PeerId] = field(default_factory=list)
    asked: tuple[PeerId, ...] = ()
    heads: list[IssuerHeads] = field(default_factory=list)
    claimed: dict[_Place, tuple[int, bytes]] = field(default_factory=dict)
    """The heads behind each part of the latest range request."""
    before: dict[_Place, tuple[int, int | None]] = field(default_factory=dict)
    """Each part of the latest range request, in order, and our state of it when we asked."""
    received_bytes: int = 0
    received_claims: int = 0
    requests: int = 0
    inserted: int = 0
    faults: int = 0
    fault_at: float = float("-inf")
    shunned_until: float = float("-inf")
    barren: dict[_Place, tuple[int, bytes]] = field(default_factory=dict)
    """Heads that this peer gave and that yielded nothing: not asked again until they change."""


def plan(replica: Replica, theirs: IssuerHeads) -> tuple[list[Range], bool]:
    """What to ask of a peer with these heads: ranges, newest epoch first, and whether its fork proof is news.

    Where their log is no longer than ours and differs from it, its last claim alone is asked for: it contradicts one of ours.
    """
    issuer = PeerId(theirs.issuer)
    ours = replica.fork_of(issuer)
    proof = theirs.frozen_from is not None and (ours is None or ours.epoch > theirs.frozen_from)
    ranges: list[Range] = []
    for head in sorted({log.epoch: log for log in theirs.logs}.values(), key=lambda log: -log.epoch):
        if not replica.wants(issuer, head.epoch):
            continue
        length = replica.length(issuer, head.epoch)
        if head.length > length:
            ranges.append(Range(issuer, head.epoch, length, head.length - length))
        elif replica.hash_at(issuer, head.epoch, head.length - 1) != head.hash:
            ranges.append(Range(issuer, head.epoch, head.length - 1, 1))
    return ranges, proof


class Sync:
    """Exchanges with many peers, one at a time with each; all pull into one target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._exchanges: dict[PeerId, _Exchange] = {}

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now` in seconds on any monotonic clock."""
        exchange = self._exchange(event.peer)
        match event:
            case Begin(peer):
                return self._begin(peer, exchange, now)
            case Announced(peer, announcement):
                return self._announced(peer, exchange, announcement, now)
            case HeadsArrived(peer, reply) if exchange.phase is _Phase.SUMMARIES:
                return self._summaries(peer, exchange, reply, now)
            case HeadsArrived(peer, reply) if exchange.phase is _Phase.HEADS:
                return self._heads(peer, exchange, reply, now)
            case ChunkArrived(peer, chunk) if exchange.phase is _Phase.RANGES:
                return self._chunk(peer, exchange, chunk, now)
            case RangeEnded(peer) if exchange.phase is _Phase.RANGES:
                return self._ended(peer, exchange, now)
            case CallFailed(peer) if exchange.phase is not _Phase.IDLE:
                return self._finish(peer, exchange)
        return []  # an answer to an exchange that is over

    def busy(self, peer: PeerId) -> bool:
        """Whether an exchange with `peer` is under way."""
        return peer in self._exchanges and self._exchanges[peer].phase is not _Phase.IDLE

    def shunned(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` lied so often that it is not asked now."""
        return peer in self._exchanges and now < self._exchanges[peer].shunned_until

    def _exchange(self, peer: PeerId) -> _Exchange:
        if peer not in self._exchanges and len(self._exchanges) >= MAX_PEERS:
            idle = [name for name, held in self._exchanges.items() if held.phase is _Phase.IDLE]
            del self._exchanges[min(idle or self._exchanges, key=lambda name: self._exchanges[name].faults)]
        return self._exchanges.setdefault(peer, _Exchange())

    def _begin(self, peer: PeerId, exchange: _Exchange, now: float) -> list[Effect]:
        if exchange.phase is not _Phase.IDLE or now < exchange.shunned_until:
            return []
        self._reset(exchange)
        exchange.phase = _Phase.SUMMARIES
        return [AskHeads(peer, HeadsRequest(self._target.replica.digest()))]

    def _announced(self, peer: PeerId, exchange: _Exchange, announcement: Announcement, now: float) -> list[Effect]:
        if now < exchange.shunned_until:
            return []
        effects: list[Effect] = []
        for proof in announcement.proofs:
            try:
                self._target.insert_proof(proof)
            except RemoteError as error:
                return [*effects, *self._fault(peer, exchange, error, now)]
        if exchange.phase is _Phase.IDLE:
            self._reset(exchange)
            exchange.heads = list(announcement.heads)
            self._missing(exchange)
            if exchange.before:
                effects += self._next(peer, exchange)
        return effects

    def _summaries(self, peer: PeerId, exchange: _Exchange, reply: HeadsReply, now: float) -> list[Effect]:
        replica = self._target.replica
        names = [summary.issuer for summary in reply.summaries]
        ascending = all(a < b for a, b in zip([exchange.cursor, *names], names, strict=False))
        if not ascending or (reply.more and not names):
            return self._fault(peer, exchange, malformed("summaries that are not in ascending order"), now, end=True)
        exchange.differing += [PeerId(s.issuer) for s in reply.summaries if s.digest != replica.issuer_digest(PeerId(s.issuer))]
        if reply.more and len(exchange.differing) < MAX_BARREN:
            exchange.cursor = names[-1]
            return [AskHeads(peer, HeadsRequest(replica.digest(), exchange.cursor))]
        return self._next(peer, exchange)

    def _heads(self, peer: PeerId, exchange: _Exchange, reply: HeadsReply, now: float) -> list[Effect]:
        given = {heads.issuer: heads for heads in reply.heads if heads.issuer in exchange.asked}
        if not given:
            return self._fault(peer, exchange, malformed("no heads of issuers that it has claims of"), now, end=True)
        exchange.differing = [issuer for issuer in exchange.differing if issuer not in given]
        exchange.heads = list(given.values())
        return self._next(peer, exchange)

    def _chunk(self, peer: PeerId, exchange: _Exchange, chunk: RangeChunk, now: float) -> list[Effect]:
        exchange.received_claims += len(chunk.claims)
        exchange.received_bytes += sum(map(len, chunk.claims)) + sum(len(p.first) + len(p.second) for p in chunk.proofs)
        if exchange.received_claims > MAX_RANGE_CLAIMS or exchange.received_bytes > MAX_RANGE_BYTES:
            return self._fault(peer, exchange, malformed("more claims than one answer may hold"), now, end=True)
        outcomes = self._target.insert_many(chunk.claims)
        for proof in chunk.proofs:
            try:
                outcomes.append(self._target.insert_proof(proof))
            except RemoteError as refused:
                outcomes.append(refused)
        exchange.inserted += sum(isinstance(outcome, Inserted | Forked) for outcome in outcomes)
        error = next((outcome for outcome in outcomes if isinstance(outcome, RemoteError)), None)
        return [] if error is None else self._fault(peer, exchange, error, now)

    def _ended(self, peer: PeerId, exchange: _Exchange, now: float) -> list[Effect]:
        """Close what yielded nothing. What stands behind the last thing that yielded may only have found no room: ask again."""
        places = list(exchange.before)
        moved = [i for i, place in enumerate(places) if self._state(place) != exchange.before[place]]
        reach = moved[-1] if moved else len(places)
        empty = [place for place in places[:reach] if self._state(place) == exchange.before[place] and self._wants(place)]
        for place in empty:
            exchange.barren[place] = exchange.claimed[place]
            if len(exchange.barren) > MAX_BARREN:
                del exchange.barren[next(iter(exchange.barren))]
        if not empty:
            return self._next(peer, exchange)
        effects = self._fault(peer, exchange, malformed("heads whose claims it does not give"), now)
        return effects if exchange.phase is _Phase.IDLE else [*effects, *self._next(peer, exchange)]

    def _state(self, place: _Place) -> tuple[int, int | None]:
        """What an answer about this place changes: the log's length, or the epoch that the issuer is frozen from."""
        issuer, epoch = place
        fork = self._target.replica.fork_of(issuer)
        return self._target.replica.length(issuer, epoch), None if fork is None else fork.epoch

    def _wants(self, place: _Place) -> bool:
        return place[1] == _PROOF or self._target.replica.wants(*place)

    def _next(self, peer: PeerId, exchange: _Exchange) -> list[Effect]:
        """The next thing to ask of this peer: ranges of the heads at hand, then heads of the issuers left, else the end."""
        request = self._missing(exchange)
        if exchange.before:
            exchange.requests += 1
            if exchange.requests > MAX_REQUESTS:
                return self._finish(peer, exchange)
            exchange.phase = _Phase.RANGES
            exchange.received_bytes = exchange.received_claims = 0
            return [AskRange(peer, request)]
        if exchange.differing:
            exchange.phase = _Phase.HEADS
            exchange.asked = tuple(exchange.differing[:MAX_ASKED])
            return [AskHeads(peer, HeadsRequest(self._target.replica.digest(), issuers=exchange.asked))]
        return self._finish(peer, exchange)

    def _missing(self, exchange: _Exchange) -> RangeRequest:
        """What the heads at hand promise and we lack, within one request; notes what each part should change."""
        ranges: list[Range] = []
        proofs: list[PeerId] = []
        left = MAX_RANGE_CLAIMS
        exchange.claimed.clear()
        for heads in exchange.heads:
            issuer = PeerId(heads.issuer)
            wanted, proof = plan(self._target.replica, heads)
            claimed = (heads.frozen_from or 0, b"")
            if proof and exchange.barren.get((issuer, _PROOF)) != claimed and len(proofs) < MAX_RANGES:
                exchange.claimed[issuer, _PROOF] = claimed
                proofs.append(issuer)
            by_epoch = {head.epoch: (head.length, head.hash) for head in heads.logs}
            for part in wanted:
                if exchange.barren.get((issuer, part.epoch)) == by_epoch[part.epoch] or left <= 0 or len(ranges) == MAX_RANGES:
                    continue
                ranges.append(Range(part.issuer, part.epoch, part.start, min(part.count, left)))
                left -= ranges[-1].count
                exchange.claimed[issuer, part.epoch] = by_epoch[part.epoch]
        order = [(issuer, _PROOF) for issuer in proofs] + [(PeerId(part.issuer), part.epoch) for part in ranges]
        exchange.before = {place: self._state(place) for place in order}
        return RangeRequest(tuple(ranges), tuple(proofs))

    def _fault(self, peer: PeerId, exchange: _Exchange, error: RemoteError, now: float, end: bool = False) -> list[Effect]:
        exchange.faults = exchange.faults + 1 if now - exchange.fault_at <= SHUN_SECONDS else 1
        exchange.fault_at = now
        effects: list[Effect] = [Fault(peer, error)]
        if exchange.faults >= MAX_FAULTS:
            exchange.faults = 0
            exchange.shunned_until = now + SHUN_SECONDS
            end = True
        if end and exchange.phase is not _Phase.IDLE:
            effects += self._finish(peer, exchange)
        return effects

    def _finish(self, peer: PeerId, exchange: _Exchange) -> list[Effect]:
        inserted = exchange.inserted
        self._reset(exchange)
        return [Finished(peer, inserted)]

    @staticmethod
    def _reset(exchange: _Exchange) -> None:
        exchange.phase = _Phase.IDLE
        exchange.cursor = ""
        exchange.asked = ()
        exchange.requests = exchange.inserted = exchange.received_bytes = exchange.received_claims = 0
        for held in (exchange.differing, exchange.heads, exchange.claimed, exchange.before):
            held.clear()
