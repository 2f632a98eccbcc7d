"""Fifty peers that write, fork, lose messages, part, restart and meet again, under a virtual clock; one seed is one history.

    python -m tests.sim.claim_network [--seeds 1000] [--jobs 2]       SEED=7 python -m tests.sim.claim_network

Every third peer compacts what it holds, all the time, every second one asks for checkpoints where it lacks eight claims, and two
of four take two claims that follow each other under the second one's signature.
Stores, sync machine, messages and signatures are the real ones; each distinct signature is checked once for all fifty, and
gossip and calls are modelled: a call is lost with a chance of 5%; a gossiped message is a heartbeat late with one of 20%, and
lost with one of 4%.
"""

import argparse
import heapq
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.checkpoints import compact, verify_records
from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim, sign_claim
from crdt_store.memory import MemoryStorage
from crdt_store.own_log import OwnLogFrozen, Statement
from crdt_store.runs import RUN_CLAIMS
from crdt_store.store import ClaimStore
from crdt_store.sync import SYNC_EVERY, Sync
from crdt_store.sync_events import (
    Announced,
    AskHeads,
    AskRange,
    Begin,
    CallFailed,
    ChunkArrived,
    Effect,
    Event,
    HeadsArrived,
    RangeEnded,
    Verify,
    check,
)
from crdt_store.sync_messages import Announcement, announce, serve_heads, serve_range, take_proofs
from crdt_store.sync_plan import BULK_CLAIMS
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, peer_id_of

PEERS = 50
FORKERS = 2
LOSS = 0.2
CALL_LOSS = 0.05
HEARTBEAT = 1.0
QUIET_AT = 40.0
"""Nobody writes or leaves any more; equality must follow."""
END = 400.0
FORK_SECONDS = 10.0
BULK = 8, BULK_CLAIMS
"""Claims that even and odd peers ask for in checkpoints when they lack so many."""
RUN = 2, RUN_CLAIMS
"""Claims in a row that two of four peers, and the other two, take in under the last one's signature."""

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, PEERS + 1)]
NAMES = [peer_id_of(public_bytes(key)) for key in KEYS]
NUMBER = {name: number for number, name in enumerate(NAMES)}
_checked: dict[bytes, SignedClaim | RemoteError] = {}


def checked(entry: SignedClaim) -> SignedClaim:
    """A real check, made once for all peers."""
    if entry.raw not in _checked:
        _checked[entry.raw] = verify_records([entry])[0]
    found = _checked[entry.raw]
    if isinstance(found, RemoteError):
        raise found
    return found


@dataclass
class Outcome:
    """What one seed came to: when all honest peers were equal, and how long proofs took to be everywhere after the halves met."""

    seed: int
    equal_at: float | None
    fork_seconds: float | None
    claims: int
    faults: int

    @property
    def good(self) -> bool:
        proved = self.fork_seconds is not None and self.fork_seconds <= FORK_SECONDS
        return proved and self.equal_at is not None and not self.faults


