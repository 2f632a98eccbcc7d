"""A crowd of keys fills its own share of a replica: nobody else's, and not the places of newcomers that did something for us."""

import pytest

from crdt_store.checkpoints import compact
from crdt_store.claims import Kind
from crdt_store.memory import MemoryStorage
from crdt_store.outcomes import Dropped, Ignored, Inserted
from crdt_store.own_log import Statement
from crdt_store.replica import Replica
from crdt_store.room import Bounds, Room
from crdt_store.store import ClaimStore
from crdt_store.sync import Sync
from crdt_store.sync_events import Finished
from tests.crdt_store.test_sync import Honest, exchange

SIZE = 330
BOUNDS = Bounds(strangers=20, vouched=5, total_bytes=80 * SIZE)
"""Reserved: one claim for each of 20 strangers, 4 for each of 5 vouched for; lent: 40 claims."""


def replica_full_of(author, count, length):
    replica = Replica(BOUNDS)
    for number in range(1, count + 1):
        for entry in author(number).log(length):
            replica.insert(entry.raw)
    return replica


@pytest.mark.slow
def test_many_keys_fill_what_is_lent_and_nobody_elses_part(author):
    replica = replica_full_of(author, 19, 10)
    held = {name: replica.length(name, 1) for name in replica.issuers()}
    assert replica.total_bytes <= BOUNDS.lent_bytes + 19 * BOUNDS.stranger_bytes
    assert min(held.values()) >= 1
    newcomer = author(100).log(3)
    assert isinstance(replica.insert(newcomer[0].raw), Inserted), "a stranger's own part is there, whoever came before"
    assert replica.insert(newcomer[1].raw) == Ignored("full")
    assert {name: replica.length(name, 1) for name in held} == held, "and cost nobody anything"
    assert replica.insert(author(101).claim(0).raw) == Ignored("full"), "the twenty places of strangers are taken"


@pytest.mark.slow
def test_who_did_something_for_us_takes_lent_room_back_from_the_greatest_borrower(author):
    replica = replica_full_of(author, 20, 10)
    friend = author(100)
    assert replica.insert(friend.claim(0).raw) == Ignored("full")
    replica.room.vouch([friend.id])
    greatest = max(replica.length(name, 1) for name in replica.issuers())
    outcomes = [replica.insert(entry.raw) for entry in friend.log(12)]
    assert all(isinstance(outcome, Inserted) for outcome in outcomes)
    dropped = [gone for outcome in outcomes for gone in outcome.dropped]
    assert dropped
    assert all(isinstance(gone, Dropped) and gone.issuer != friend.id for gone in dropped)
    assert greatest > 1
    assert replica.total_bytes <= BOUNDS.total_bytes


@pytest.mark.slow
def test_those_we_vouch_for_never_cost_each_other_anything(author):
    replica = Replica(BOUNDS)
    friends = [author(number) for number in range(1, 6)]
    replica.room.vouch(friend.id for friend in friends)
    kept = friends[0].log(4)
    for entry in kept:
        replica.insert(entry.raw)
    for greedy in friends[1:]:
        for entry in greedy.log(40):
            replica.insert(entry.raw)
    assert list(replica.claims(friends[0].id)) == kept
    assert replica.total_bytes <= BOUNDS.total_bytes
    assert isinstance(replica.insert(author(50).claim(0).raw), Inserted), "nor does a stranger's part go"


def test_a_store_vouches_for_the_subjects_of_its_own_good_claims_now_and_after_a_restart(alice, bob, author):
    storage, nobody_else = MemoryStorage(), Bounds(strangers=0, vouched=5, total_bytes=80 * SIZE)
    store = ClaimStore(storage, alice.key, 1, nobody_else)
    store.record(Statement(bob.id, Kind.CALL_SERVED), 1)
    store.record(Statement(author(3).id, Kind.CALL_FAILED), 1)
    for number, held in enumerate((store, ClaimStore(storage, alice.key, 2, nobody_else))):
        assert isinstance(held.replica.insert(bob.claim(0, epoch=number).raw), Inserted)
        assert held.replica.insert(author(3).claim(0, epoch=number).raw) == Ignored("full")


