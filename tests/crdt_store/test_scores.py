"""What claims prove, and what becomes of it when the replica takes them back."""

import gc

import pytest

from crdt_store.claims import NO_HASH, Kind
from crdt_store.evidence import SERVICE, Ledger, trials_of
from crdt_store.forks import Fork, ForkProof
from crdt_store.memory import MemoryStorage
from crdt_store.outcomes import Dropped, Forked, Inserted
from crdt_store.replica import Replica
from crdt_store.scores import Scores, Tally
from crdt_store.store import ClaimStore

NOW = 1_700_000_100_000


def held(me, *entries):
    replica, scores = Replica(), Scores(me)
    for entry in entries:
        scores.observe(replica.insert(entry.raw))
    return scores


def test_what_each_kind_proves(alice, bob):
    def of(kind, value=7, skill="string", subject=bob.id):
        return trials_of(alice.claim(0, kind=kind, value=value, skill=skill, subject=subject).claim)

    assert of(Kind.PROBE_PASSED) == ("string", 7, 0)
    assert of(Kind.PROBE_FAILED, skill="") == ("general", 0, 7)
    assert of(Kind.CALL_SERVED) == (SERVICE, 1, 0)
    assert of(Kind.CALLS_FAILED) == (SERVICE, 0, 7)
    assert of(Kind.OUTPUT_REFUTED) == (SERVICE, 0, 10)
    assert of(Kind.ROUND_ABORTED) == (SERVICE, 0, 1)
    nothing = (Kind.ROUND_WON, Kind.MEMBER_ADMITTED, Kind.FORK_PROVED, 999)
    assert [of(kind) for kind in nothing] == [None] * 4
    assert of(Kind.PROBE_PASSED, value=1001) is None
    assert of(Kind.PROBE_PASSED, skill=SERVICE) is None
    assert of(Kind.PROBE_PASSED, subject=alice.id) is None


def test_a_right_probe_counts_and_an_unknown_peer_is_low(alice, bob):
    scores = held(alice.id, alice.claim(0, subject=bob.id, kind=Kind.PROBE_PASSED, value=8))
    assert scores.tally(bob.id, "math", NOW) == Tally(8_000, 0)
    assert scores.tally(bob.id, "string", NOW) == Tally(0, 0)
    known, unknown = scores.score(bob.id, "math", NOW), scores.score(bob.id, "string", NOW)
    assert (known.mean_milli, known.weight_milli) == (750, 160)
    assert (unknown.mean_milli, unknown.weight_milli) == (333, 20)  # what bob can do elsewhere is a hint, and no weight
    nobody = scores.score("nobody", "string", NOW)
    assert (nobody.mean_milli, nobody.weight_milli) == (250, 20)
    assert unknown.low_milli < known.low_milli
    assert known.high_milli - known.low_milli < unknown.high_milli - unknown.low_milli


def test_a_flood_of_strangers_hides_nothing_and_adds_a_tenth_at_most(author, alice, bob):
    week = 7 * 86_400_000
    carol, dave = author(3), author(4)
    seen = [one.claim(0, subject=dave.id, kind=Kind.PROBE_PASSED, value=200, time=NOW - week) for one in (alice, carol)]
    told = carol.claim(1, seen[1].hash, subject=bob.id, kind=Kind.PROBE_PASSED, value=200, time=NOW - week)
    strangers = [author(number) for number in range(10, 70)]
    flood = [one.claim(0, subject=bob.id, kind=Kind.PROBE_PASSED, value=1000, time=NOW) for one in strangers]
    alone, flooded = held(alice.id, *seen, told), held(alice.id, *seen, told, *flood)
    quiet, loud = alone.tally(bob.id, "math", NOW), flooded.tally(bob.id, "math", NOW)
    assert quiet.right_milli > 15_000, "what carol said a week ago fills a third of a window"
    assert quiet.right_milli < loud.right_milli <= quiet.right_milli + 5_000
    assert loud.wrong_milli == quiet.wrong_milli == 0


def about(author, subject, count):
    log = []
    for seq in range(count):
        log.append(author.claim(seq, log[-1].hash if log else NO_HASH, subject=subject))
    return log


@pytest.mark.skipif(gc.is_tracked({}), reason="this Python's collector looks at every dictionary")
def test_the_collector_does_not_look_again_at_what_was_known_before(alice, bob, author):
    """Or it would look at all sums and mentions whenever ten thousand claims came, for 20 ms, in which the loop stands still."""
    store = ClaimStore(MemoryStorage(), alice.key, 1)
    log = about(bob, alice.id, 60)
    store.insert_opened([*about(author(3), alice.id, 60), *log[:30]])
    cell = store.scores.ledger.cell(alice.id, SERVICE)
    held = [store.scores.ledger._mentions[alice.id], cell.totals, *(cell.steps[step] for step in cell.order)]
    gc.collect()
    assert not any(map(gc.is_tracked, held))
    store.insert_opened(log[30:])
    assert not any(map(gc.is_tracked, held))
    assert cell.totals == {author(3).id: (60, 0), bob.id: (60, 0)}


def test_what_was_taken_in_waits_for_no_reader(alice, bob):
    store = ClaimStore(MemoryStorage(), alice.key, 1)
    store.insert_opened(about(bob, alice.id, 1))
    assert store.scores.ledger.touched == {}


def test_a_log_that_goes_costs_no_look_at_those_who_stay(alice, bob, author):
    """Who names a hundred thousand subjects, and then opens one epoch after the other, would hold the loop for 30 ms each."""
    ledger = Ledger(1_000)
    last = alice.claim(0, epoch=1, subject=bob.id)
    ledger.observe(Inserted(last))

    class Mentions(dict):
        def items(self):
            raise AssertionError("all subjects were looked at")

        __iter__ = keys = values = items

    ledger._mentions = Mentions(ledger._mentions)
    said = [alice.claim(0, epoch=2, subject=author(number).id, kind=kind) for number, kind in enumerate(Kind, 10)]
    for entry in [*said, *said]:
        ledger.observe(Inserted(entry))
    ledger.observe(Inserted(alice.claim(0, epoch=3, subject=bob.id), (Dropped(alice.id, 2),)))
    assert not any(list(ledger.mentions(entry.claim.subject)) for entry in said)
    assert [place[:2] for place in ledger.mentions(bob.id)] == [(alice.id, 1), (alice.id, 3)]
    ledger.observe(Forked(Fork(alice.id, 1, 0, ForkProof(b"", b""))))
    assert len(ledger._mentions) == len(ledger._places) == len(ledger._cells) == 0
