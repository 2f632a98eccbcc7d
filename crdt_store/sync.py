"""How one peer pulls from others what it lacks: rows of logs that differ, then ranges. Decides what to ask whom; sends nothing.

Bytes grow with the difference: equal replicas exchange one hash, others a sketch of their logs. Every answer either adds a
verified claim or proof, or closes what was asked of that peer until its row changes, so that no lie makes a loop.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from crdt_store.checkpoints import claims_of, read_record
from crdt_store.claims import SignedClaim
from crdt_store.forks import Fork, ForkProof, open_proof
from crdt_store.heads import ROW_HEAD_BYTES, LogRow, fork_id
from crdt_store.outcomes import Forked, Ignored, Inserted, Outcome, reclaimed
from crdt_store.replica import Replica
from crdt_store.runs import RUN_CLAIMS, find_runs
from crdt_store.sketch import ITEM_BYTES, MAX_CELLS, difference, unpack
from crdt_store.sync_events import (
    Announced,
    AskHeads,
    AskRange,
    Begin,
    CallFailed,
    ChunkArrived,
    Effect,
    Event,
    Fault,
    Finished,
    HeadsArrived,
    RangeEnded,
    Verified,
    Verify,
)
from crdt_store.sync_exchange import MAX_BARREN, Exchange, Ids, Phase, State, cost_of, spared_by, too_much
from crdt_store.sync_messages import (
    MAX_ASKED,
    MAX_CHUNK_ROWS,
    MAX_LISTED_ROWS,
    Announcement,
    HeadsReply,
    HeadsRequest,
    RangeChunk,
    RangeRequest,
    split_rows,
)
from crdt_store.sync_plan import BULK_CLAIMS, Want, part_of, plan, wants_of
from protocol.wire.errors import RemoteError, malformed
from protocol.wire.ids import Hash, PeerId

# Config

SYNC_EVERY = 30.0
"""Seconds between two `Begin`s, to be jittered by a fifth. Gossip brings news at once; this closes what gossip lost."""

MAX_FAULTS = 3
SHUN_SECONDS = 600.0
"""A peer that lied three times is not asked for ten minutes; a lie costs us one round trip, so that is three in ten minutes."""

MAX_REQUESTS = 64
"""Range requests of one exchange: 16 MiB at most, then another peer gets its turn."""

CELLS = (16, 34, 52, 80, 120, 240, 480, 960, 1_920, MAX_CELLS)
"""Cells asked for in turn until the difference can be read: five logs that differ take one question, ten take two."""

FULL_COMPARE_SECONDS = 600.0
"""Whole hashes are compared with one peer this often where rows say nothing and digests differ (`heads.LogRow`)."""

_PROVEN = b""
"""In place of a log's id: the answer holds a fork proof."""

MAX_PEERS = 1_024


# State


class Target(Protocol):
    """Where claims go: `store.ClaimStore`."""

    replica: Replica

    def insert_opened(self, opened: Sequence[SignedClaim]) -> list[Outcome]: ...

    def insert_fork(self, fork: Fork) -> Outcome: ...


