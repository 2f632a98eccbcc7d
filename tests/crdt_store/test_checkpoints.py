"""One signature for many claims: nothing that a replica says of itself changes, nothing false gets in, and forks are proved."""

import io
import sqlite3
from itertools import product

import pytest

from crdt_store.archive import FIRST, page, read, write
from crdt_store.audit import Audit
from crdt_store.checkpoints import (
    CHECKPOINT_CLAIMS,
    Checkpoint,
    Row,
    claims_of,
    compact,
    is_checkpoint,
    open_record,
    read_record,
    stretch,
)
from crdt_store.claims import DOMAIN, NO_HASH, Kind, SignedClaim, read_claim
from crdt_store.explain import explain
from crdt_store.forks import ForkProof, open_proof
from crdt_store.memory import MemoryStorage
from crdt_store.outcomes import Duplicate, Forked, Gap, Ignored, Inserted
from crdt_store.own_log import Statement
from crdt_store.replica import Replica
from crdt_store.room import Bounds
from crdt_store.scores import Scores
from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore
from daemon.claim_archive import check_file
from protocol.wire.codec import decode, encode
from protocol.wire.envelope import seal
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_CHECKPOINT_BYTES

NOW = 1_700_000_000_000


def held(*records: bytes, bounds: Bounds | None = None) -> Replica:
    replica = Replica(bounds)
    for raw in records:
        replica.insert(raw)
    return replica


def folded(replica: Replica) -> Replica:
    for issuer in replica.issuers():
        replica.compact(issuer, 1_000, keep=0)
    return replica


def unlike_its_fields(author, seq, previous) -> SignedClaim:
    """A claim of a later version, with a field that is not known here."""
    fields = author.claim(seq, previous).claim
    payload = encode([*(getattr(fields, name) for name in fields.__struct_fields__), "a later field"])
    return read_claim(seal(DOMAIN, payload, author.key))


def test_compacting_changes_neither_hashes_nor_claims_nor_quota(alice, bob):
    log = [*alice.log(300), *alice.log(90, epoch=2), *bob.log(3)]
    plain, compacted = held(*(e.raw for e in log)), folded(held(*(e.raw for e in log)))
    assert compacted.digest() == plain.digest()
    assert [(e.claim, e.hash) for e in compacted.claims()] == [(e.claim, e.hash) for e in plain.claims()]
    assert (len(compacted), compacted.heads(alice.id)) == (393, plain.heads(alice.id))
    assert compacted.total_bytes < plain.total_bytes / 5
    assert [claims for _, claims in compacted.records(alice.id, 1)] == [64, 64, 64, 64, 44]
    assert sum(not e.raw for e in compacted.claims()) == 393 - 5 - 2 - 1
    assert compacted.compact(alice.id, 10, keep=0) == [], "once is enough"


def test_the_newest_claims_keep_their_signatures(alice):
    replica = held(*(e.raw for e in [*alice.log(2, epoch=1), *alice.log(200, epoch=2)]))
    assert len(replica.compact(alice.id, 1)) == 1, "one at a time"
    replica.compact(alice.id, 100)
    assert [claims for _, claims in replica.records(alice.id, 1)] == [2]
    assert [claims for _, claims in replica.records(alice.id, 2)] == [64, 64, 8, *[1] * 64]
    assert replica.compact(alice.id, 100) == []
    assert held(*(e.raw for e in alice.log(128))).compact(alice.id, 100) == []


def test_a_claim_that_no_row_can_stand_for_keeps_its_signature(alice):
    log = alice.log(3)
    log.append(unlike_its_fields(alice, 3, log[-1].hash))
    log += alice.log(6, after=[*log[:3], log[3]])[4:]
    replica = folded(held(*(e.raw for e in log)))
    assert replica.digest() == held(*(e.raw for e in log)).digest()
    assert [claims for _, claims in replica.records(alice.id, 1)] == [4, 2]
    assert next(replica.records(alice.id, 1, 3)) == (log[3].raw, 1)


@pytest.mark.parametrize("first", range(1, 8))
def test_a_checkpoint_goes_on_from_wherever_we_are(alice, first):
    log = alice.log(8)
    for start, end in product(range(8), range(1, 9)):
        if start >= end:
            continue
        replica = held(*(e.raw for e in log[:first]))
        outcome = replica.insert(compact(log[start:end]).raw)
        if start > first:
            assert outcome == Gap(alice.id, 1, first)
        elif end <= first:
            assert outcome == Duplicate()
        else:
            assert isinstance(outcome, Inserted)
            assert claims_of(outcome.entry) == end - first
            assert replica.digest() == held(*(e.raw for e in log[:end])).digest()
            assert sum(claims for _, claims in replica.records(alice.id, 1)) == end


