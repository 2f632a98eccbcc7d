"""The laws of the claim set: merge commutes, associates and repeats without effect; order, loss and duplication do not matter.

Authors are honest and not: the pool holds several epochs, forked logs, bad signatures and garbage; and checkpoints of all of
these, also of claims that were never signed one by one. Replicas compact what they hold at any moment, or never.
"""

from collections.abc import Iterable
from itertools import pairwise, permutations
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crdt_store.checkpoints import compact
from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim, sign_claim
from crdt_store.forks import contradict
from crdt_store.memory import MemoryStorage
from crdt_store.own_log import OwnLogFrozen, Statement
from crdt_store.replica import Replica
from crdt_store.room import Bounds
from crdt_store.store import ClaimStore
from crdt_store.sync import Sync
from crdt_store.sync_events import (
    AskHeads,
    AskRange,
    Begin,
    CallFailed,
    ChunkArrived,
    Effect,
    HeadsArrived,
    RangeEnded,
    Verify,
    check,
)
from crdt_store.sync_messages import AS_HELD, RangeChunk, RangeRequest, serve_heads, serve_range
from crdt_store.sync_plan import BULK_CLAIMS
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, peer_id_of

pytestmark = pytest.mark.slow

LAW = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

REPLICAS = 5
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, REPLICAS + 1)]
NAMES = [peer_id_of(public_bytes(key)) for key in KEYS]
BULK = 1
"""Logs here are short: checkpoints are asked for from the first claim on."""


def log_of(author: int, epoch: int, length: int, value: int, base: Iterable[SignedClaim] = ()) -> list[SignedClaim]:
    log = list(base)
    while len(log) < length:
        previous = log[-1].hash if log else NO_HASH
        place = (NAMES[author], epoch, len(log), previous, NAMES[(author + 1) % 5])
        log.append(sign_claim(Claim(*place, Kind.CALL_SERVED, "", value, NO_HASH, 0), KEYS[author]))
    return log


def pool() -> list[SignedClaim]:
    """Alice is honest over three epochs, bob forks in his second, carol from her first claim on and three ways."""
    honest = [entry for epoch in (1, 2, 5) for entry in log_of(0, epoch, 4, 0)]
    before = log_of(1, 1, 3, 0)
    root = log_of(1, 2, 2, 0)
    forked = [*before, *log_of(1, 2, 5, 1, root), *log_of(1, 2, 4, 2, root), *log_of(1, 3, 2, 0)]
    three = [entry for value in (1, 2, 3) for entry in log_of(2, 1, 3, value)]
    return honest + list({entry.raw: entry for entry in forked + three}.values())


def checkpoints(claims: Iterable[SignedClaim]) -> list[SignedClaim]:
    """Every stretch of the claims in one record, along every branch."""
    by_hash = {entry.hash: entry for entry in claims}
    made = []
    for end in by_hash.values():
        behind = [end]
        while behind[0].claim.previous in by_hash:
            behind.insert(0, by_hash[behind[0].claim.previous])  # type: ignore[index]
            made.append(compact(behind))
    return made


def unsigned() -> list[SignedClaim]:
    """Dave's second claim has no signature of his own; only his third, which he signed, vouches for it. His fifth denies it."""
    log = log_of(3, 7, 3, 0)
    other = log_of(3, 7, 3, 5, log[:1])
    signed = [log[0], log[2], other[2]]
    return [*signed, compact(log), compact(log[1:]), compact(other[1:])]


POOL = pool()
FOLDED = [*checkpoints(POOL), *unsigned()]
RECORDS = [entry.raw for entry in [*POOL, *FOLDED]]
GARBAGE = [b"", b"\x90" * 50, POOL[0].raw[:-1], POOL[1].raw[:-1] + bytes([POOL[1].raw[-1] ^ 1]), POOL[2].raw + b"\x00"]
GARBAGE += [FOLDED[0].raw[:-1] + bytes([FOLDED[0].raw[-1] ^ 1]), FOLDED[0].raw[:40] + bytes(20) + FOLDED[0].raw[60:]]


