"""The grow-only set of claims as one peer holds it. Decides what is kept and what is refused; touches no disk and no network.

Two replicas that have exchanged what they hold are equal, whatever order, duplication or loss came before: each rule below
looks at the set of claims alone, never at when or from whom they came.

- A log (one issuer, one epoch) is kept without holes, from seq 0; what comes too early is a gap, and sync asks for it in order.
- A fork drops everything the issuer said from the forked epoch on, and keeps the proof. Dropping the whole epoch, and not only
  what follows the fork, is what makes replicas equal without a search for the lowest place where branches part.
- Of one issuer the newest epochs are kept: an epoch goes once newer ones hold `issuer_claims` claims or are `issuer_epochs` many.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator

from crdt_store.checkpoints import CHECKPOINT_CLAIMS, beginning, compact, expand, read_record, stretch, verify_record
from crdt_store.claims import MAX_LOG_CLAIMS, SignedClaim
from crdt_store.forks import Fork, ForkProof, fork_of, open_proof
from crdt_store.heads import IssuerHeads, LogRow, fork_id, fork_row, issuer_digest, log_id, log_row, replica_digest
from crdt_store.issuer import Issuer, beyond_quota, closed
from crdt_store.logs import Log
from crdt_store.outcomes import Compacted, Dropped, Duplicate, Forked, Gap, Ignored, Inserted, Outcome
from crdt_store.room import Bounds, Room
from crdt_store.sketch import Sketch
from protocol.wire.ids import Hash, PeerId

USUAL_BYTES = 512
"""A claim has 400 bytes at most where each field is as long as it may be; 4 KiB are for those of later versions."""

FROZEN_PLACE = -1
"""In place of an epoch: the issuer's fork proof."""

MAX_GONE = 4_096
"""Short names of logs that are gone which are still known: more than one answer is about."""

_NOBODY = Issuer()
_NO_LOG = Log(b"")


