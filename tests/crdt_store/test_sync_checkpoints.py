"""What a peer may send in checkpoints, and what that costs it."""

import pytest

from crdt_store.checkpoints import Checkpoint, claims_of, compact, read_record
from crdt_store.forks import ForkProof
from crdt_store.replica import Replica
from crdt_store.sync import Sync
from crdt_store.sync_events import Announced, AskRange, Begin, ChunkArrived, Fault, Finished, HeadsArrived, Verify
from crdt_store.sync_exchange import VERIFY_BURST
from crdt_store.sync_messages import (
    AS_HELD,
    FOLDED,
    MAX_CHUNK_ROWS,
    Announcement,
    Range,
    RangeChunk,
    RangeRequest,
    announce,
    serve_heads,
    serve_range,
)
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash
from protocol.wire.limits import MAX_GOSSIP_BYTES
from tests.crdt_store.test_checkpoints import held
from tests.crdt_store.test_sync import NEVER, Honest, exchange


@pytest.fixture
def asked(store, bob):
    """A machine that asked bob for what he holds, and is given chunks."""

    def waiting(*records):
        sync = Sync(store())
        sync.handle(Begin(bob.id), 0.0)
        effects = sync.handle(HeadsArrived(bob.id, serve_heads(store(*records).replica, sync._exchanges[bob.id].asked)), 0.0)
        assert isinstance(effects[0], AskRange)
        return sync

    return waiting


def folded_proof(author):
    left, right = author.log(25, value=1), author.log(17, value=2)
    return ForkProof(compact(left).raw, compact(right).raw)


def test_a_proof_with_a_checkpoint_among_plain_ones_costs_its_sender(store, alice, bob):
    proof = folded_proof(alice)
    hearer = store()
    sync = Sync(hearer)
    (fault,) = sync.handle(Announced(bob.id, Announcement(Hash(bytes(32)), proofs=(proof,))), 0.0)
    assert isinstance(fault, Fault)
    assert fault.error.code is Code.MALFORMED
    assert hearer.replica.forks() == ()
    assert sync.handle(Announced(bob.id, announce(hearer.replica, bob.id, (proof,))), 0.0) == []
    assert [fork.issuer for fork in hearer.replica.forks()] == [alice.id]


def test_a_proof_is_charged_with_its_rows(asked, alice, bob, author):
    sync = asked(bob.claim(0).raw)
    plain = ForkProof(author(3).claim(0, value=1).raw, author(3).claim(0, value=2).raw)
    chunk = RangeChunk((), (plain, folded_proof(alice)), (compact(bob.log(9)).raw, author(4).claim(0).raw))
    (verify,) = sync.handle(ChunkArrived(bob.id, chunk), 0.0)
    assert isinstance(verify, Verify)
    rows = 24 + 16 + 8
    assert sync._exchanges[bob.id].allowance == VERIFY_BURST - 6 - rows / 8


def test_one_chunk_holds_no_more_claims_than_one_turn_takes_in(asked, alice, bob):
    log = alice.log(256)
    records = [compact(log[start : start + 64]).raw for start in range(0, 256, 64)]
    sync = asked(*records)
    effects = sync.handle(ChunkArrived(bob.id, RangeChunk((), (), tuple(records))), 0.0)
    assert isinstance(effects[0], Fault)
    assert not [effect for effect in effects if isinstance(effect, Verify)]


@pytest.mark.parametrize("pieces", [(64,), (64, 63), (2, 64, 61, 64), (1, 64, 1, 64, 1, 64), (9,) * 20])
def test_no_honest_chunk_comes_near_that(store, alice, pieces):
    log, records, at = alice.log(400), [], 0
    while at < 390:
        for size in pieces:
            records.append(compact(log[at : at + size]).raw)
            at += len(log[at : at + size])
            if at == 400:
                break
    held = store(*records).replica
    chunks = list(serve_range(held, RangeRequest((Range(alice.id, 1, 0, 400),), records=AS_HELD)))
    assert len(chunks) > 1
    assert all(sum(claims_of(read_record(raw)) - 1 for raw in chunk.records) < MAX_CHUNK_ROWS for chunk in chunks)


