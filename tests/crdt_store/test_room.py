"""A crowd of keys fills its own share of a replica: nobody else's, and not the places of newcomers that did something for us."""

import pytest

from crdt_store.claims import Kind
from crdt_store.memory import MemoryStorage
from crdt_store.outcomes import Dropped, Ignored, Inserted
from crdt_store.own_log import Statement
from crdt_store.replica import Replica
from crdt_store.room import Bounds, Room
from crdt_store.store import ClaimStore

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
