"""Our observations become signed claims, written aside and in groups; and what all claims say."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import structlog
import trio

from crdt_store.claims import Kind
from crdt_store.forks import Fork, proof_hash
from crdt_store.own_log import OwnLogFrozen, Statement
from crdt_store.scores import Score, Tally
from crdt_store.store import ClaimStore, StorageError
from daemon.calls import Calls
from daemon.claim_sync import Aside, ClaimSync, in_thread
from daemon.reputation_view import everybody, one_peer
from daemon.transport.interface import Transport
from protocol.wire.ids import PeerId

log = structlog.get_logger("swarmd.reputation")

MAX_WAITING = 10_000
"""Observations that wait for the disk."""

FORKS_AN_HOUR = 10
"""Claims of forks that we proved: who makes keys by the thousand to fork them shall not fill our quota. Proofs have no limit."""

MAX_TOGETHER = 64
"""Claims in one transaction: signing them holds the loop for 5 ms."""


class Reputation:
    """Our claims and everybody else's: writes ours, shows all. `aside` as in `claim_sync`."""

    def __init__(
        self,
        store: ClaimStore,
        calls: Calls,
        transport: Transport,
        unix_ms: Callable[[], int],
        rng: Random,
        aside: "Aside[Any]" = in_thread,
    ) -> None:
        self._store = store
        self._unix_ms = unix_ms
        self._aside = aside
        self.sync = ClaimSync(store, calls, transport, rng, aside)
        self.sync.proved = self._say_forked
        self._accused: deque[tuple[float, PeerId]] = deque(maxlen=FORKS_AN_HOUR)
        self._waiting: deque[Statement] = deque()
        self._given = trio.Event()

    @property
    def faults(self) -> "Counter[str]":
        """What peers did against the claim protocol, by code."""
        return self.sync.faults

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Write, serve and pull until cancelled; what was recorded by then is written still."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.sync.run)
                nursery.start_soon(self._write)
                task_status.started()
        finally:
            while self._waiting and self._write_some_now():
                pass

    def begin(self, peer: PeerId) -> None:
        """Compare with `peer` now, as after meeting it."""
        self.sync.begin(peer)

    def record(self, statements: Sequence[Statement]) -> None:
        """Turn observations into claims of our own, soon and aside; they are durable before they are announced."""
        room = MAX_WAITING - len(self._waiting)
        if room < len(statements):
            log.error("claims are lost: the disk does not keep up", lost=len(statements) - room)
        self._waiting.extend(statements[:room])
        self._given.set()

    def _say_forked(self, fork: Fork) -> None:
        """Claim what we proved ourselves. The proof is what freezes; the claim says who found it, and `why` shows it."""
        now = trio.current_time()
        known = any(issuer == fork.issuer for _, issuer in self._accused)
        full = len(self._accused) == FORKS_AN_HOUR and now - self._accused[0][0] < 3600
        if not known and not full and fork.issuer != self._store.me:
            self._accused.append((now, fork.issuer))
            self.record([Statement(fork.issuer, Kind.FORK_PROVED, evidence=proof_hash(fork.proof))])

    async def _write(self) -> None:
        """One transaction, and one wait for the disk, for all that gathered. A full disk costs claims, not the daemon."""
        while True:
            await self._given.wait()
            self._given = trio.Event()
            while self._waiting:
                async with self.sync.storing:
                    await self._write_some()
            self.sync.announce()

    async def _write_some(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_TOGETHER))]
        try:
            entries = self._store.draft(batch, self._unix_ms())
            self._waiting.extendleft(reversed(batch[len(entries) :]))
            with trio.CancelScope(shield=True):  # what may be on disk must be in the log, too
                await self._aside(lambda: self._store.write_own(entries))
            self._store.commit(entries)
        except (StorageError, OwnLogFrozen) as error:
            log.error("claims could not be written", reason=str(error), lost=len(batch))

    def _write_some_now(self) -> bool:
        try:
            self._store.record(self._waiting.popleft(), self._unix_ms())
        except (StorageError, OwnLogFrozen) as error:
            log.error("claims could not be written", reason=str(error), lost=len(self._waiting) + 1)
            return False
        return True

    def score(self, peer: PeerId, skill: str) -> Score:
        """What to expect of `peer` in `skill` now: from memory, in microseconds."""
        return self._store.scores.score(peer, skill, self._unix_ms())

    def tally(self, peer: PeerId, skill: str) -> Tally:
        """The weighed evidence of what `peer` did right and wrong in `skill`, as of now."""
        return self._store.scores.tally(peer, skill, self._unix_ms())

    def view(self, peer: str | None) -> dict[str, Any]:
        """The JSON of GET /swarmd/v1/reputation: all scores and the newest claims, or one peer's with its evidence."""
        replica, scores = self._store.replica, self._store.scores
        view = {
            "replica_hash": replica.digest().hex(),
            "claims": len(replica),
            "issuers": len(replica.issuers()),
            "forks": [{"issuer": fork.issuer, "epoch": fork.epoch} for fork in replica.forks()],
            "storage_error": self._store.storage_error,
        }
        now = self._unix_ms()
        return view | (everybody(replica, scores, now) if peer is None else one_peer(replica, scores, PeerId(peer), now))
