"""The rules of the set: what is kept, refused, frozen and retired."""

import itertools

import msgpack
import pytest

import crdt_store.replica
from crdt_store.checkpoints import compact
from crdt_store.claims import NO_HASH
from crdt_store.forks import ForkProof
from crdt_store.heads import log_id
from crdt_store.outcomes import Dropped, Duplicate, Forked, Gap, Ignored, Inserted
from crdt_store.replica import Replica
from crdt_store.room import Bounds
from protocol.wire.errors import Code, LocalError, RemoteError


def replica_of(*raws, bounds=None):
    replica = Replica(bounds)
    for raw in raws:
        replica.insert(raw)
    return replica


def test_a_log_is_kept_in_order_and_once(alice):
    log = alice.log(3)
    replica = Replica()
    assert replica.insert(log[0].raw) == Inserted(log[0])
    assert replica.insert(log[2].raw) == Gap(alice.id, 1, 1)
    assert replica.insert(log[0].raw) == Duplicate()
    assert replica.insert(log[1].raw) == Inserted(log[1])
    assert replica.insert(log[2].raw) == Inserted(log[2])
    assert list(replica.claims()) == log
    assert len(replica) == 3
    assert replica.total_bytes == sum(len(entry.raw) for entry in log)


@pytest.mark.slow
def test_interleaving_of_issuers_and_epochs_does_not_matter(alice, bob):
    logs = [alice.log(2), alice.log(2, epoch=9), bob.log(2)]
    digests = set()
    for order in sorted(set(itertools.permutations([0, 0, 1, 1, 2, 2]))):
        taken = [iter(log) for log in logs]
        digests.add(replica_of(*(next(taken[i]).raw for i in order)).digest())
    assert len(digests) == 1


def test_digests_tell_sets_apart(alice, bob):
    log = alice.log(3)
    sets = [[], log[:1], log[:2], log, bob.log(1), alice.log(1, epoch=2), alice.log(1, value=5)]
    assert len({replica_of(*(entry.raw for entry in chosen)).digest() for chosen in sets}) == len(sets)


def test_two_claims_in_one_place_freeze_the_issuer_in_every_order(alice, bob):
    base = alice.log(2)
    left, right = alice.log(5, value=1, after=base), alice.log(4, value=2, after=base)
    old, later, other = alice.log(2, epoch=0), alice.log(1, epoch=5), bob.log(2)
    digests = set()
    for first, second in ((left, right), (right, left)):
        replica = replica_of(*(e.raw for e in [*old, *later, *other, *first]))
        outcomes = [replica.insert(entry.raw) for entry in second]
        assert outcomes[:2] == [Duplicate(), Duplicate()]
        assert isinstance(outcomes[2], Forked)
        assert outcomes[3:] == [Ignored("frozen")] * (len(second) - 3)
        assert list(replica.claims(alice.id)) == old
        assert list(replica.claims(bob.id)) == other
        digests.add(replica.digest())
    assert len(digests) == 1


def test_the_tail_of_another_branch_proves_the_fork_alone(alice):
    left, right = alice.log(3, value=1), alice.log(4, value=2)
    replica = replica_of(*(e.raw for e in left))
    outcome = replica.insert(right[3].raw)
    assert isinstance(outcome, Forked)
    assert replica_of().insert_proof(outcome.fork.proof) == outcome


def test_a_fork_in_an_older_epoch_freezes_more(alice):
    replica = replica_of(*(e.raw for e in [*alice.log(2, epoch=1), *alice.log(2, epoch=2)]))
    assert isinstance(replica.insert(alice.log(1, epoch=2, value=7)[0].raw), Forked)
    assert [entry.claim.epoch for entry in replica.claims()] == [1, 1]
    assert isinstance(replica.insert(alice.log(1, epoch=1, value=7)[0].raw), Forked)
    assert list(replica.claims()) == []
    assert [fork.epoch for fork in replica.forks()] == [1]
    assert replica.insert(alice.log(1, epoch=3)[0].raw) == Ignored("frozen")


def test_a_proof_arrives_before_any_claim(alice):
    proof = ForkProof(alice.claim(0, value=1).raw, alice.claim(0, value=2).raw)
    replica = Replica()
    assert isinstance(replica.insert_proof(proof), Forked)
    assert replica.insert_proof(proof) == Duplicate()
    assert replica.insert(alice.log(1)[0].raw) == Ignored("frozen")
    assert replica.heads(alice.id).frozen_from == 1


def test_a_proof_that_proves_nothing_is_refused(alice, bob):
    log = alice.log(3)
    forged = bytearray(alice.claim(0, value=9).raw)
    forged[-1] ^= 1
    for first, second in [
        (log[0].raw, log[0].raw),
        (log[0].raw, log[1].raw),
        (log[0].raw, log[2].raw),
        (log[0].raw, bob.claim(0).raw),
        (log[0].raw, alice.claim(0, epoch=2).raw),
        (log[0].raw, bytes(forged)),
        (log[0].raw, b"\x90"),
    ]:
        replica = Replica()
        with pytest.raises(RemoteError):
            replica.insert_proof(ForkProof(first, second))
        assert replica.digest() == Replica().digest()


