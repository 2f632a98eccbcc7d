"""Claims that come in their envelopes, one behind the other: one signature for all of them, and nothing unchecked is kept."""

import pytest

from crdt_store.checkpoints import claims_of, compact, read_record
from crdt_store.claims import DOMAIN, NO_HASH, read_claim
from crdt_store.runs import RUN_CLAIMS
from crdt_store.sync import Sync
from crdt_store.sync_events import Begin, ChunkArrived, Fault, Finished, HeadsArrived, RangeEnded, Verify, check
from crdt_store.sync_exchange import VERIFY_BURST
from crdt_store.sync_messages import AS_HELD, FOLDED, RangeChunk, serve_heads
from crdt_store.sync_plan import plan, wants_of
from protocol.wire.codec import decode, encode
from protocol.wire.envelope import Envelope, seal
from protocol.wire.errors import Code
from tests.crdt_store.test_sync import Honest, exchange


@pytest.fixture
def pulled(store, bob):
    """What a store that holds `before` has after an answer of these records, and what it says of who gave it."""

    def answer(*records, before=(), whole=()):
        target = store(*before)
        sync = Sync(target)
        sync.handle(Begin(bob.id), 0.0)
        theirs = store(*(whole or records)).replica
        sync.handle(HeadsArrived(bob.id, serve_heads(theirs, sync._exchanges[bob.id].asked)), 0.0)
        told = []
        for effect in sync.handle(ChunkArrived(bob.id, RangeChunk((), (), tuple(records))), 0.0):
            told += sync.handle(check(effect), 0.0) if isinstance(effect, Verify) else [effect]
        faults = [effect for effect in told if isinstance(effect, Fault)]
        sync.handle(RangeEnded(bob.id), 0.0)
        return target, faults

    return answer


def raws(entries):
    return [entry.raw for entry in entries]


def spoiled(entry):
    """The same claim under a signature that is none."""
    envelope = decode(Envelope, entry.raw)
    return encode(Envelope(envelope.signer, envelope.payload, bytes([envelope.signature[0] ^ 1]) + envelope.signature[1:]))


def shape(replica, issuer, epoch=1):
    return [claims for _, claims in replica.records(issuer, epoch)]


def test_a_run_is_taken_in_under_its_last_signature(pulled, store, alice):
    log = alice.log(20)
    target, faults = pulled(*raws(log))
    assert not faults
    assert target.replica.digest() == store(*raws(log)).replica.digest()
    assert shape(target.replica, alice.id) == [20]
    assert [bool(entry.raw) for entry in target.replica.claims()] == [False] * 19 + [True]


def test_it_costs_one_signature_and_its_rows(store, alice, bob):
    sync = Sync(store())
    sync.handle(Begin(bob.id), 0.0)
    sync.handle(HeadsArrived(bob.id, serve_heads(store(*raws(alice.log(20))).replica, sync._exchanges[bob.id].asked)), 0.0)
    records = tuple(raws([*alice.log(20), *bob.log(3)]))
    (verify,) = sync.handle(ChunkArrived(bob.id, RangeChunk((), (), records)), 0.0)
    assert (verify.runs, verify.signatures) == ((range(20),), 4)
    assert sync._exchanges[bob.id].allowance == VERIFY_BURST - 4 - 19 / 8


def test_fewer_keep_their_signatures(pulled, alice):
    few = alice.log(RUN_CLAIMS - 1)
    target, _ = pulled(*raws(few))
    assert raws(target.replica.claims()) == raws(few)


def test_a_signature_that_nobody_looked_at_is_nowhere(pulled, store, alice):
    """Signed by the last claim: whoever broke the signatures before it on the way can do no more than lose them."""
    log = alice.log(12)
    sent = [spoiled(entry) for entry in log[:-1]] + [log[-1].raw]
    target, faults = pulled(*sent, whole=raws(log))
    assert not faults
    assert target.replica.digest() == store(*raws(log)).replica.digest()
    assert target.replica.raws(alice.id, 1, 0, 12) == ()
    kept = b"".join(raw for raw, _ in target.replica.records(alice.id, 1))
    assert not [entry for entry in map(read_claim, sent[:-1]) if entry.envelope.signature in kept]


def test_where_the_last_is_false_the_others_stand_by_themselves(pulled, alice):
    log = alice.log(12)
    target, faults = pulled(*raws(log[:-1]), spoiled(log[-1]), whole=raws(log))
    assert [fault.error.code for fault in faults] == [Code.BAD_SIGNATURE]
    assert raws(target.replica.claims()) == raws(log[:-1])


def test_where_the_last_is_false_a_false_one_before_it_is_found_too(pulled, alice):
    log = alice.log(12)
    target, faults = pulled(*raws(log[:5]), spoiled(log[5]), *raws(log[6:-1]), spoiled(log[-1]), whole=raws(log))
    assert faults
    assert raws(target.replica.claims()) == raws(log[:5])