def test_any_part_of_a_log_can_be_given_however_it_is_held(alice):
    log = alice.log(150)
    replica = held(*(e.raw for e in log[:20]), compact(log[20:60]).raw, *(e.raw for e in log[60:100]), compact(log[100:150]).raw)
    for start in range(0, 150, 3):
        for mode in (False, True):
            given = list(replica.records(alice.id, 1, start, 40, mode))
            taken = Replica()
            for raw in (*(e.raw for e in log[:start]), *(raw for raw, _ in given)):
                taken.insert(raw, trusted=True)
            assert taken.length(alice.id, 1) >= min(start + 40, 150)
            assert taken.length(alice.id, 1) <= min(start + 40 + CHECKPOINT_CLAIMS, 150)
            assert sum(claims for _, claims in given) == taken.length(alice.id, 1) - start
            assert taken.hash_at(alice.id, 1, start) == log[start].hash


def lies(checkpoint: Checkpoint, other: bytes) -> dict[str, Checkpoint | bytes]:
    previous, subjects, skills, rows, claim = (getattr(checkpoint, name) for name in checkpoint.__struct_fields__)
    first = rows[0]
    changed = {name: getattr(first, name) for name in first.__struct_fields__}

    def row(**changes: object) -> Checkpoint:
        return Checkpoint(previous, subjects, skills, (Row(**{**changed, **changes}), *rows[1:]), claim)

    return {
        "another value": row(value=99),
        "another kind": row(kind=9),
        "another time": row(later=5),
        "a time before time": row(later=-(2**53) + 1),
        "evidence of nothing": row(evidence=NO_HASH),
        "other evidence": row(evidence=bytes([1]) * 32),
        "a skill that is not listed": row(skill=5),
        "a subject that is not listed": row(subject=5),
        "another previous hash": Checkpoint(bytes([1]) * 32, subjects, skills, rows, claim),
        "one row less": Checkpoint(previous, subjects, skills, rows[1:], claim),
        "one row twice": Checkpoint(previous, subjects, skills, (rows[0], *rows), claim),
        "rows in another order": Checkpoint(previous, subjects, skills, rows[::-1], claim),
        "a subject too many": Checkpoint(previous, subjects + bytes(32), skills, rows, claim),
        "half a subject": Checkpoint(previous, subjects + b"x", skills, rows, claim),
        "a skill too many": Checkpoint(previous, subjects, (*skills, "z"), rows, claim),
        "another's claim": Checkpoint(previous, subjects, skills, rows, other),
        "a forged signature": Checkpoint(previous, subjects, skills, rows, claim[:-1] + bytes([claim[-1] ^ 1])),
        "bytes behind it": encode(checkpoint) + b"\0",
        "a longer number": encode(checkpoint).replace(encode(first), encode(first)[:-2] + b"\xd1\xff\xfd\xc0", 1),
    }


def test_whatever_is_changed_in_a_checkpoint_it_is_refused(alice, bob):
    log = [alice.claim(0, time=NOW)]
    for seq in range(1, 4):
        log.append(alice.claim(seq, log[-1].hash, subject=bob.id, value=seq, time=NOW + seq))
    made = compact(log)
    assert isinstance(open_record(made.raw), SignedClaim)
    for name, lie in lies(decode(Checkpoint, made.raw), bob.log(4)[-1].raw).items():
        raw = lie if isinstance(lie, bytes) else encode(lie)
        assert is_checkpoint(raw), name
        replica = Replica()
        with pytest.raises(RemoteError) as refused:
            replica.insert(raw)
        assert refused.value.code in (Code.MALFORMED, Code.BAD_SIGNATURE), name
        assert replica.digest() == Replica().digest(), name


def test_a_checkpoint_has_a_largest_size(alice, author):
    entries = []
    for seq in range(CHECKPOINT_CLAIMS):
        long = {"subject": author(seq + 1).id, "skill": f"{seq:063d}", "evidence": bytes([seq + 1]) * 32}
        odd = {"value": -(2**52) - seq, "kind": 0xFF00 + seq, "time": (2**50) * (seq % 2)}
        entries.append(alice.claim(seq, entries[-1].hash if entries else NO_HASH, **long, **odd))
    made = compact(entries)
    assert len(made.raw) <= MAX_CHECKPOINT_BYTES - 2_000, "with a claim of 4 KiB at its end it still fits"
    assert [one.claim for one in stretch(open_record(made.raw))] == [one.claim for one in entries]
    assert claims_of(read_record(made.raw)) == CHECKPOINT_CLAIMS