def put(replica: Replica, raw: bytes) -> None:
    before = replica.digest()
    try:
        replica.insert(raw)
    except RemoteError:
        assert replica.digest() == before


def settle(deliveries: Iterable[bytes], replica: Replica | None = None) -> Replica:
    """Deliver again and again, in this order, until nothing changes: what sync amounts to."""
    replica = replica or Replica()
    raws = list(deliveries)
    before = None
    while before != replica.digest():
        before = replica.digest()
        for raw in raws:
            put(replica, raw)
    return replica


def merge(first: Replica, second: Replica) -> Replica:
    merged = Replica()
    for replica in (first, second):
        for fork in replica.forks():
            merged.insert_proof(fork.proof)
        for raw in records_of(replica):
            merged.insert(raw)
    return merged


def records_of(replica: Replica) -> list[bytes]:
    return [
        raw
        for issuer in replica.issuers()
        for head in replica.heads(issuer).logs
        for raw, _ in replica.records(issuer, head.epoch)
    ]


def compacted(replica: Replica, yes: bool) -> Replica:
    before, held = replica.digest(), [entry.hash for entry in replica.claims()]
    for issuer in replica.issuers() if yes else ():
        replica.compact(issuer, 100, keep=0)
    assert (replica.digest(), [entry.hash for entry in replica.claims()]) == (before, held)
    assert replica.total_bytes == sum(map(len, records_of(replica)))
    return replica


DELIVERED = [*RECORDS, *GARBAGE]
anything = st.integers(0, len(DELIVERED) - 1).map(lambda place: DELIVERED[place])
subsets = st.lists(anything, max_size=25)
replicas = st.builds(compacted, st.builds(settle, subsets), st.booleans())


@LAW
@given(first=replicas, second=replicas, third=replicas)
def test_merge_commutes_associates_and_is_idempotent(first: Replica, second: Replica, third: Replica) -> None:
    assert merge(first, second).digest() == merge(second, first).digest()
    assert merge(merge(first, second), third).digest() == merge(first, merge(second, third)).digest()
    assert merge(first, first).digest() == first.digest()
    assert merge(merge(first, second), second).digest() == merge(first, second).digest()