class Network:
    """The peers, the clock and what is under way."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 0.0
        self.faults = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._storages = [MemoryStorage() for _ in KEYS]
        self.stores = [self._open(number) for number in range(PEERS)]
        self.syncs = [self._sync(number) for number in range(PEERS)]
        self.life = [0] * PEERS
        self.online = [True] * PEERS
        self.side = [0] * PEERS
        self.forkers = self.rng.sample(range(PEERS), FORKERS)
        self.honest = [number for number in range(PEERS) if number not in self.forkers]

    def _open(self, number: int) -> ClaimStore:
        return ClaimStore(self._storages[number], KEYS[number], 1_700_000_000_000 + int(self.now * 1000))

    def _sync(self, number: int) -> Sync:
        return Sync(self.stores[number], BULK[number % 2], RUN[number % 4 // 2])

    def at(self, delay: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), work))

    def run(self, until: Callable[[], bool]) -> None:
        while self._queue and self.now < END:
            self.now, _, work = heapq.heappop(self._queue)
            work()
            if until():
                return

    def reachable(self, a: int, b: int) -> bool:
        return a != b and self.online[a] and self.online[b] and self.side[a] == self.side[b]

    def give(self, number: int, event: Event) -> None:
        """One event for one peer's machine, and what it wants done."""
        effects = self.syncs[number].handle(event, self.now)
        learned = self.stores[number].take_new_forks()
        waiting = deque(fork.proof for fork in learned if not isinstance(event, Announced))
        while waiting:
            self.gossip(number, announce(self.stores[number].replica, NAMES[number], take_proofs(waiting)))
        for effect in effects:
            self._carry_out(number, effect)

    def _carry_out(self, number: int, effect: Effect) -> None:
        match effect:
            case AskHeads(peer, _) | AskRange(peer, _):
                life = self.life[number]
                delay = self.rng.uniform(0.02, 0.2)
                self.at(delay, lambda: self._answer(number, life, NUMBER[peer], effect, delay))
            case Verify():
                self.give(number, check(effect, checked))
        self.faults += type(effect).__name__ == "Fault"

    def _answer(self, number: int, life: int, server: int, effect: Effect, delay: float) -> None:
        assert isinstance(effect, AskHeads | AskRange)
        lost = self.rng.random() < CALL_LOSS or not self.reachable(number, server)
        if lost:
            self.at(20.0 - delay, lambda: self._arrive(number, life, [CallFailed(effect.peer)]))
            return
        replica = self.stores[server].replica
        events: list[Event] = []
        if isinstance(effect, AskHeads):
            events.append(HeadsArrived(effect.peer, serve_heads(replica, effect.request)))
        else:
            events += [ChunkArrived(effect.peer, chunk) for chunk in serve_range(replica, effect.request)]
            events.append(RangeEnded(effect.peer))
        self.at(delay, lambda: self._arrive(number, life, events))

    def _arrive(self, number: int, life: int, events: list[Event]) -> None:
        if self.life[number] == life and self.online[number]:
            for event in events:
                self.give(number, event)

    def gossip(self, author: int, message: Announcement) -> None:
        for number in range(PEERS):
            if self.reachable(author, number):
                delay = self.rng.uniform(0.02, 0.4)
                while self.rng.random() < LOSS and delay < 2 * HEARTBEAT:
                    delay += HEARTBEAT
                if delay < 2 * HEARTBEAT:
                    self.at(delay, lambda n=number: self._hear(n, author, message))  # type: ignore[misc]

    def _hear(self, number: int, author: int, message: Announcement) -> None:
        if self.reachable(author, number):
            self.give(number, Announced(NAMES[author], message))

    def write(self, number: int) -> None:
        store = self.stores[number]
        try:
            for _ in range(self.rng.randint(1, 3)):
                subject = NAMES[self.rng.randrange(PEERS)]
                store.record(Statement(subject, Kind.CALL_SERVED), 1_700_000_000_000 + int(self.now * 1000))
        except OwnLogFrozen:
            return
        self.gossip(number, announce(store.replica, NAMES[number]))

    def restart(self, number: int) -> None:
        self.life[number] += 1
        self.online[number] = False

        def back() -> None:
            self.stores[number].save()
            self.stores[number] = self._open(number)
            self.syncs[number] = self._sync(number)
            self.online[number] = True
            self.meet(number)

        self.at(self.rng.uniform(1, 8), back)

    def meet(self, number: int) -> None:
        """A peer that meets others compares with each, as the daemon does."""
        others = [other for other in range(PEERS) if self.reachable(number, other)]
        for other in self.rng.sample(others, min(4, len(others))):
            self.give(number, Begin(NAMES[other]))

    def periodic(self, number: int) -> None:
        others = [other for other in range(PEERS) if self.reachable(number, other)]
        if others:
            self.give(number, Begin(NAMES[self.rng.choice(others)]))
        self.at(SYNC_EVERY * self.rng.uniform(0.8, 1.2), lambda: self.periodic(number))

    def compact(self, number: int) -> None:
        store = self.stores[number]
        for issuer in store.replica.issuers():
            store.compact(issuer, 4, keep=0)
        store.save()
        self.at(3 * self.rng.uniform(0.8, 1.2), lambda: self.compact(number))

    def fork(self, forker: int) -> None:
        """Two histories of one epoch, one shown to each half: in claims one by one to the first, in a checkpoint to the other."""
        epoch = self.stores[forker].epoch + 1
        for side in (0, 1):
            witness = self.rng.choice([n for n in self.honest if self.side[n] == side and self.online[n]])
            history: list[SignedClaim] = []
            for seq in range(3):
                previous = history[-1].hash if history else NO_HASH
                place = (NAMES[forker], epoch, seq, previous, NAMES[witness], Kind.CALL_SERVED, "", side, NO_HASH, 0)
                history.append(sign_claim(Claim(*place), KEYS[forker]))
            self.stores[witness].insert_many([compact(history).raw] if side else [entry.raw for entry in history])
            self.gossip(witness, announce(self.stores[witness].replica, NAMES[forker]))