def test_a_thousand_keys_of_one_attacker_leave_room_for_newcomers():
    """C5: arithmetic of the default bounds; each key offers all that the quota per author lets it."""
    room = Room(Bounds(), None, lambda _: 0)
    taken = 0
    for number in range(1_000):
        while taken < 10_000 * 1_000 * SIZE and room.take(f"attacker {number}", 4_096):
            taken += 4_096
    assert taken <= Bounds().lent_bytes + 1_000 * Bounds().stranger_bytes
    assert all(room.take(f"newcomer {number}", SIZE) for number in range(2_000) for _ in range(16))
    room.vouch([f"friend {number}" for number in range(1_000)])
    assert all(room.take(f"friend {number}", SIZE) for number in range(1_000) for _ in range(49))


def test_a_stranger_is_asked_for_claims_until_its_part_is_full(author):
    """Not only while there is room for the longest claim that any version may make, which is twelve usual ones."""
    bounds = Bounds(strangers=4, total_bytes=4 * 4 * 16 * SIZE)
    replica = Replica(bounds)
    for epoch in range(1, 9):
        for entry in author(2).log(40, epoch):
            replica.insert(entry.raw)
    wanted, taken = [], []
    for entry in author(1).log(20):
        wanted.append(replica.wants(author(1).id, 1))
        taken.append(isinstance(replica.insert(entry.raw), Inserted))
    fit = sum(taken)
    assert fit in (16, 17), "its part, and what the flood left of a claim's room"
    assert all(wanted[: fit - 1]), "each was asked for, but for the last"
    assert not any(wanted[fit:])


def test_where_room_is_short_the_newest_claims_are_put_together_too(author):
    replica = replica_full_of(author, 19, 10)
    name = author(19).id
    held = replica.length(name, 1)
    assert replica.insert(author(19).log(held + 1)[-1].raw) == Ignored("full")
    digest = replica.digest()
    made = [len(replica.compact(issuer, 10)) for issuer in replica.issuers()]
    assert 0 < sum(made) < 19, "those that came first, until there is room"
    assert replica.digest() == digest
    for entry in author(19).log(held + 1)[held:]:
        assert isinstance(replica.insert(entry.raw), Inserted)
    roomy = Replica()
    for entry in author(1).log(40):
        roomy.insert(entry.raw)
    assert roomy.compact(author(1).id, 10) == [], "news keep their signatures where there is room for them"


def test_an_issuer_of_whom_all_had_to_go_leaves_no_trace_in_the_digest(author):
    bounds = Bounds(strangers=3, vouched=2, total_bytes=24 * SIZE)
    replica, same = Replica(bounds), Replica(bounds)
    for number in (1, 2, 3):
        for entry in author(number).log(12):
            replica.insert(entry.raw)
    replica.sketch()
    friend = author(100)
    replica.room.vouch([friend.id])
    same.room.vouch([friend.id])
    for entry in friend.log(12):
        replica.insert(entry.raw)
    assert replica.length(author(1).id, 1) == 0
    for entry in replica.claims():
        same.insert(entry.raw)
    assert (replica.digest(), replica.issuers()) == (same.digest(), same.issuers())
    assert replica.sketch().cells(16) == same.sketch().cells(16)
    assert replica.insert(author(50).claim(0).raw) == Ignored("full"), "its place stays its own"
    assert isinstance(replica.insert(author(1).claim(0).raw), Inserted)
    assert author(1).id in replica.issuers()


def test_what_had_to_give_way_comes_back_as_far_as_its_part_goes(author, alice, bob):
    """Also from who was asked for more of it in vain."""
    stranger, friend = author(1), author(2)
    size = len(compact(stranger.log(64)).raw)
    store = ClaimStore(MemoryStorage(), author(200).key, 1, Bounds(strangers=1, vouched=1, total_bytes=23 * size // 3))
    theirs, friends = (ClaimStore(MemoryStorage(), author(number).key, 1) for number in (201, 202))
    theirs.insert_many([entry.raw for entry in stranger.log(64 * 8)])
    friends.insert_many([entry.raw for entry in friend.log(64 * 3)])
    sync = Sync(store)
    exchange(sync, alice.id, Honest(theirs.replica))
    assert store.replica.length(stranger.id, 1) == 64 * 5
    assert store.replica.wants(stranger.id, 1), "there is room for a claim, and none for a checkpoint"
    assert exchange(sync, alice.id, Honest(theirs.replica)) == [Finished(alice.id, 0)]
    store.replica.room.vouch([friend.id])
    exchange(sync, bob.id, Honest(friends.replica))
    assert store.replica.length(stranger.id, 1) == 0
    exchange(sync, alice.id, Honest(theirs.replica))
    assert store.replica.length(stranger.id, 1) >= 64
    assert store.replica.length(friend.id, 1) == 64 * 3
