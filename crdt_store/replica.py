"""The grow-only set of claims as one peer holds it. Decides what is kept and what is refused; touches no disk and no network.

Two replicas that have exchanged what they hold are equal, whatever order, duplication or loss came before: each rule below
looks at the set of claims alone, never at when or from whom they came.

- A log (one issuer, one epoch) is kept without holes, from seq 0; what comes too early is a gap, and sync asks for it in order.
- A fork drops everything the issuer said from the forked epoch on, and keeps the proof. Dropping the whole epoch, and not only
  what follows the fork, is what makes replicas equal without a search for the lowest place where branches part.
- Of one issuer the newest epochs are kept: an epoch goes once newer ones hold `issuer_claims` claims or are `issuer_epochs` many.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crdt_store.claims import NO_HASH, SignedClaim, open_claim, read_claim
from crdt_store.forks import Fork, ForkProof, fork_of, open_proof
from crdt_store.heads import IssuerHeads, LogHead, issuer_digest, replica_digest
from protocol.wire.ids import Hash, PeerId
from protocol.wire.limits import MAX_CLAIM_BYTES


@dataclass(frozen=True, slots=True)
class Inserted:
    """The claim is new and kept. `retired` names older epochs of its issuer that are kept no longer."""

    entry: SignedClaim
    retired: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Held already."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Claims before this one are missing: ask for `expected` and on."""

    issuer: PeerId
    epoch: int
    expected: int


@dataclass(frozen=True, slots=True)
class Forked:
    """The issuer is frozen from `fork.epoch` on, and its claims from there are dropped."""

    fork: Fork


@dataclass(frozen=True, slots=True)
class Ignored:
    """Valid, and of no use: "frozen" issuer, "retired" epoch, or a "full" replica. Nobody's fault."""

    reason: str