class Sync:
    """Exchanges with many peers, one at a time with each; all pull into one target."""

    def __init__(self, target: Target, bulk: int = BULK_CLAIMS, run: int = RUN_CLAIMS) -> None:
        """`bulk`: where one answer would bring so many claims, they may come in checkpoints, to the end of the exchange.
        `run`: claims that follow each other and are taken in under the last one's signature.
        """
        self._target = target
        self._bulk = bulk
        self._run = run
        self._exchanges: dict[PeerId, Exchange] = {}

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now` in seconds on any monotonic clock."""
        exchange = self._exchange(event.peer)
        match event:
            case Begin(peer):
                return self._begin(peer, exchange, now)
            case Announced(peer, announcement):
                return self._announced(peer, exchange, announcement, now)
            case HeadsArrived(peer, reply) if exchange.phase is Phase.ROWS:
                return self._rows(peer, exchange, reply, now)
            case HeadsArrived(peer, reply) if exchange.phase is Phase.SUMMARIES:
                return self._summaries(peer, exchange, reply, now)
            case HeadsArrived(peer, reply) if exchange.phase is Phase.HEADS:
                return self._heads(peer, exchange, reply, now)
            case ChunkArrived(peer, chunk) if exchange.phase is Phase.RANGES:
                return self._chunk(peer, exchange, chunk, now)
            case Verified(peer, claims, forks):
                return self._verified(peer, exchange, claims, forks, now)
            case RangeEnded(peer) if exchange.phase is Phase.RANGES:
                return self._ended(peer, exchange, now)
            case CallFailed(peer) if exchange.phase is not Phase.IDLE:
                return self._finish(peer, exchange)
        return []  # an answer to an exchange that is over

    def busy(self, peer: PeerId) -> bool:
        """Whether an exchange with `peer` is under way."""
        return peer in self._exchanges and self._exchanges[peer].phase is not Phase.IDLE

    def shunned(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` lied so often that it is not asked now."""
        return peer in self._exchanges and now < self._exchanges[peer].shunned_until

    def made_room(self) -> None:
        """Claims take less room than they did, or had to give way to others: ask again about what yielded nothing, once."""
        for exchange in self._exchanges.values():
            exchange.barren.clear()

    def _exchange(self, peer: PeerId) -> Exchange:
        if peer not in self._exchanges and len(self._exchanges) >= MAX_PEERS:
            idle = [name for name, held in self._exchanges.items() if held.phase is Phase.IDLE]
            del self._exchanges[min(idle or self._exchanges, key=lambda name: self._exchanges[name].faults)]
        return self._exchanges.setdefault(peer, Exchange())

    def _begin(self, peer: PeerId, exchange: Exchange, now: float) -> list[Effect]:
        if exchange.phase is not Phase.IDLE or now < exchange.shunned_until:
            return []
        self._reset(exchange)
        exchange.phase = Phase.ROWS
        return [self._ask(peer, exchange, **({"cells": CELLS[0]} if len(self._target.replica) else {"listed": 0}))]

    def _announced(self, peer: PeerId, exchange: Exchange, announcement: Announcement, now: float) -> list[Effect]:
        if now < exchange.shunned_until:
            return []
        if not all(proof.plain for proof in announcement.proofs):
            return self._fault(peer, exchange, malformed("a proof with a checkpoint among those of claims alone"), now)
        for proof in (*announcement.proofs, *announcement.folded):
            try:
                if not self._target.replica.knows(proof):
                    self._target.insert_fork(open_proof(proof))
            except RemoteError as error:
                return self._fault(peer, exchange, error, now)
        if exchange.phase is Phase.IDLE:
            self._reset(exchange)
            self._want(exchange, (want for heads in announcement.heads for want in wants_of(heads)))
            self._plan(exchange)
            if exchange.before:
                return self._next(peer, exchange, now)
        return []

    def _rows(self, peer: PeerId, exchange: Exchange, reply: HeadsReply, now: float) -> list[Effect]:
        """Cells, or the rows themselves: read what differs, or ask for more of them."""
        asked = exchange.asked
        if asked is None or reply.digest == self._target.replica.digest():
            return self._finish(peer, exchange)
        moved_on = exchange.digest is not None and exchange.digest != reply.digest
        exchange.digest = Hash(reply.digest)
        if moved_on and (asked.skip or asked.listed > 0):  # these cells or rows do not go with the earlier ones
            exchange.restarts += 1
            if exchange.restarts > MAX_FAULTS:
                return self._finish(peer, exchange)
            exchange.cells, exchange.rows = [], []
            return [self._ask(peer, exchange, cells=asked.cells, listed=min(asked.listed, 0))]
        if reply.cells:
            return self._cells(peer, exchange, reply, now)
        exchange.rows += split_rows(reply.rows)
        if reply.more and reply.rows and len(exchange.rows) < MAX_LISTED_ROWS:
            return [self._ask(peer, exchange, listed=len(exchange.rows))]
        ours = self._target.replica.sketch()
        news = [row for row in exchange.rows if int.from_bytes(row, "big") not in ours]
        known = len(exchange.rows) - len(news)
        told = len(exchange.cells)
        exchange.rows = []
        self._want(exchange, (Want(LogRow.unpack(row)) for row in news))
        if told > 2 * (len(news) + len(ours) - known) + 64:
            return self._fault(peer, exchange, malformed("cells of other rows than it holds"), now, end=True)
        return self._next(peer, exchange, now)

    def _cells(self, peer: PeerId, exchange: Exchange, reply: HeadsReply, now: float) -> list[Effect]:
        exchange.cells += unpack(reply.cells)
        have = len(exchange.cells)
        if exchange.asked is None or have != exchange.asked.cells:
            return self._fault(peer, exchange, malformed("not as many cells as were asked for"), now, end=True)
        ours = self._target.replica.sketch()
        found = difference(ours.cells(have), exchange.cells)
        if found is not None:
            rows = [LogRow.unpack(item.to_bytes(ITEM_BYTES, "big")) for item in found if item not in ours]
            self._want(exchange, (Want(row) for row in rows))
            return self._next(peer, exchange, now)
        if reply.logs > 2 * len(ours) + CELLS[-1] or have >= CELLS[-1]:
            return [self._ask(peer, exchange, listed=0)]
        return [self._ask(peer, exchange, cells=next(count for count in CELLS if count > have), skip=have)]

    def _summaries(self, peer: PeerId, exchange: Exchange, reply: HeadsReply, now: float) -> list[Effect]:
        replica = self._target.replica
        names = [summary.issuer for summary in reply.summaries]
        after = "" if exchange.asked is None else exchange.asked.after
        ascending = all(a < b for a, b in zip([after, *names], names, strict=False))
        if not ascending or (reply.more and not names):
            return self._fault(peer, exchange, malformed("summaries that are not in ascending order"), now, end=True)
        exchange.differing += [PeerId(s.issuer) for s in reply.summaries if s.digest != replica.issuer_digest(PeerId(s.issuer))]
        if reply.more and len(exchange.differing) < MAX_BARREN:
            return [self._ask(peer, exchange, after=names[-1])]
        return self._next(peer, exchange, now)

    def _heads(self, peer: PeerId, exchange: Exchange, reply: HeadsReply, now: float) -> list[Effect]:
        names = () if exchange.asked is None else exchange.asked.issuers
        given = {heads.issuer: heads for heads in reply.heads if heads.issuer in names}
        if not given:
            return self._fault(peer, exchange, malformed("no heads of issuers that it has claims of"), now, end=True)
        exchange.differing = [issuer for issuer in exchange.differing if issuer not in given]
        self._want(exchange, (want for heads in given.values() for want in wants_of(heads)))
        return self._next(peer, exchange, now)

    def _chunk(self, peer: PeerId, exchange: Exchange, chunk: RangeChunk, now: float) -> list[Effect]:
        """Sort out what needs no signature checked: what is held already (by another peer's answer, say) or finds no room."""
        raws = (*chunk.claims, *chunk.records)
        exchange.received_claims += len(raws)
        exchange.received_bytes += sum(map(len, raws)) + sum(len(p.first) + len(p.second) for p in chunk.proofs)
        if too_much(exchange):
            return self._fault(peer, exchange, malformed("more claims than one answer may hold"), now, end=True)
        replica = self._target.replica
        id_of = Ids()
        claims: list[SignedClaim] = []
        proofs: list[ForkProof] = []
        cost, rows = 0.0, 0
        try:
            for proof in chunk.proofs:
                if replica.knows(proof):
                    self._came(exchange, _PROVEN, True)
                    self._came(exchange, fork_id(PeerId(read_record(proof.first).claim.issuer)), True)
                else:
                    proofs.append(proof)
                    cost += cost_of(read_record(proof.first)) + cost_of(read_record(proof.second))
            for raw in raws:
                entry = read_record(raw)
                rows += claims_of(entry) - 1
                known = replica.foresee(entry)
                if known is None:
                    claims.append(entry)
                    cost += cost_of(entry)
                else:
                    self._came(exchange, id_of(entry), isinstance(known, Ignored))
        except RemoteError as error:
            return self._fault(peer, exchange, error, now)
        exchange.received_claims += rows
        if too_much(exchange) or rows >= MAX_CHUNK_ROWS:
            return self._fault(peer, exchange, malformed("more claims than one answer may hold"), now, end=True)
        if not claims and not proofs:
            return []
        runs = find_runs(replica, claims, self._run)
        cost -= sum(spared_by(run) for run in runs)
        return [Verify(peer, tuple(claims), tuple(proofs), exchange.allow(cost, now), runs)]

    def _verified(
        self,
        peer: PeerId,
        exchange: Exchange,
        claims: Sequence[SignedClaim | RemoteError],
        forks: Sequence[Fork | RemoteError],
        now: float,
    ) -> list[Effect]:
        opened = [entry for entry in claims if isinstance(entry, SignedClaim)]
        proven = [fork for fork in forks if isinstance(fork, Fork)]
        outcomes = self._target.insert_opened(opened)
        outcomes += [self._target.insert_fork(fork) for fork in proven]
        if any(map(reclaimed, outcomes)):
            self.made_room()
        if exchange.phase is not Phase.RANGES:
            return []
        ids = [*map(Ids(), opened), *(fork_id(fork.issuer) for fork in proven)]
        if proven:
            self._came(exchange, _PROVEN, True)
        for log, outcome in zip(ids, outcomes, strict=True):
            self._came(exchange, log, isinstance(outcome, Ignored))
        exchange.inserted += sum(claims_of(outcome.entry) for outcome in outcomes if isinstance(outcome, Inserted))
        exchange.inserted += sum(isinstance(outcome, Forked) for outcome in outcomes)
        error = next((wrong for wrong in (*claims, *forks) if isinstance(wrong, RemoteError)), None)
        return [] if error is None else self._fault(peer, exchange, error, now)

    def _ended(self, peer: PeerId, exchange: Exchange, now: float) -> list[Effect]:
        """Close what yielded nothing. What stands behind the last thing that yielded may only have found no room: ask again."""
        replica = self._target.replica
        asked = list(exchange.before.values())
        changed = [self._state(want) != state for want, state in asked]
        moved = [i for i, (want, _) in enumerate(asked) if changed[i] or want.row.id in exchange.useless]
        reach = moved[-1] if moved else len(asked)
        empty: list[Want] = []
        for i, (want, _) in enumerate(asked):
            if part_of(replica, want) is None:
                exchange.wants.pop(want.row.id, None)  # now, and not ten thousand of them once all were asked about
            elif i <= reach and not changed[i]:
                empty.append(want)
        for want in empty:
            exchange.give_up(want)
        excused = _PROVEN in exchange.useless  # a log that the peer had to drop is answered by the proof
        if all(exchange.useless.get(want.row.id) or (excused and self._state(want) is None) for want in empty):
            return self._next(peer, exchange, now)
        effects = self._fault(peer, exchange, malformed("heads whose claims it does not give"), now)
        return effects if exchange.phase is Phase.IDLE else [*effects, *self._next(peer, exchange, now)]

    @staticmethod
    def _came(exchange: Exchange, log: bytes, useless: bool) -> None:
        exchange.useless[log] = exchange.useless.get(log, True) and useless

    def _state(self, want: Want) -> State:
        """What an answer about this log changes: its length, or the epoch that its issuer is frozen from."""
        place = want.place or self._target.replica.place(want.row.id)
        if place is None:
            return None
        fork = self._target.replica.fork_of(place[0])
        return self._target.replica.length(*place), None if fork is None else fork.epoch

    @staticmethod
    def _want(exchange: Exchange, wants: Iterable[Want]) -> None:
        for want in wants:
            length, head = exchange.barren.get(want.row.id, (0, b""))
            if length != want.row.length or head[:ROW_HEAD_BYTES] != want.row.head[:ROW_HEAD_BYTES]:
                exchange.wants[want.row.id] = want

    def _next(self, peer: PeerId, exchange: Exchange, now: float) -> list[Effect]:
        """The next thing to ask of this peer: claims that we lack, else heads of the issuers left, else the end."""
        request = self._plan(exchange)
        if exchange.before:
            exchange.requests += 1
            if exchange.requests > MAX_REQUESTS:
                return self._finish(peer, exchange)
            exchange.phase = Phase.RANGES
            exchange.received_bytes = exchange.received_claims = 0
            exchange.useless.clear()
            return [AskRange(peer, request)]
        if exchange.differing:
            exchange.phase = Phase.HEADS
            return [self._ask(peer, exchange, issuers=tuple(exchange.differing[:MAX_ASKED]))]
        if exchange.phase is Phase.ROWS and now - exchange.compared_at >= FULL_COMPARE_SECONDS:
            exchange.compared_at = now
            exchange.phase = Phase.SUMMARIES
            return [self._ask(peer, exchange)]
        return self._finish(peer, exchange)

    def _plan(self, exchange: Exchange) -> RangeRequest:
        """What to ask about next; what was asked about goes behind what was not, so that every log gets its turn."""
        planned = plan(self._target.replica, exchange.wants.values(), 0 if exchange.bulk else self._bulk, self._run)
        exchange.bulk = exchange.bulk or planned.claims >= self._bulk
        exchange.before = {want.row.id: (want, self._state(want)) for want in planned.asked}
        for want in planned.asked:
            del exchange.wants[want.row.id]
        if planned.done:
            exchange.wants = {log: want for log, want in exchange.wants.items() if log not in planned.done}
        for want in planned.asked:
            exchange.wants[want.row.id] = want
        return planned.request

    def _ask(self, peer: PeerId, exchange: Exchange, **what: Any) -> AskHeads:
        exchange.asked = HeadsRequest(self._target.replica.digest(), **what)
        return AskHeads(peer, exchange.asked)

    def _fault(self, peer: PeerId, exchange: Exchange, error: RemoteError, now: float, end: bool = False) -> list[Effect]:
        exchange.faults = exchange.faults + 1 if now - exchange.fault_at <= SHUN_SECONDS else 1
        exchange.fault_at = now
        effects: list[Effect] = [Fault(peer, error)]
        if exchange.faults >= MAX_FAULTS:
            exchange.faults = 0
            exchange.shunned_until = now + SHUN_SECONDS
            end = True
        if end and exchange.phase is not Phase.IDLE:
            effects += self._finish(peer, exchange)
        return effects

    def _finish(self, peer: PeerId, exchange: Exchange) -> list[Effect]:
        inserted = exchange.inserted
        self._reset(exchange)
        return [Finished(peer, inserted)]

    @staticmethod
    def _reset(exchange: Exchange) -> None:
        exchange.phase = Phase.IDLE
        exchange.asked = exchange.digest = None
        exchange.restarts = exchange.requests = exchange.inserted = 0
        exchange.received_bytes = exchange.received_claims = 0
        exchange.cells, exchange.rows, exchange.differing = [], [], []
        exchange.wants, exchange.before, exchange.useless = {}, {}, {}
        exchange.bulk = False