def test_what_is_no_claim_changes_nothing(alice, bob):
    good = alice.claim(0)
    flipped = bytearray(good.raw)
    flipped[-1] ^= 1
    stolen = good.raw.replace(alice.id.encode(), bob.id.encode(), 1)
    cases = {
        b"": Code.MALFORMED,
        b"\x00" * 40: Code.MALFORMED,
        b"\x90" * 4096: Code.MALFORMED,
        bytes(4097): Code.OVERSIZED,
        bytes(flipped): Code.BAD_SIGNATURE,
        good.raw[:-1]: Code.MALFORMED,
        good.raw + b"\x00": Code.MALFORMED,
        stolen: Code.MALFORMED,
    }
    for raw, code in cases.items():
        replica = Replica()
        with pytest.raises(RemoteError) as refused:
            replica.insert(raw)
        assert refused.value.code is code
        assert replica.digest() == Replica().digest()
        assert replica.issuers() == ()


def test_the_oldest_epochs_go_once_newer_ones_fill_the_quota(alice):
    bounds = Bounds(issuer_claims=4, issuer_epochs=3)
    logs = {epoch: alice.log(2, epoch) for epoch in (1, 2, 3, 4)}
    expected = [e for epoch in (3, 4) for e in logs[epoch]]
    for order in itertools.permutations(logs):
        replica = replica_of(*(e.raw for epoch in order for e in logs[epoch]), bounds=bounds)
        assert list(replica.claims()) == expected
        assert len(replica) == 4
        assert not replica.wants(alice.id, 1)
        assert replica.wants(alice.id, 5)
    replica = replica_of(*(alice.claim(0, epoch=epoch).raw for epoch in (5, 6, 7)), bounds=bounds)
    assert replica.insert(alice.claim(0, epoch=8).raw).dropped == (Dropped(alice.id, 5),)
    assert replica.insert(alice.claim(0, epoch=4).raw) == Ignored("retired")


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("forked", [False, True])
def test_short_names_of_logs_that_are_gone_are_forgotten(alice, told, forked, monkeypatch):
    """Who writes one epoch after the other fills no memory, whether or not a peer compared with us in between."""
    monkeypatch.setattr(crdt_store.replica, "MAX_GONE", 3)
    replica = replica_of(bounds=Bounds(issuer_epochs=4))
    if forked:
        replica.insert(alice.claim(0, epoch=100, value=1).raw)
        replica.insert(alice.claim(0, epoch=100, value=2).raw)
    for epoch in range(20):
        replica.insert(alice.claim(0, epoch=epoch).raw)
        if told:
            replica.sketch()
    replica.sketch()
    known = [epoch for epoch in range(101) if replica.place(log_id(alice.id, epoch)) is not None]
    assert known == [13, 14, 15, 16, 17, 18, 19]


def test_a_full_replica_refuses_newcomers_and_keeps_what_it_holds(alice, bob, author):
    first = alice.log(2)
    replica = Replica(Bounds(strangers=1), always_admit=author(3).id)
    assert isinstance(replica.insert(first[0].raw), Inserted)
    assert replica.insert(bob.claim(0).raw) == Ignored("full")
    assert isinstance(replica.insert(first[1].raw), Inserted)
    assert isinstance(replica.insert(author(3).claim(0).raw), Inserted)
    tight = Replica(Bounds(total_bytes=2 * len(first[0].raw)))
    tight.insert(first[0].raw)
    assert tight.insert(first[1].raw) == Ignored("full")


def test_one_statement_signed_twice_is_one_claim(alice):
    """Ed25519 lets a signer make many signatures of one text: the address must not depend on which one came."""
    log = alice.log(1)
    replica = replica_of(log[0].raw)
    other = bytearray(log[0].raw)
    other[-1] ^= 1
    assert replica.insert(bytes(other)) == Duplicate()
    assert list(replica.claims()) == log


def test_what_somebody_on_the_way_appended_takes_no_room(alice):
    """Was wrong: a claim of an honest issuer, padded by whoever passed it on, was kept and served so, out of his share."""
    log = alice.log(3)
    padded = [msgpack.packb([*msgpack.unpackb(entry.raw), bytes(3_000)]) for entry in log]
    replica = replica_of(*padded)
    assert list(replica.claims()) == log
    assert replica.total_bytes == sum(len(entry.raw) for entry in log)
    previous, subjects, skills, rows, _ = msgpack.unpackb(compact(log).raw)
    for claim in (padded[2], log[2].raw):
        taken = Replica()
        whole = msgpack.packb([previous, subjects, skills, rows, claim])
        if claim == log[2].raw:
            assert isinstance(taken.insert(whole), Inserted)
            continue
        with pytest.raises(RemoteError):
            taken.insert(whole)


def test_a_claim_that_would_block_its_log_is_not_signed(alice):
    with pytest.raises(LocalError, match="subject"):
        alice.claim(0, subject="12D3KooW" + "z" * 44)
    for seq, previous in [(0, bytes([1]) * 32), (1, NO_HASH), (1000, bytes([1]) * 32)]:
        with pytest.raises(LocalError):
            alice.claim(seq, previous)