def play(seed: int) -> Outcome:  # noqa: C901 - one history, told from top to bottom
    """One seed from its beginning to equality, or to the end."""
    net = Network(seed)
    rng = net.rng
    split_at, heal_at = rng.uniform(4, 8), rng.uniform(20, 30)
    for number in range(PEERS):
        net.at(rng.uniform(0, SYNC_EVERY), lambda n=number: net.periodic(n))  # type: ignore[misc]
        if number % 3 == 0:
            net.at(rng.uniform(0, SYNC_EVERY), lambda n=number: net.compact(n))  # type: ignore[misc]
        for _ in range(rng.randint(1, 2)):
            net.at(rng.uniform(0, QUIET_AT), lambda n=number: net.write(n))  # type: ignore[misc]
    for number in rng.sample(net.honest, 6):
        net.at(rng.uniform(1, split_at + 6), lambda n=number: net.restart(n))  # type: ignore[misc]

    def split() -> None:
        for number in rng.sample(range(PEERS), PEERS // 2):
            net.side[number] = 1

    def heal() -> None:
        net.side = [0] * PEERS
        for number in range(PEERS):
            net.meet(number)

    net.at(split_at, split)
    for forker in net.forkers:
        net.at(rng.uniform(split_at + 0.1, heal_at - 2), lambda f=forker: net.fork(f))  # type: ignore[misc]
    net.at(heal_at, heal)
    everywhere: list[float] = []
    equal: list[float] = []
    looked = [0.0]

    def done() -> bool:
        if net.now < heal_at or net.now - looked[0] < 0.25:
            return False
        looked[0] = net.now
        if not everywhere:
            missing = [n for n in net.honest for f in net.forkers if net.stores[n].replica.fork_of(NAMES[f]) is None]
            if not missing:
                everywhere.append(net.now - heal_at)
        if net.now < QUIET_AT:
            return False
        digest = net.stores[net.honest[0]].replica.digest()
        if everywhere and all(net.stores[n].replica.digest() == digest for n in net.honest):
            equal.append(net.now)
        return bool(equal)

    net.run(done)
    honest_forked = [f for n in net.honest for f in net.stores[n].replica.forks() if NUMBER[PeerId(f.issuer)] not in net.forkers]
    claims = len(net.stores[net.honest[0]].replica)
    _checked.clear()
    blamed = net.faults + len(honest_forked)
    return Outcome(seed, equal[0] if equal else None, everywhere[0] if everywhere else None, claims, blamed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if "SEED" in os.environ:
        outcome = play(int(os.environ["SEED"]))
        print(outcome)
        return 0 if outcome.good else 1
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for outcome in pool.map(play, range(arguments.first, arguments.first + arguments.seeds), chunksize=4):
            outcomes.append(outcome)
            if not outcome.good:
                print(f"SEED={outcome.seed} make sim-claims   # {outcome}", flush=True)
            if len(outcomes) % 100 == 0:
                print(summary(outcomes, time.monotonic() - begun), flush=True)
    print(summary(outcomes, time.monotonic() - begun))
    return 0 if all(outcome.good for outcome in outcomes) else 1


def summary(outcomes: list[Outcome], seconds: float) -> str:
    equal = sum(outcome.equal_at is not None for outcome in outcomes)
    blamed = sum(outcome.faults for outcome in outcomes)
    forks = sorted(outcome.fork_seconds if outcome.fork_seconds is not None else END for outcome in outcomes)
    return (
        f"{len(outcomes)} seeds in {seconds:.0f} s: equal state on all {PEERS - FORKERS} honest peers in {equal} "
        f"({100 * equal / len(outcomes):.1f}%); fork proof everywhere after {forks[len(forks) // 2]:.1f} s median, "
        f"{forks[-1]:.1f} s at most (target {FORK_SECONDS:.0f}); honest peers blamed: {blamed}"
    )


if __name__ == "__main__":
    sys.exit(main())