@pytest.mark.parametrize(("ours", "theirs"), list(product(["plain", "compacted"], repeat=2)))
@pytest.mark.parametrize("parts", [0, 3, 5])
def test_branches_are_proved_whoever_compacted(alice, ours, theirs, parts):
    base = alice.log(parts)
    sides = []
    for value, how in ((1, ours), (2, theirs)):
        branch = alice.log(8, value=value, after=base)
        sides.append(compact(branch) if how == "compacted" else branch)
    first = held(*([sides[0].raw] if ours == "compacted" else [e.raw for e in sides[0]]))
    told = [first.insert(raw) for raw in ([sides[1].raw] if theirs == "compacted" else [e.raw for e in sides[1]])]
    proved = next(outcome.fork for outcome in told if isinstance(outcome, Forked))
    assert (proved.epoch, proved.seq) == (1, parts)
    assert proved.proof.plain == ((ours, theirs) == ("plain", "plain"))
    assert open_proof(decode(ForkProof, encode(proved.proof))) == proved
    witness = held(alice.claim(0, epoch=9).raw)
    assert isinstance(witness.insert_proof(proved.proof), Forked)
    assert (witness.digest(), len(witness)) == (first.digest(), 0)


def test_a_checkpoint_that_denies_our_last_claim_proves_it(alice):
    left, right = alice.log(4, value=1), alice.log(8, value=2)
    replica = held(*(e.raw for e in left))
    assert isinstance(replica.insert(compact(right[4:]).raw), Forked)


def test_nobody_is_blamed_by_two_records_that_fit_one_log(alice, bob):
    log = alice.log(8)
    pieces = [log[2].raw, compact(log[2:5]).raw, compact(log[3:8]).raw, log[3].raw, compact(bob.log(4)[2:]).raw]
    for first, second in product(pieces, repeat=2):
        with pytest.raises(RemoteError):
            open_proof(ForkProof(first, second))


def test_frozen_retired_and_full_are_as_with_claims(alice, bob):
    made = compact(alice.log(8))
    replica = held(alice.claim(0, value=1).raw, alice.claim(0, value=2).raw)
    assert replica.insert(made.raw) == Ignored("frozen")
    small = Bounds(issuer_claims=4, issuer_epochs=2)
    replica = held(*(compact(alice.log(4, epoch)).raw for epoch in (2, 3)), bounds=small)
    assert [log.epoch for log in replica.heads(alice.id).logs] == [3]
    assert replica.insert(made.raw) == Ignored("retired")
    tight = Replica(Bounds(total_bytes=2 * len(made.raw) + 10))
    assert isinstance(tight.insert(made.raw), Inserted)
    assert tight.insert(compact(alice.log(8, epoch=2)).raw) == Ignored("full")
    assert tight.insert(alice.claim(8, made.hash).raw) == Ignored("full")
    assert tight.insert(compact(alice.log(12)).raw) == Ignored("full"), "what it goes on with finds no room"
    assert isinstance(tight.insert(compact(alice.log(12, value=1)).raw), Forked), "a proof needs none"


def test_compacting_gives_room(alice):
    log = alice.log(40)
    replica = Replica(Bounds(strangers=0, vouched=1, total_bytes=2 * 6_000))
    replica.room.vouch([alice.id])
    outcomes = [replica.insert(entry.raw) for entry in log]
    full = outcomes.index(Ignored("full"))
    folded(replica)
    assert isinstance(replica.insert(log[full].raw), Inserted)


# On disk


@pytest.fixture(params=["sqlite", "memory"])
def reopen(request, tmp_path, alice):
    memory = MemoryStorage()
    opened = []

    def open_store():
        if opened:
            opened.pop().close()
        storage = memory if request.param == "memory" else ClaimStorage(tmp_path / "claims.db")
        opened.append(ClaimStore(storage, alice.key, NOW))
        return opened[-1]

    yield open_store
    opened.pop().close()


def test_checkpoints_survive_a_restart_and_our_own_claims_keep_their_signatures(reopen, alice, bob):
    store = reopen()
    said = [store.record(Statement(bob.id, Kind.CALL_SERVED), NOW).raw for _ in range(5)]
    log = bob.log(150)
    store.insert_many([entry.raw for entry in log])
    store.insert_many([compact(bob.log(10, epoch=2)).raw])
    digest = store.replica.digest()
    for issuer in (alice.id, bob.id):
        store.compact(issuer, 100, keep=0)
    store.save()
    rows = store._storage.load().claims
    assert [claims_of(read_record(raw)) for raw in rows if raw not in said] == [64, 64, 22, 10]
    assert set(said) <= set(rows)
    again = reopen()
    assert (again.replica.digest(), again.damaged) == (digest, 0)
    assert [e.hash for e in again.replica.claims(bob.id)][:150] == [e.hash for e in log]
    tallies = [one.scores.tally(bob.id, "service", NOW) for one in (store, again)]
    assert tallies[0] == tallies[1]


