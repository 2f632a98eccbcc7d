"""What a log does with its records: as few as may be, and nothing twice."""

import pytest

from crdt_store.checkpoints import claims_of, compact
from crdt_store.claims import NO_HASH
from crdt_store.replica import Replica
from tests.crdt_store.test_checkpoints import folded, held, unlike_its_fields


@pytest.fixture
def half_odd(alice):
    """Ten claims, then ten that no row can stand for, and ten again, of which every second is odd."""
    log = alice.log(10)
    for seq in range(10, 30):
        previous = log[-1].hash
        log.append(unlike_its_fields(alice, seq, previous) if seq < 20 or seq % 2 else alice.claim(seq, previous))
    return log


def test_a_pass_of_compaction_makes_no_more_than_it_may(half_odd, alice):
    replica = held(*(e.raw for e in half_odd))
    whole = replica.digest()
    sizes = [[claims_of(change.entry) for change in replica.compact(alice.id, 1, keep=0)] for _ in range(8)]
    assert sizes == [[11], [2], [2], [2], [2], [2], [], []], "each pass makes as many as it may"
    assert [claims for _, claims in replica.records(alice.id, 1)] == [11, *[1] * 9, *[2] * 5]
    assert replica.digest() == whole
    assert [(e.claim, e.hash) for e in replica.claims()] == [(e.claim, e.hash) for e in half_odd]
    assert [e.claim.seq for e in replica.claims() if e.raw] == [*range(10, 20), *range(21, 30, 2)]


def test_a_log_of_odd_claims_alone_costs_compaction_nothing(alice, monkeypatch):
    log = [unlike_its_fields(alice, 0, NO_HASH)]
    for seq in range(1, 150):
        log.append(unlike_its_fields(alice, seq, log[-1].hash))
    replica = held(*(e.raw for e in log))
    monkeypatch.setattr("crdt_store.logs.read_record", None)
    assert replica.compact(alice.id, 4, keep=0) == replica.compact(alice.id, 4, keep=0) == []
    assert [raw for raw, _ in replica.records(alice.id, 1, folded=True)] == [e.raw for e in log]


def test_what_comes_behind_a_compacted_log_is_put_together_with_it(alice):
    log = alice.log(300)
    replica = Replica()
    for step in range(0, 300, 7):
        for entry in log[step : step + 7]:
            replica.insert(entry.raw, trusted=True)
        replica.compact(alice.id, 1_000, keep=(step // 7) % 3)
    folded(replica)
    assert [claims for _, claims in replica.records(alice.id, 1)] == [64, 64, 64, 64, 44]


def test_held_records_are_not_verified_again_when_they_are_read(alice, monkeypatch):
    log = alice.log(150)
    replica = held(compact(log[:60]).raw, *(e.raw for e in log[60:90]), compact(log[90:150]).raw)

    def refused(*_):
        raise AssertionError("a claim that is held was hashed again")

    monkeypatch.setattr("crdt_store.checkpoints.statement_hash", refused)
    monkeypatch.setattr("crdt_store.checkpoints.expand", refused)
    assert [e.hash for e in replica.claims()] == [e.hash for e in log]
    given = []
    for start in (0, 1, 30, 59, 90, 120, 149):
        assert replica.entry(alice.id, 1, start).hash == log[start].hash
        given.append((log[start : 60 if start < 60 else 150], *next(replica.records(alice.id, 1, start, 1))))
    monkeypatch.undo()
    for claims, raw, count in given:
        assert (raw, count) == (compact(claims).raw, len(claims))