@LAW
@given(raws=subsets, shuffled=st.data())
def test_order_duplication_and_garbage_do_not_matter(raws: list[bytes], shuffled: st.DataObject) -> None:
    again = shuffled.draw(st.permutations(raws + raws[: len(raws) // 2] + GARBAGE))
    assert settle(raws).digest() == settle(again).digest()


@LAW
@given(start=st.integers(0, 2), order=st.data())
def test_checkpoints_say_the_same_as_the_claims_in_them(start: int, order: st.DataObject) -> None:
    """All claims of the pool one by one, all stretches of them alone, and both mixed, in any order."""
    plain = [entry.raw for entry in POOL]
    folded = [entry.raw for entry in checkpoints(POOL)] + [entry.raw for entry in POOL if entry.claim.seq == 0]
    told = order.draw(st.permutations((folded, plain + folded, folded[start:] + plain)[start]))
    assert settle(told).digest() == settle(plain).digest()


def test_every_order_of_a_small_fork_ends_equal() -> None:
    """All 720 orders of two branches: the law above, exhausted where it is most delicate."""
    root = log_of(1, 2, 1, 0)
    branches = [*log_of(1, 2, 3, 1, root), *log_of(1, 2, 3, 2, root), *log_of(1, 1, 1, 0)]
    raws = list(dict.fromkeys(entry.raw for entry in branches))
    assert len(raws) == 6
    assert len({settle(order).digest() for order in permutations(raws)}) == 1


def expected(all_claims: Iterable[SignedClaim], frozen: dict[PeerId, int]) -> set[bytes]:
    """What must be held once everything met: a model of the rules, written without the replica."""
    claims = list(all_claims)
    frozen = dict(frozen)
    for first in claims:
        for second in claims:
            if contradict(first, second):
                issuer = PeerId(first.claim.issuer)
                frozen[issuer] = min(frozen.get(issuer, first.claim.epoch), first.claim.epoch)
    return {e.hash for e in claims if e.claim.epoch < frozen.get(PeerId(e.claim.issuer), 1 << 60)}


def given(sync: Sync, peer: PeerId, chunk: RangeChunk) -> list[Effect]:
    told: list[Effect] = []
    for effect in sync.handle(ChunkArrived(peer, chunk), 0.0):
        told += sync.handle(check(effect), 0.0) if isinstance(effect, Verify) else [effect]
    return told


def pull(sync: Sync, into: int, source: Replica, lose: int = -1, plain: bool = False) -> None:
    """One exchange; the `lose`-th answer is lost, and with it the exchange. `plain`: what is held in envelopes comes in them."""
    peer = NAMES[into]
    effects = sync.handle(Begin(peer), 0.0)
    calls = 0
    while effects:
        effect, effects = effects[0], effects[1:]
        calls += isinstance(effect, AskHeads | AskRange)
        if calls - 1 == lose and isinstance(effect, AskHeads | AskRange):
            effects += sync.handle(CallFailed(peer), 0.0)
        elif isinstance(effect, AskHeads):
            effects += sync.handle(HeadsArrived(peer, serve_heads(source, effect.request)), 0.0)
        elif isinstance(effect, AskRange):
            request = effect.request
            if plain:
                request = RangeRequest(request.ranges, request.proofs, request.picks, AS_HELD)
            for chunk in serve_range(source, request):
                effects += given(sync, peer, chunk)
                effects += given(sync, peer, chunk) if calls == 2 and not effects else []
            effects += sync.handle(RangeEnded(peer), 0.0)
        assert calls < 100
    sync._target.save()


class Mesh(RuleBasedStateMachine):
    """Five replicas that write, fork, sync over lossy links and are partitioned; at the end all meet and must be equal."""

    bounds = Bounds()
    loss_free = True

    @rule(who=st.integers(0, REPLICAS - 1), most=st.integers(1, 3))
    def compact(self, who: int, most: int) -> None:
        for issuer in self.stores[who].replica.issuers():
            self.stores[who].compact(issuer, most, keep=0)
        self.stores[who].save()

    @rule(bulk=st.booleans(), run=st.sampled_from([2, 3, BULK_CLAIMS]))
    def ask_for_checkpoints_or_claims(self, bulk: bool, run: int) -> None:
        for sync in self.syncs:
            sync._bulk, sync._run = BULK if bulk else BULK_CLAIMS, run

    @rule(plain=st.booleans())
    def answer_in_envelopes(self, plain: bool) -> None:
        """Whatever was asked for: runs are then put together by who gets them."""
        self.plain = plain

    @initialize()
    def start(self) -> None:
        self.stores = [ClaimStore(MemoryStorage(), KEYS[i], 10, self.bounds) for i in range(REPLICAS)]
        self.syncs = [Sync(store, BULK) for store in self.stores]
        self.cut: set[frozenset[int]] = set()
        self.plain = False
        self.now = 100

    @rule(who=st.integers(0, REPLICAS - 1), count=st.integers(1, 4))
    def write(self, who: int, count: int) -> None:
        store = self.stores[who]
        try:
            entries = [store.record(Statement(NAMES[4], Kind.ROUND_WON), self.now) for _ in range(count)]
        except OwnLogFrozen:
            return
        assert all(a.hash == b.claim.previous for a, b in pairwise(entries))

    @rule(who=st.integers(0, REPLICAS - 1), raws=st.lists(anything, max_size=6))
    def hostile_delivery(self, who: int, raws: list[bytes]) -> None:
        self.stores[who].insert_many(raws)

    @rule(who=st.integers(0, REPLICAS - 1), source=st.integers(0, REPLICAS - 1), order=st.randoms(use_true_random=False))
    def deliver_twice_in_any_order(self, who: int, source: int, order: Random) -> None:
        """What `source` holds arrives as from a stranger: every claim twice, shuffled, whatever is cut."""
        raws = records_of(self.stores[source].replica) * 2
        order.shuffle(raws)
        self.stores[who].insert_many(raws[:12])

    @rule(parts=st.sets(st.integers(0, REPLICAS - 1), min_size=1, max_size=REPLICAS - 1))
    def part_or_heal_all(self, parts: set[int]) -> None:
        """The mesh falls into two halves, or, where it is cut anywhere, is whole again."""
        halves = {frozenset((a, b)) for a in parts for b in range(REPLICAS) if b not in parts}
        self.cut = set() if self.cut else halves

    @rule(who=st.integers(0, REPLICAS - 1), other=st.integers(0, REPLICAS - 1))
    def equivocate(self, who: int, other: int) -> None:
        """`who` signs a second history of its own epoch and shows it to `other` alone."""
        twin = log_of(who, self.stores[who].epoch, 1, 77)
        self.stores[other].insert_many([twin[0].raw])

    @rule(who=st.integers(0, REPLICAS - 1))
    def restart(self, who: int) -> None:
        self.now += 1
        old = self.stores[who].replica
        self.stores[who] = ClaimStore(self.stores[who]._storage, KEYS[who], self.now, self.bounds)
        self.syncs[who] = Sync(self.stores[who], BULK)
        new = self.stores[who].replica
        assert {e.hash for e in old.claims()} <= {e.hash for e in new.claims()}
        assert old.forks() == new.forks()
        if self.loss_free:
            assert new.digest() == old.digest()

    @rule(a=st.integers(0, REPLICAS - 1), b=st.integers(0, REPLICAS - 1), lose=st.integers(-1, 4))
    def sync(self, a: int, b: int, lose: int) -> None:
        if frozenset((a, b)) not in self.cut:
            pull(self.syncs[a], b, self.stores[b].replica, lose, self.plain)

    @rule(a=st.integers(0, REPLICAS - 1), b=st.integers(0, REPLICAS - 1))
    def cut_or_heal(self, a: int, b: int) -> None:
        self.cut ^= {frozenset((a, b))}

    @invariant()
    def logs_have_no_holes(self) -> None:
        for store in getattr(self, "stores", []):
            for issuer in store.replica.issuers():
                for log in store.replica.heads(issuer).logs:
                    assert store.replica.hash_at(issuer, log.epoch, log.length - 1) == log.hash

    def teardown(self) -> None:
        replicas = [store.replica for store in getattr(self, "stores", [])]
        if not replicas:
            return
        frozen: dict[PeerId, int] = {}
        for fork in (fork for replica in replicas for fork in replica.forks()):
            frozen[fork.issuer] = min(frozen.get(fork.issuer, fork.epoch), fork.epoch)
        model = expected((entry for replica in replicas for entry in replica.claims()), frozen)
        for _ in range(REPLICAS):
            for a in range(REPLICAS):
                for b in range(REPLICAS):
                    pull(self.syncs[a], b, replicas[b], plain=self.plain)
        assert len({replica.digest() for replica in replicas}) == 1
        evidence = [{key: (cell.totals, cell.steps) for key, cell in store.scores.ledger._cells.items()} for store in self.stores]
        assert all(one == evidence[0] for one in evidence), "who compacted scores as who did not"
        if self.loss_free:
            assert {entry.hash for entry in replicas[0].claims()} == model


class SmallMesh(Mesh):
    """The same with a quota so small that epochs retire all the time: still equal, though not loss-free by design."""

    bounds = Bounds(issuer_claims=3, issuer_epochs=2)
    loss_free = False


STATEFUL = settings(LAW, max_examples=50, stateful_step_count=30)
TestMesh = Mesh.TestCase
TestMesh.settings = STATEFUL
TestSmallMesh = SmallMesh.TestCase
TestSmallMesh.settings = settings(STATEFUL, max_examples=20)
