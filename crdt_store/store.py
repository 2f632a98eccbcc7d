"""A replica that survives the process, and our own log in it. Decides what is durable when; storage decides how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.claims import SignedClaim, sign_claim
from crdt_store.forks import ForkProof
from crdt_store.own_log import OwnLog, OwnLogFrozen, Statement
from crdt_store.replica import Bounds, Forked, Inserted, Outcome, Replica
from crdt_store.scores import Scores
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import LocalError, RemoteError, SwarmdError
from protocol.wire.ids import PeerId, peer_id_of


class StorageError(SwarmdError):
    """The disk or the file on it cannot do it. The message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a storage held at open: raw claims by issuer, epoch and seq; `damaged` counts rows that were dropped as unreadable."""

    claims: Sequence[bytes]
    proofs: Sequence[ForkProof]
    damaged: int = 0


Change = Inserted | Forked
"""What a storage keeps of an outcome: a new claim, and what it retires; or a fork, and what it drops."""


class Storage(Protocol):
    """Where claims stay. Two implementations: SQLite and memory. Every method raises StorageError and leaves the rest intact."""

    def open_epoch(self, issuer: PeerId, above: int, now_ms: int) -> int:
        """A new epoch for our own log, above `above` and every earlier one; durable on return."""

    def load(self) -> Stored: ...

    def append_own(self, entry: SignedClaim) -> None:
        """Keep a claim of our own; on return it survives a power loss. Claims kept so are never dropped."""

    def add_foreign(self, changes: Sequence[Change]) -> None:
        """Keep changes that others can give again, all or none; a power loss may take the latest."""

    def close(self) -> None: ...


class ClaimStore:
    """The replica on disk and our own log. Use it from one thread at a time; a `record` waits for one fsync (about 2 ms)."""

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
        if self.replica.fork_of(self.me) is not None:
            raise OwnLogFrozen("this key has signed two histories of one epoch: it needs a new identity")
        if self._own.closed:
            self._own.reopen(self._storage.open_epoch(self.me, max(self._own.epoch, self._own.highest_seen), now_ms))
        entry = sign_claim(self._own.place(statement, now_ms), self._key)
        try:
            self._storage.append_own(entry)
        except StorageError:
            self._own.closed = True  # the failed write may yet turn up on disk: nothing else may take its place
            raise
        self._own.advance(entry)
        outcome = self.replica.insert(entry.raw)
        if not isinstance(outcome, Inserted):
            raise LocalError(f"our own replica did not take our own claim: {outcome}")
        return entry

    def insert_many(self, raws: Sequence[bytes]) -> list[Outcome | RemoteError]:
        """Add claims from a peer, in order; one outcome each. What is new is written in one transaction."""
        outcomes: list[Outcome | RemoteError] = []
        for raw in raws:
            try:
                outcomes.append(self.replica.insert(raw))
            except RemoteError as error:
                outcomes.append(error)
        self._keep(outcomes)
        return outcomes

    def insert_proof(self, proof: ForkProof) -> Outcome:
        """Add a fork proof from a peer; raises RemoteError for bytes that prove nothing."""
        outcome = self.replica.insert_proof(proof)
        self._keep([outcome])
        return outcome

    def close(self) -> None:
        """Write what is still unsaved and release the storage."""
        self._keep([])
        self._storage.close()

    def _keep(self, outcomes: Sequence[Outcome | RemoteError]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Inserted):
                self._unsaved.append(outcome)
                if outcome.entry.claim.issuer == self.me:
                    self._own.saw(outcome.entry.claim.epoch)
            elif isinstance(outcome, Forked):
                self._unsaved.append(outcome)
        if not self._unsaved:
            return
        try:
            self._storage.add_foreign(self._unsaved)
        except StorageError as error:
            self.storage_error = str(error)
            return
        self._unsaved.clear()
        self.storage_error = None

    def _load(self) -> int:
        stored = self._storage.load()
        damaged = stored.damaged
        for proof in stored.proofs:
            try:
                self.replica.insert_proof(proof, trusted=True)
            except RemoteError:
                damaged += 1
        for raw in stored.claims:
            try:
                self.replica.insert(raw, trusted=True)
            except RemoteError:
                damaged += 1
        return damaged