@pytest.mark.parametrize("place", [0, 5, 9, 18])
def test_a_signed_claim_vouches_for_no_other_than_those_of_its_chain(pulled, alice, bob, place):
    """Forged ones in their place, each in the next one's hash: the chain breaks where the signed ones begin."""
    log = alice.log(20)
    forged = [*log[:place]]
    while len(forged) < 19:
        previous = forged[-1].hash if forged else NO_HASH
        fields = (alice.id, 1, len(forged), previous, alice.id, 1, "math", 99, NO_HASH, 0)
        signature = decode(Envelope, seal(DOMAIN, encode(fields), bob.key)).signature
        forged.append(read_claim(encode(Envelope(alice.id, encode(fields), signature))))
    target, faults = pulled(*raws(forged), log[-1].raw, whole=raws(log))
    assert faults
    assert raws(target.replica.claims()) == raws(log[:place])
    assert not target.replica.forks()


def test_a_branch_is_proved_by_two_claims(pulled, alice):
    """Every version understands such a proof, and it is a tenth as long as one of a run."""
    trunk = alice.log(3)
    ours, theirs = alice.log(4, value=1, after=trunk), alice.log(20, value=2, after=trunk)
    target, faults = pulled(*raws(theirs[4:]), before=raws(ours), whole=raws(theirs))
    assert not faults
    (fork,) = target.replica.forks()
    assert (fork.issuer, fork.proof.plain) == (alice.id, True)


def test_a_run_goes_on_where_the_log_ends_alone(pulled, store, alice):
    log = alice.log(30)
    target, faults = pulled(*raws(log[10:]), before=raws(log[:10]), whole=raws(log))
    assert not faults
    assert shape(target.replica, alice.id) == [1] * 10 + [20]
    behind_a_gap, _ = pulled(*raws(log[11:]), before=raws(log[:10]), whole=raws(log))
    assert behind_a_gap.replica.length(alice.id, 1) == 10


def test_a_subject_that_is_no_peer_is_no_more_good_in_a_run_than_alone(pulled, alice):
    nobody = "12D3KooW" + "z" * 44
    log = alice.log(9)
    for _ in range(4):
        log.append(sealed(alice, read_claim(log[-1].raw), subject=nobody if len(log) == 10 else alice.id))
    target, faults = pulled(*raws(log), whole=raws(log[:9]))
    assert [fault.error.code for fault in faults] == [Code.MALFORMED]
    assert len(target.replica) == 10


def sealed(author, before, subject):
    """A claim behind `before` that its author's own program would not sign."""
    seq = before.claim.seq + 1
    fields = (author.id, 1, seq, before.hash, subject, 1, "", 1, NO_HASH, 0)
    return read_claim(seal(DOMAIN, encode(fields), author.key))


def test_bytes_that_no_row_can_stand_for_are_checked_one_by_one(pulled, alice):
    log = alice.log(9)
    odd = bytearray(encode((alice.id, 1, 9, log[-1].hash, alice.id, 1, "", 1, NO_HASH, 0)))
    assert odd[55] == 1
    odd[55:56] = b"\xcc\x01"  # the epoch, one byte longer than it need be
    log.append(read_claim(seal(DOMAIN, bytes(odd), alice.key)))
    for _ in range(3):
        log.append(sealed(alice, log[-1], alice.id))
    target, faults = pulled(*raws(log), whole=raws(log))
    assert not faults
    assert shape(target.replica, alice.id) == [10, 1, 1, 1], "such a claim ends a run"
    assert [bool(entry.raw) for entry in target.replica.claims()] == [False] * 9 + [True] * 4


def test_checkpoints_and_claims_side_by_side_are_all_taken_in(pulled, store, alice, bob):
    log, other = alice.log(40), bob.log(9)
    sent = [compact(log[:20]).raw, *raws(log[20:30]), compact(log[30:]).raw, *raws(other)]
    target, faults = pulled(*sent)
    assert not faults
    assert target.replica.digest() == store(*raws([*log, *other])).replica.digest()
    assert shape(target.replica, bob.id) == [9]
    assert sum(claims_of(read_record(raw)) for raw, _ in target.replica.records(alice.id, 1)) == 40


def test_what_would_lose_its_signatures_on_arrival_comes_without(store, alice, bob):
    """A seventh of the bytes; where a log brings fewer claims than a run, all keep theirs."""
    source = store(*raws([*alice.log(40), *bob.log(RUN_CLAIMS)]))
    row = wants_of(source.replica.heads(alice.id)) + wants_of(source.replica.heads(bob.id))
    assert plan(store().replica, row).request.records == FOLDED
    assert plan(store(*raws(bob.log(1))).replica, row).request.records == AS_HELD
    target, server = store(), Honest(source.replica)
    assert exchange(Sync(target), bob.id, server) == [Finished(bob.id, 40 + RUN_CLAIMS)]
    assert server.bytes < 3_000
    assert target.replica.digest() == source.replica.digest()


def test_few_by_few_is_not_bulk(store, alice, bob):
    """An exchange that brought a run has news come with every signature again."""
    source = store(*raws([*alice.log(40), *bob.log(2)]))
    sync = Sync(store(), run=3)
    exchange(sync, bob.id, Honest(store(*raws(alice.log(40))).replica))
    assert exchange(sync, bob.id, Honest(source.replica)) == [Finished(bob.id, 2)]
    assert raws(sync._target.replica.claims(bob.id)) == raws(bob.log(2))