Outcome = Inserted | Duplicate | Gap | Forked | Ignored


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a replica holds at most.

    `issuer_claims` 10,000 is the quota per author; a last epoch may exceed it by its own length. `issuers` is as many as the
    directory knows peers. `total_bytes` of raw claims: 64 MiB is about 160,000 claims of 400 bytes. Only reaching `issuers`
    or `total_bytes` can leave two replicas unequal; both refuse the newcomer and never drop what is held.
    """

    issuer_claims: int = 10_000
    issuer_epochs: int = 1_024
    issuers: int = 4_096
    total_bytes: int = 64 << 20


@dataclass(slots=True)
class _Log:
    """One epoch: the raw claims and their hashes, by seq."""

    raws: list[bytes] = field(default_factory=list)
    hashes: list[Hash] = field(default_factory=list)

    def head(self, epoch: int) -> LogHead:
        return LogHead(epoch, len(self.raws), self.hashes[-1])


@dataclass(slots=True)
class _Issuer:
    logs: dict[int, _Log] = field(default_factory=dict)
    epochs: list[int] = field(default_factory=list)
    """Ascending, as the keys of `logs`."""
    claims: int = 0
    fork: Fork | None = None
    digest: Hash | None = None


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
        self._always_admit = always_admit
        self._issuers: dict[PeerId, _Issuer] = {}
        self._bytes = 0
        self._count = 0
        self._digest: Hash | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def total_bytes(self) -> int:
        """Bytes of raw claims held."""
        return self._bytes

    def insert(self, raw: bytes, trusted: bool = False) -> Outcome:
        """Add one encoded claim; raises RemoteError for bytes that are no valid claim.

        `trusted` skips the signature: only for bytes that were verified before and kept under a checksum since.
        """
        entry = read_claim(raw)
        held = self._held(entry)
        if held is not None and held[1] == entry.hash:
            return Duplicate()  # before the signature, which costs a hundred times more than all the rest
        claim = entry.claim
        issuer = PeerId(claim.issuer)
        state = self._issuers.get(issuer, _Issuer())
        if state.fork is not None and claim.epoch >= state.fork.epoch:
            return Ignored("frozen")
        if not trusted:
            entry = open_claim(raw)
        if held is not None:
            return self._freeze(fork_of(self._entry(held[0]), entry))
        log = state.logs.get(claim.epoch, _Log())
        if claim.seq > len(log.raws):
            return Gap(issuer, claim.epoch, len(log.raws))
        if claim.previous != (log.hashes[-1] if log.hashes else NO_HASH):
            return self._freeze(fork_of(self._entry(log.raws[-1]), entry))
        if claim.epoch in _beyond_quota(state, claim.epoch, self._bounds):
            return Ignored("retired")
        if self._full(issuer, len(raw)):
            return Ignored("full")
        return self._append(issuer, entry)

    def insert_proof(self, proof: ForkProof, trusted: bool = False) -> Outcome:
        """Add one fork proof; raises RemoteError for bytes that prove nothing. `trusted` as in `insert`."""
        fork = fork_of(read_claim(proof.first), read_claim(proof.second)) if trusted else self._open_new_proof(proof)
        held = self.fork_of(fork.issuer)
        if held is not None and held.epoch <= fork.epoch:
            return Duplicate()
        if self._full(fork.issuer, 0):
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
        state = self._issuers.get(issuer, _Issuer())
        if state.digest is None:
            state.digest = issuer_digest(self.heads(issuer))
        return state.digest

    def heads(self, issuer: PeerId) -> IssuerHeads:
        """How far each of the issuer's logs goes, by epoch, and from which epoch on it is frozen."""
        state = self._issuers.get(issuer, _Issuer())
        heads = tuple(state.logs[epoch].head(epoch) for epoch in state.epochs)
        return IssuerHeads(issuer, heads, None if state.fork is None else state.fork.epoch)

    def length(self, issuer: PeerId, epoch: int) -> int:
        """Claims held of one log."""
        log = self._log(issuer, epoch)
        return 0 if log is None else len(log.raws)

    def hash_at(self, issuer: PeerId, epoch: int, seq: int) -> Hash | None:
        """The hash of one claim; None where it is not held."""
        log = self._log(issuer, epoch)
        return log.hashes[seq] if log is not None and 0 <= seq < len(log.hashes) else None

    def wants(self, issuer: PeerId, epoch: int) -> bool:
        """Whether more claims of this log would be kept."""
        state = self._issuers.get(issuer, _Issuer())
        if state.fork is not None and epoch >= state.fork.epoch:
            return False
        return epoch not in _beyond_quota(state, epoch, self._bounds) and not self._full(issuer, MAX_CLAIM_BYTES)

    def raws(self, issuer: PeerId, epoch: int, start: int, count: int) -> tuple[bytes, ...]:
        """At most `count` encoded claims of one log from `start` on."""
        log = self._log(issuer, epoch)
        return () if log is None else tuple(log.raws[start : start + count])

    def claims(self, issuer: PeerId | None = None) -> Iterator[SignedClaim]:
        """Every claim that counts, by issuer, epoch and seq."""
        for name in self.issuers() if issuer is None else (issuer,):
            state = self._issuers.get(name, _Issuer())
            for epoch in tuple(state.epochs):
                yield from (self._entry(raw) for raw in tuple(state.logs[epoch].raws))

    def fork_of(self, issuer: PeerId) -> Fork | None:
        """The issuer's fork, None for an honest one."""
        return self._issuers.get(issuer, _Issuer()).fork

    def forks(self) -> tuple[Fork, ...]:
        """Every fork known, by issuer."""
        return tuple(fork for issuer in self.issuers() if (fork := self.fork_of(issuer)) is not None)

    def _log(self, issuer: PeerId, epoch: int) -> _Log | None:
        state = self._issuers.get(issuer)
        return None if state is None else state.logs.get(epoch)

    def _held(self, entry: SignedClaim) -> tuple[bytes, Hash] | None:
        """What is held in this claim's place: its bytes and hash."""
        log = self._log(PeerId(entry.claim.issuer), entry.claim.epoch)
        if log is None or entry.claim.seq >= len(log.raws):
            return None
        return log.raws[entry.claim.seq], log.hashes[entry.claim.seq]

    @staticmethod
    def _entry(raw: bytes) -> SignedClaim:
        return read_claim(raw)  # held bytes were verified when they came in

    def _open_new_proof(self, proof: ForkProof) -> Fork:
        claim = read_claim(proof.first).claim
        held = self.fork_of(PeerId(claim.issuer))
        if held is not None and held.epoch <= claim.epoch:
            return held  # nothing to learn, so no signature is checked
        return open_proof(proof)

    def _full(self, issuer: PeerId, size: int) -> bool:
        if issuer == self._always_admit:
            return False
        crowded = issuer not in self._issuers and len(self._issuers) >= self._bounds.issuers
        return crowded or self._bytes + size > self._bounds.total_bytes

    def _append(self, issuer: PeerId, entry: SignedClaim) -> Inserted:
        state = self._issuers.setdefault(issuer, _Issuer())
        epoch = entry.claim.epoch
        if epoch not in state.logs:
            state.logs[epoch] = _Log()
            insort(state.epochs, epoch)
        log = state.logs[epoch]
        log.raws.append(entry.raw)
        log.hashes.append(entry.hash)
        state.claims += 1
        self._bytes += len(entry.raw)
        self._count += 1
        retired = _beyond_quota(state, None, self._bounds)
        for old in retired:
            self._drop(state, old)
        self._changed(state)
        inserted = Inserted(entry, retired)
        if self._observe is not None:
            self._observe(inserted)
        return inserted

    def _freeze(self, fork: Fork) -> Forked:
        state = self._issuers.setdefault(fork.issuer, _Issuer())
        state.fork = fork
        for epoch in [held for held in state.epochs if held >= fork.epoch]:
            self._drop(state, epoch)
        self._changed(state)
        forked = Forked(fork)
        if self._observe is not None:
            self._observe(forked)
        return forked

    def _drop(self, state: _Issuer, epoch: int) -> None:
        log = state.logs.pop(epoch)
        state.epochs.remove(epoch)
        state.claims -= len(log.raws)
        self._bytes -= sum(map(len, log.raws))
        self._count -= len(log.raws)

    def _changed(self, state: _Issuer) -> None:
        state.digest = None
        self._digest = None


def _beyond_quota(state: _Issuer, wanted: int | None, bounds: Bounds) -> tuple[int, ...]:
    """The epochs, of those held and `wanted`, that are older than a full quota of newer ones."""
    if state.claims < bounds.issuer_claims and len(state.epochs) < bounds.issuer_epochs:
        return ()
    epochs = state.epochs if wanted is None or wanted in state.logs else sorted([*state.epochs, wanted])
    claims = 0
    beyond: list[int] = []
    for newer, epoch in enumerate(reversed(epochs)):
        if claims >= bounds.issuer_claims or newer >= bounds.issuer_epochs:
            beyond.append(epoch)
        log = state.logs.get(epoch)
        claims += 0 if log is None else len(log.raws)
    return tuple(beyond)