class Replica:
    """The set in memory. `insert` is the only way in, for our own claims and for others' alike."""

    def __init__(
        self,
        bounds: Bounds | None = None,
        always_admit: PeerId | None = None,
        observe: Callable[[Inserted | Forked], None] | None = None,
    ) -> None:
        """`observe` is told of every change, after it; what it sums stays true to what is held."""
        self._observe = observe
        self._bounds = bounds or Bounds()
        self.room = Room(self._bounds, always_admit, self._shrink)
        self._issuers: dict[PeerId, Issuer] = {}
        self._places: dict[bytes, tuple[PeerId, int]] = {}
        self._rows: dict[bytes, int] = {}
        """By log: the item of it that the sketch has; 0 where it has none."""
        self._clashing: set[bytes] = set()
        self._changed_logs: set[bytes] = set()
        self._gone: deque[bytes] = deque()
        self._sketch = Sketch()
        self._making_room: list[Dropped] = []
        self._bytes = 0
        self._count = 0
        self._digest: Hash | None = None
        self._listing: bytes | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def total_bytes(self) -> int:
        """Bytes of raw claims held."""
        return self._bytes

    def insert(self, raw: bytes, trusted: bool = False) -> Outcome:
        """Add one encoded claim or checkpoint; raises RemoteError for bytes that are none.

        `trusted` skips the signature: only for bytes that were verified before and kept under a checksum since.
        """
        entry = read_record(raw)
        known = self.foresee(entry)
        if known is not None:
            return known
        return self.insert_opened(expand(entry) if trusted else verify_record(entry))

    def foresee(self, entry: SignedClaim) -> Duplicate | Ignored | None:
        """What becomes of a claim or checkpoint whatever its signature is: checking that costs ten times more than the rest."""
        claim = entry.claim
        issuer = PeerId(claim.issuer)
        state = self._issuers.get(issuer, _NOBODY)
        log = state.logs.get(claim.epoch, _NO_LOG)
        if claim.seq < log.length:
            return Duplicate() if log.hash(claim.seq) == entry.hash else None
        if closed(state, claim.epoch, self._bounds):
            frozen = state.fork is not None and claim.epoch >= state.fork.epoch
            return Ignored("frozen" if frozen else "retired")
        start, previous = beginning(entry)
        fits = start > log.length or (start == log.length and previous == log.tip())  # else it proves a fork, and needs no room
        return Ignored("full") if fits and not self.room.has(issuer, len(entry.raw)) else None

    def continues(self, entry: SignedClaim) -> bool:
        """Whether a record begins where its log ends, as it is held."""
        log = self._log(PeerId(entry.claim.issuer), entry.claim.epoch) or _NO_LOG
        return beginning(entry) == (log.length, log.tip())

    def insert_opened(self, entry: SignedClaim) -> Outcome:
        """Add one claim whose signature was checked, or a checkpoint that was expanded besides."""
        claim = entry.claim
        issuer = PeerId(claim.issuer)
        state = self._issuers.get(issuer, _NOBODY)
        log = state.logs.get(claim.epoch, _NO_LOG)
        start, previous = beginning(entry)
        if start != log.length or previous != log.tip():
            return self.foresee(entry) or self._out_of_place(issuer, log, entry)
        if closed(state, claim.epoch, self._bounds):
            return self.foresee(entry) or Ignored("retired")
        if self._making_room:
            self._making_room = []
        if not self.room.take(issuer, len(entry.raw)):
            return Ignored("full")
        return self._append(issuer, entry)

    def _out_of_place(self, issuer: PeerId, log: Log, entry: SignedClaim) -> Outcome:
        """What does not begin where its log ends: it waits, proves a fork, or brings something new behind what is known."""
        said = stretch(entry)
        start = said[0].claim.seq
        if start > log.length:
            return Gap(issuer, entry.claim.epoch, log.length)
        if start == log.length:  # it denies our last claim
            return self._freeze(fork_of(log.record(start - 1), entry))
        for place, one in enumerate(said[: log.length - start]):
            if log.hash(one.claim.seq) != one.hash:
                return self._freeze(fork_of(log.record(one.claim.seq), compact(said[place:])))
        return self.insert_opened(compact(said[log.length - start :]))

    def insert_proof(self, proof: ForkProof, trusted: bool = False) -> Outcome:
        """Add one fork proof; raises RemoteError for bytes that prove nothing. `trusted` as in `insert`."""
        if self.knows(proof):
            return Duplicate()
        return self.insert_fork(fork_of(read_record(proof.first), read_record(proof.second)) if trusted else open_proof(proof))

    def knows(self, proof: ForkProof) -> bool:
        """Whether `proof` freezes nothing more, be it valid or not; raises RemoteError for bytes that are no claims."""
        claim = read_record(proof.first).claim
        held = self.fork_of(PeerId(claim.issuer))
        return held is not None and held.epoch <= claim.epoch

    def insert_fork(self, fork: Fork) -> Outcome:
        """Freeze the issuer of a proof that was checked."""
        held = self.fork_of(fork.issuer)
        if held is not None and held.epoch <= fork.epoch:
            return Duplicate()
        if held is None and not self.room.take(fork.issuer, 0):
            return Ignored("full")
        return self._freeze(fork)

    def digest(self) -> Hash:
        """The replica's hash: equal for equal sets, whatever order they grew in."""
        if self._digest is None:
            self._digest = replica_digest((issuer, self.issuer_digest(issuer)) for issuer in sorted(self._issuers))
        return self._digest

    def issuers(self) -> tuple[PeerId, ...]:
        """Every issuer that a claim or a fork proof is held of, sorted."""
        return tuple(sorted(self._issuers))

    def issuer_digest(self, issuer: PeerId) -> Hash:
        """The hash of all that is held of one issuer."""
        state = self._issuers.get(issuer)
        if state is None:
            return issuer_digest(IssuerHeads(issuer, ()))
        if state.digest is None:
            state.digest = issuer_digest(self.heads(issuer))
        return state.digest

    def heads(self, issuer: PeerId) -> IssuerHeads:
        """How far each of the issuer's logs goes, by epoch, and from which epoch on it is frozen."""
        state = self._issuers.get(issuer, _NOBODY)
        heads = tuple(state.logs[epoch].head(epoch) for epoch in state.epochs)
        return IssuerHeads(issuer, heads, None if state.fork is None else state.fork.epoch)

    def length(self, issuer: PeerId, epoch: int) -> int:
        """Claims held of one log."""
        log = self._log(issuer, epoch)
        return 0 if log is None else log.length

    def hash_at(self, issuer: PeerId, epoch: int, seq: int) -> Hash | None:
        """The hash of one claim; None where it is not held."""
        log = self._log(issuer, epoch)
        return log.hash(seq) if log is not None and 0 <= seq < log.length else None

    def place(self, log: bytes) -> tuple[PeerId, int] | None:
        """The issuer and epoch of a log id that is known; None for any other."""
        return None if log in self._clashing else self._places.get(log)

    def clashing(self, log: bytes) -> bool:
        """Whether two logs have this id, which someone must have searched for: then it names neither."""
        return log in self._clashing

    def sketch(self) -> Sketch:
        """The rows of all logs and proofs, brought up to date."""
        for log in self._changed_logs:
            before, now = self._rows.get(log, 0), self._item(log)
            if before == now:
                continue
            if before:
                self._sketch.toggle(before)
            if now:
                self._sketch.toggle(now)
                self._rows[log] = now
            else:
                self._rows.pop(log, None)
                self._forget(log)
        self._changed_logs.clear()
        return self._sketch

    def rows(self) -> bytes:
        """Every row, packed, most useful first: proofs, then each issuer's newest log, then each one's next, newer epochs first.

        Made once for all who ask until something changes: 4 us a log.
        """
        if self._listing is None:
            self._listing = b"".join(row.pack() for row in self._in_order())
        return self._listing

    def _in_order(self) -> list[LogRow]:
        order: list[tuple[int, int, LogRow]] = []
        for issuer, state in self._issuers.items():
            if state.fork is not None:
                order.append((-1, 0, fork_row(issuer, state.fork.epoch)))
            for age, epoch in enumerate(reversed(state.epochs)):
                order.append((age, -epoch, log_row(state.logs[epoch].id, state.logs[epoch].head(epoch))))
        order.sort(key=lambda found: found[:2])
        return [row for _, _, row in order if row.id not in self._clashing]

    def wants(self, issuer: PeerId, epoch: int) -> bool:
        """Whether more claims of this log would be kept."""
        state = self._issuers.get(issuer, _NOBODY)
        return not closed(state, epoch, self._bounds) and self.room.has(issuer, USUAL_BYTES)

    def raws(self, issuer: PeerId, epoch: int, start: int, count: int) -> tuple[bytes, ...]:
        """At most `count` encoded claims of one log from `start` on; fewer where one has no signature of its own any more."""
        log = self._log(issuer, epoch)
        return () if log is None else log.plain(start, count)

    def records(
        self, issuer: PeerId, epoch: int, start: int = 0, count: int = MAX_LOG_CLAIMS, folded: bool = False
    ) -> Iterator[tuple[bytes, int]]:
        """At least `count` claims of one log from `start` on, where it has them, as records, and how many claims each holds.

        As they are held; where `folded`, in as few records as may be.
        """
        log = self._log(issuer, epoch)
        return iter(()) if log is None else log.records(start, count, folded)

    def entry(self, issuer: PeerId, epoch: int, seq: int) -> SignedClaim | None:
        """One claim, None where it is not held; its `raw` is empty where only a checkpoint vouches for it."""
        log = self._log(issuer, epoch)
        return log.entry(seq) if log is not None and 0 <= seq < log.length else None

    def claims(self, issuer: PeerId | None = None) -> Iterator[SignedClaim]:
        """Every claim that counts, by issuer, epoch and seq, as `entry` gives it."""
        for name in self.issuers() if issuer is None else (issuer,):
            state = self._issuers.get(name, _NOBODY)
            for epoch in tuple(state.epochs):
                yield from tuple(state.logs[epoch].entries())

    def compact(self, issuer: PeerId, most: int, keep: int = CHECKPOINT_CLAIMS) -> list[Compacted]:
        """Put claims of one issuer together into checkpoints, `most` at most: all of older logs, and of the newest those before
        the last `keep`, once there are twice as many; all where there is no room for one claim more of this issuer: six fit in
        place of one. What is held, and so every hash and score, stays the same.
        """
        state = self._issuers.get(issuer, _NOBODY)
        keep = keep if self.room.has(issuer, USUAL_BYTES) else 0
        changes: list[Compacted] = []
        for epoch in state.epochs:
            log = state.logs[epoch]
            newest = epoch == state.epochs[-1]
            if len(changes) >= most or len(log.raws) <= (2 * keep if newest and keep else 1):
                continue
            before = log.size
            made = log.compact(keep if newest else 0, most - len(changes))
            freed = before - log.size
            self._bytes -= freed
            self.room.release(issuer, freed)
            changes += map(Compacted, made)
        return changes

    def fork_of(self, issuer: PeerId) -> Fork | None:
        """The issuer's fork, None for an honest one."""
        return self._issuers.get(issuer, _NOBODY).fork

    def forks(self) -> tuple[Fork, ...]:
        """Every fork known, by issuer."""
        return tuple(fork for issuer in self.issuers() if (fork := self.fork_of(issuer)) is not None)

    def _log(self, issuer: PeerId, epoch: int) -> Log | None:
        state = self._issuers.get(issuer)
        return None if state is None else state.logs.get(epoch)

    def _append(self, issuer: PeerId, entry: SignedClaim) -> Inserted:
        state = self._issuers.get(issuer)
        if state is None:
            state = self._issuers[issuer] = Issuer()
        epoch = entry.claim.epoch
        log = state.logs.get(epoch)
        if log is None:
            log = state.logs[epoch] = Log(log_id(issuer, epoch))
            insort(state.epochs, epoch)
            self._register(log.id, (issuer, epoch))
        claims = log.append(entry)
        state.claims += claims
        self._bytes += len(entry.raw)
        self._count += claims
        self._changed(state, log.id)
        retired = beyond_quota(state, None, self._bounds)
        dropped: tuple[Dropped, ...] = ()
        if retired or self._making_room:
            dropped = (*self._making_room, *(self._cut(issuer, state, old) for old in retired))
        inserted = Inserted(entry, dropped)
        if self._observe is not None:
            self._observe(inserted)
        return inserted

    def _freeze(self, fork: Fork) -> Forked:
        state = self._issuers.setdefault(fork.issuer, Issuer())
        if state.fork is None:
            self.room.take(fork.issuer, 0)
            self._register(fork_id(fork.issuer), (fork.issuer, FROZEN_PLACE))
        state.fork = fork
        for epoch in [held for held in state.epochs if held >= fork.epoch]:
            self._cut(fork.issuer, state, epoch)
        self._changed(state, fork_id(fork.issuer))
        forked = Forked(fork)
        if self._observe is not None:
            self._observe(forked)
        return forked

    def _shrink(self, issuer: PeerId) -> int:
        """Give borrowed room back: the oldest epoch goes. The bytes freed."""
        state = self._issuers[issuer]
        if not state.epochs:
            return 0
        before = self._bytes
        self._making_room.append(self._cut(issuer, state, state.epochs[0]))
        return before - self._bytes

    def _cut(self, issuer: PeerId, state: Issuer, epoch: int) -> Dropped:
        log = state.logs.pop(epoch)
        state.epochs.remove(epoch)
        size = log.size
        state.claims -= log.length
        self._bytes -= size
        self._count -= log.length
        self.room.release(issuer, size)
        self._changed(state, log.id)
        if log.id not in self._rows:  # nobody was told of it
            self._changed_logs.discard(log.id)
            self._forget(log.id)
        if not state.logs and state.fork is None:
            del self._issuers[issuer]  # as if it had never come, so that digests agree; its place in the room stays its own
        return Dropped(issuer, epoch)

    def _forget(self, log: bytes) -> None:
        """The short name of a log that is gone, later: an answer may be under way that is about it."""
        self._gone.append(log)
        if len(self._gone) <= MAX_GONE:
            return
        log = self._gone.popleft()
        place = self._places.get(log)
        if place is not None and log not in self._rows and log not in self._clashing and self._log(*place) is None:
            del self._places[log]

    def _changed(self, state: Issuer, log: bytes) -> None:
        state.digest = None
        self._digest = self._listing = None
        self._changed_logs.add(log)

    def _register(self, log: bytes, place: tuple[PeerId, int]) -> None:
        if self._places.setdefault(log, place) != place:
            self._clashing.add(log)

    def _item(self, log: bytes) -> int:
        """The row of a log or proof as a number; 0 where nothing is held, and for an id that names two."""
        if log in self._clashing:
            return 0
        issuer, epoch = self._places[log]
        state = self._issuers.get(issuer, _NOBODY)
        if epoch == FROZEN_PLACE:
            row = None if state.fork is None else fork_row(issuer, state.fork.epoch)
        else:
            held = state.logs.get(epoch)
            row = None if held is None else log_row(log, held.head(epoch))
        return 0 if row is None else int.from_bytes(row.pack(), "big")