def test_a_newcomer_gets_all_for_a_fifth_of_the_bytes(store, alice, bob):
    log = [entry.raw for entry in [*alice.log(700), *bob.log(600)]]
    source = store(*log)
    plain, few = Honest(source.replica), Honest(source.replica)
    exchange(Sync(store(), NEVER, NEVER), alice.id, plain)
    fresh = store()
    assert exchange(Sync(fresh), alice.id, few) == [Finished(alice.id, 1300)]
    assert fresh.replica.digest() == source.replica.digest()
    assert plain.bytes > sum(map(len, log))
    assert few.bytes < plain.bytes / 5


@pytest.mark.parametrize("bulk", [1, NEVER])
def test_who_compacted_and_who_did_not_end_equal(store, alice, bob, bulk):
    one = store(*(e.raw for e in [*alice.log(100), *bob.log(30)]))
    other = store(*(e.raw for e in [*alice.log(70), *bob.log(90)]))
    for issuer in (alice.id, bob.id):
        one.compact(issuer, 100, keep=0)
    for target, source in ((one, other), (other, one)):
        assert not [x for x in exchange(Sync(target, bulk), bob.id, Honest(source.replica)) if isinstance(x, Fault)]
    assert one.replica.digest() == other.replica.digest()
    assert len(one.replica) == 190


def test_a_peer_that_knows_no_checkpoints_gets_what_it_can_read_and_blames_nobody(alice):
    log = alice.log(80)
    replica = held(*(e.raw for e in log[:10]), compact(log[10:70]).raw, *(e.raw for e in log[70:]))
    request = RangeRequest((Range(alice.id, 1, 0, 80),))
    chunks = serve_range(replica, decode(RangeRequest, encode([*encode_fields(request)][:3])))
    assert list(next(chunks).claims) == [e.raw for e in log[:10]]
    with pytest.raises(RemoteError) as refused:
        next(chunks)
    assert refused.value.code is Code.UNSUPPORTED
    whole = list(serve_range(replica, RangeRequest((Range(alice.id, 1, 69, 11),))))
    assert [raw for chunk in whole for raw in chunk.claims] == [e.raw for e in log[69:]]


def encode_fields(message):
    return [getattr(message, name) for name in message.__struct_fields__]


def test_what_is_asked_for_as_held_keeps_its_signatures(alice):
    log = alice.log(80)
    replica = held(*(e.raw for e in log[:10]), compact(log[10:70]).raw, *(e.raw for e in log[70:]))
    counts = {}
    for records in (AS_HELD, FOLDED):
        chunks = serve_range(replica, RangeRequest((Range(alice.id, 1, 0, 80),), records=records))
        counts[records] = [claims_of(read_record(raw)) for chunk in chunks for raw in chunk.records]
    assert counts == {AS_HELD: [*[1] * 10, 60, *[1] * 10], FOLDED: [10, 64, 6]}


def test_a_folded_proof_travels_by_gossip_beside_plain_ones(store, alice, bob):
    holder = store(compact(alice.log(4, value=1)).raw, bob.claim(0).raw)
    holder.insert_many([compact(alice.log(4, value=2)).raw])
    proofs = tuple(fork.proof for fork in holder.take_new_forks())
    plain = ForkProof(bob.claim(0, value=1).raw, bob.claim(0, value=2).raw)
    announcement = announce(holder.replica, bob.id, (plain, *proofs))
    assert (announcement.proofs, announcement.folded) == ((plain,), proofs)
    assert len(encode(announcement)) < MAX_GOSSIP_BYTES
    hearer = store()
    assert not [x for x in Sync(hearer).handle(Announced(bob.id, announcement), 0.0) if isinstance(x, Fault)]
    assert {fork.issuer for fork in hearer.replica.forks()} == {alice.id, bob.id}


def test_a_checkpoint_of_rows_that_nobody_signed_costs_its_sender(store, alice, bob):
    log = alice.log(40)
    made = decode(Checkpoint, compact(log).raw)
    false = encode(Checkpoint(made.previous, made.subjects, made.skills, made.rows[::-1], made.claim))

    class Liar(Honest):
        def range(self, request):
            return [chunk.__class__((), (), (false,)) for chunk in super().range(request)]

    victim = store()
    told = exchange(Sync(victim), bob.id, Liar(held(*(e.raw for e in log))))
    assert [effect for effect in told if isinstance(effect, Fault)]
    assert victim.replica.digest() == Replica().digest()
