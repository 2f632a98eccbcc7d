"""A replica that survives the process, and our own log in it. Decides what is durable when; storage decides how."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.checkpoints import CHECKPOINT_CLAIMS, expand, read_record, stretch
from crdt_store.claims import Kind, SignedClaim, sign_claim
from crdt_store.forks import Fork, ForkProof
from crdt_store.outcomes import Compacted, Forked, Inserted, Outcome
from crdt_store.own_log import OwnLog, OwnLogFrozen, Statement
from crdt_store.replica import Replica
from crdt_store.room import Bounds
from crdt_store.scores import Scores
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import LocalError, RemoteError, SwarmdError
from protocol.wire.ids import PeerId, peer_id_of


class StorageError(SwarmdError):
    """The disk or the file on it cannot do it. The message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a storage held at open: raw claims and checkpoints by issuer, epoch and seq; `damaged` counts unreadable rows."""

    claims: Sequence[bytes]
    proofs: Sequence[ForkProof]
    damaged: int = 0


Change = Inserted | Compacted | Forked
"""What a storage keeps: a new record, and what it retires; a checkpoint in place of claims; or a fork, and what it drops.
A record has the place of its last claim."""


class Storage(Protocol):
    """Where claims stay. Two implementations: SQLite and memory. Every method raises StorageError and leaves the rest intact."""

    def open_epoch(self, issuer: PeerId, above: int, now_ms: int) -> int:
        """A new epoch for our own log, above `above` and every earlier one; durable on return."""

    def load(self) -> Stored: ...

    def append_own(self, entries: Sequence[SignedClaim]) -> None:
        """Keep claims of our own, all or none; on return they survive a power loss. Claims kept so are never dropped."""

    def add_foreign(self, changes: Sequence[Change]) -> None:
        """Keep changes that others can give again, all or none; a power loss may take the latest."""

    def close(self) -> None: ...


VOUCHING = frozenset(
    {
        Kind.CALL_SERVED,
        Kind.CALLS_SERVED,
        Kind.ROUND_WON,
        Kind.ROUND_TOOK_PART,
        Kind.PROBE_PASSED,
        Kind.OUTPUT_VERIFIED,
        Kind.MEMBER_ADMITTED,
    }
)
"""Kinds of our own claims that take their subject out of the crowd of strangers (`room`): it did something for us."""

MAX_UNSAVED = 20_000
"""Changes that wait for a disk which fails. Beyond that the latest, and what comes later of their logs, are kept in memory alone,
and peers give them again after the next start; fork proofs always wait."""


class ClaimStore:
    """The replica on disk and our own log. Everything but `save` and `write_own` belongs to one thread.

    Those two touch the storage alone and may run in another thread, one at a time; a `record` waits for one fsync (about 2 ms).
    """

    def __init__(self, storage: Storage, key: Ed25519PrivateKey, now_ms: int, bounds: Bounds | None = None) -> None:
        """Load what `storage` holds and open a new epoch at `now_ms` (unix milliseconds); raises StorageError."""
        self.me = peer_id_of(public_bytes(key))
        self.scores = Scores(self.me)
        """What the claims held, ours first, say of each peer."""
        self.replica = Replica(bounds, always_admit=self.me, observe=self.scores.observe)
        self.storage_error: str | None = None
        """Why the latest copies of others' claims are not on disk yet; they are tried again with the next ones."""
        self._storage = storage
        self._key = key
        self._unsaved: list[Change] = []
        self._delayed: list[Change] = []
        """Those that found no disk before."""
        self._new_forks: list[Fork] = []
        self._proved_forks: list[Fork] = []
        self._lost: set[tuple[str, int]] = set()
        """Logs of which a change was given up (MAX_UNSAVED): what follows it on disk would follow nothing."""
        self.damaged = self._load()
        """Claims and proofs that were on disk and could not be read; peers give them again."""
        self._own = OwnLog(self.me, storage.open_epoch(self.me, 0, now_ms))

    @property
    def epoch(self) -> int:
        """The epoch of our own log: higher at every start, and whenever a log was filled or given up."""
        return self._own.epoch

    def record(self, statement: Statement, now_ms: int) -> SignedClaim:
        """Sign `statement` into our own log; on return it is durable, so it may be sent.

        Raises StorageError (nothing was issued; a later call tries a new epoch) or OwnLogFrozen.
        """
        entry = self.draft([statement], now_ms)[0]
        self.write_own([entry])
        self.commit([entry])
        return entry

    def draft(self, statements: Sequence[Statement], now_ms: int) -> list[SignedClaim]:
        """Sign at least the first of `statements` and as many as the open log takes; next come `write_own`, then `commit`.

        Nothing may be drafted in between. Raises StorageError or OwnLogFrozen.
        """
        if self.replica.fork_of(self.me) is not None:
            raise OwnLogFrozen("this key has signed two histories of one epoch: it needs a new identity")
        if self._own.closed:
            self._own.reopen(self._storage.open_epoch(self.me, max(self._own.epoch, self._own.highest_seen), now_ms))
        ahead = replace(self._own)
        entries: list[SignedClaim] = []
        for statement in statements:
            if not ahead.closed:
                entries.append(sign_claim(ahead.place(statement, now_ms), self._key))
                ahead.advance(entries[-1])
        return entries

    def write_own(self, entries: Sequence[SignedClaim]) -> None:
        """Make drafted claims durable, all or none; raises StorageError, after which none of them may ever be sent."""
        try:
            self._storage.append_own(entries)
        except StorageError:
            self._own.closed = True  # the failed write may yet turn up on disk: nothing else may take its place
            raise

    def commit(self, entries: Sequence[SignedClaim]) -> None:
        """Drafted claims are durable: they are now the tail of our log, and part of the replica."""
        for entry in entries:
            if not self._own.closed:
                self._own.advance(entry)
            self._vouch_for(entry)
            outcome = self.replica.insert_opened(entry)
            if not isinstance(outcome, Inserted) and self.replica.fork_of(self.me) is None:
                raise LocalError(f"our own replica did not take our own claim: {outcome}")
            self._note(outcome, ours=True)

    def insert_many(self, raws: Sequence[bytes]) -> list[Outcome | RemoteError]:
        """Add claims from a peer, in order, and save them; one outcome each."""
        outcomes: list[Outcome | RemoteError] = []
        for raw in raws:
            try:
                outcomes.append(self._found(self.replica.insert(raw)))
            except RemoteError as error:
                outcomes.append(error)
        self.save()
        return outcomes

    def insert_opened(self, opened: Sequence[SignedClaim]) -> list[Outcome]:
        """Add claims whose signatures were checked, in order; one outcome each. `save` writes them."""
        outcomes = [self._found(self.replica.insert_opened(entry)) for entry in opened]
        self.scores.witnesses.settle()  # 3 us a claim, which would wait for a reader, and make the collector look at all of them
        return outcomes

    def insert_proof(self, proof: ForkProof) -> Outcome:
        """Add a fork proof from a peer and save it; raises RemoteError for bytes that prove nothing."""
        outcome = self._note(self.replica.insert_proof(proof))
        self.save()
        return outcome

    def insert_fork(self, fork: Fork) -> Outcome:
        """Add a fork whose proof was checked. `save` writes it."""
        return self._note(self.replica.insert_fork(fork))

    @property
    def unsaved(self) -> int:
        """Changes that `save` would write."""
        return len(self._delayed) + len(self._unsaved)

    def save(self) -> None:
        """Write what others gave us since the last time, in one transaction; a failing disk is told in `storage_error`."""
        if not self.unsaved:
            return
        new, self._unsaved = self._unsaved, []
        if self._lost:
            new = [change for change in new if _log_of(change) not in self._lost]
        self._delayed += new
        try:
            self._storage.add_foreign(self._delayed)
        except StorageError as error:
            self.storage_error = str(error)
            beyond = self._delayed[MAX_UNSAVED:]
            self._lost.update(log for change in beyond if (log := _log_of(change)) is not None)
            self._delayed[MAX_UNSAVED:] = [change for change in beyond if isinstance(change, Forked)]
            return
        self._delayed = []
        self.storage_error = None

    def compact(self, issuer: PeerId, most: int, keep: int = CHECKPOINT_CLAIMS) -> int:
        """Put older claims of `issuer` together as `Replica.compact` does, 1 ms a checkpoint; how many. `save` writes them.

        Our own claims keep their signatures, so that nothing ever rewrites our own log on disk.
        """
        made = [] if issuer == self.me else self.replica.compact(issuer, most, keep)
        self._unsaved += made
        return len(made)

    def close(self) -> None:
        """Write what is still unsaved and release the storage."""
        self.save()
        self._storage.close()

    def _note(self, outcome: Outcome, ours: bool = False) -> Outcome:
        if isinstance(outcome, Inserted) and not ours:
            if outcome.entry.claim.issuer == self.me:
                self._own.saw(outcome.entry.claim.epoch)
                for entry in stretch(outcome.entry):
                    self._vouch_for(entry)
            self._unsaved.append(outcome)
        elif isinstance(outcome, Forked):
            self._unsaved.append(outcome)
            self._new_forks.append(outcome.fork)
        return outcome

    def _found(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Forked):
            self._proved_forks.append(outcome.fork)
        return self._note(outcome)

    def take_proved_forks(self) -> list[Fork]:
        """Forks that two claims given here proved since the last call, where no proof was given: they are our own observation."""
        taken, self._proved_forks = self._proved_forks, []
        return taken

    def take_new_forks(self) -> list[Fork]:
        """Forks that were proved here since the last call: everybody should hear of them."""
        taken, self._new_forks = self._new_forks, []
        return taken

    def _vouch_for(self, entry: SignedClaim) -> None:
        if entry.claim.kind in VOUCHING:
            self.replica.room.vouch([PeerId(entry.claim.subject)])

    def _load(self) -> int:
        """Our own claims are looked at first: they say for whom there is room."""
        stored = self._storage.load()
        damaged = stored.damaged
        me = self.me.encode()
        for raw in stored.claims:
            if me in raw:  # of us, or about us; a hundred times quicker than to decode all of them twice
                with suppress(RemoteError):  # counted below
                    self._vouch_if_ours(read_record(raw))
        for proof in stored.proofs:
            try:
                self.replica.insert_proof(proof, trusted=True)
            except RemoteError:
                damaged += 1
        for raw in stored.claims:
            try:
                self.replica.insert_opened(expand(read_record(raw)))
            except RemoteError:
                damaged += 1
        self.scores.witnesses.settle()  # a quarter of a second for 100,000 claims, which no reader shall wait for
        return damaged

    def _vouch_if_ours(self, read: SignedClaim) -> None:
        if read.claim.issuer == self.me:
            for entry in stretch(expand(read)):
                self._vouch_for(entry)


def _log_of(change: Change) -> tuple[str, int] | None:
    """The log that a change is of; None for a fork, which is of an issuer."""
    return None if isinstance(change, Forked) else (change.entry.claim.issuer, change.entry.claim.epoch)