def test_our_own_past_comes_back_as_a_checkpoint_behind_what_a_backup_kept(tmp_path, alice, bob):
    store = ClaimStore(ClaimStorage(tmp_path / "claims.db"), alice.key, NOW)
    past = [store.record(Statement(bob.id, Kind.CALL_SERVED), NOW) for _ in range(3)]
    lost = [alice.claim(3, past[-1].hash, epoch=store.epoch)]
    store.close()
    again = ClaimStore(ClaimStorage(tmp_path / "claims.db"), alice.key, NOW)
    lost.append(alice.claim(4, lost[-1].hash, epoch=store.epoch))
    assert isinstance(again.insert_many([compact([*past, *lost]).raw])[0], Inserted)
    digest = again.replica.digest()
    again.close()
    last = ClaimStore(ClaimStorage(tmp_path / "claims.db"), alice.key, NOW)
    assert (last.replica.digest(), last.replica.forks(), last.damaged) == (digest, (), 0)
    assert last.epoch > again.epoch > store.epoch
    last.close()
    assert check_file(tmp_path / "claims.db").fault == ""


def test_a_changed_byte_in_a_checkpoint_on_disk_is_named_and_costs_the_rest_of_that_log(tmp_path, alice, bob):
    path = tmp_path / "claims.db"
    store = ClaimStore(ClaimStorage(path), alice.key, NOW)
    log = bob.log(80)
    store.insert_many([entry.raw for entry in log])
    store.compact(bob.id, 10, keep=0)
    store.close()
    assert check_file(path).claims == 80
    with sqlite3.connect(path) as db:
        (raw,) = db.execute("SELECT raw FROM claims WHERE seq = 79").fetchone()
        bad = bytearray(raw)
        bad[60] ^= 1
        db.execute("UPDATE claims SET raw = ? WHERE seq = 79", (bytes(bad),))
    db.close()
    report = check_file(path)
    assert (report.row, report.offset) == (f"claim {bob.id} 1/79", 60)
    again = ClaimStore(ClaimStorage(path), alice.key, NOW)
    assert (again.damaged, len(again.replica)) == (1, 64)
    assert isinstance(again.insert_many([compact(log[64:]).raw])[0], Inserted)
    again.close()


def test_an_archive_holds_checkpoints(alice, bob):
    replica = folded(held(*(e.raw for e in [*alice.log(130), *bob.log(2)])))
    replica.insert(compact(bob.log(2, value=5)).raw)
    replica.insert(compact(bob.log(3, epoch=0)).raw)
    assert not replica.forks()[0].proof.plain
    pieces, after = [], FIRST
    while after is not None:
        part = page(replica, after, 500)
        pieces += part.records
        after = part.last
    raw = b"".join(write(pieces))
    again = Replica()
    for framed in read(io.BytesIO(raw).read):
        (again.insert_proof if isinstance(framed.record, ForkProof) else again.insert)(framed.record)
    assert again.digest() == replica.digest()
    report = Audit().archive(io.BytesIO(raw).read)
    assert (report.claims, report.proofs, report.fault) == (133, 1, "")
    wrong = raw.replace(b"K" + len(pieces[1] if isinstance(pieces[1], bytes) else b"").to_bytes(3, "big"), b"C\0\0\1", 1)
    assert Audit().archive(io.BytesIO(wrong).read).fault


def test_an_archive_of_the_first_version_is_read(alice):
    raw = b"".join(write([entry.raw for entry in alice.log(3)]))
    assert Audit().archive(io.BytesIO(raw[:9] + b"\1" + raw[10:]).read).claims == 3


def test_evidence_is_told_from_a_checkpoint_as_from_claims(alice, bob):
    log = []
    for seq in range(100):
        log.append(alice.claim(seq, log[-1].hash if log else NO_HASH, subject=bob.id, kind=Kind.PROBE_PASSED, value=1, time=NOW))
    told = []
    for raws in ([e.raw for e in log], [compact(log[:64]).raw, compact(log[64:]).raw]):
        scores = Scores(bob.id)
        replica = Replica(observe=scores.observe)
        for raw in raws:
            replica.insert(raw)
        lines = explain(replica, scores, bob.id, "math", NOW)
        told.append([(line.entry.claim, line.entry.hash, line.weight_milli, line.adds_right_milli) for line in lines])
    assert len(told[0]) == 100
    assert told[0] == told[1]
