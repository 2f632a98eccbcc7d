"""Every claim about a peer is told with what it adds, and what all of them add is the score's tally."""

from collections.abc import Sequence

import pytest

from crdt_store.claims import NO_HASH, Kind, SignedClaim
from crdt_store.explain import explain
from crdt_store.replica import Replica
from crdt_store.scores import Parameters, Scores

HOUR = 3_600_000
NOW = 1_700_000_000_000
SAID = tuple[object, Kind, int, str]


@pytest.fixture
def mesh(author):
    """Alice reads; bob is known to be right, carol lies about dave, erin is a stranger, frank has two histories."""
    people = {name: author(number) for number, name in enumerate(("alice", "bob", "carol", "dave", "erin", "frank"), 1)}
    scores = Scores(people["alice"].id, Parameters())
    replica = Replica(observe=scores.observe)
    logs: dict[str, list[SignedClaim]] = {name: [] for name in people}

    def say(issuer: str, subject: str, kind: Kind, value: int = 1, skill: str = "string", time: int = NOW) -> None:
        log = logs[issuer]
        previous = log[-1].hash if log else NO_HASH
        about = {"subject": people[subject].id, "kind": kind, "value": value, "skill": skill, "time": time}
        log.append(people[issuer].claim(len(log), previous, **about))
        replica.insert(log[-1].raw)

    def told(subject: str, skill: str | None = "string"):
        return explain(replica, scores, people[subject].id, skill, NOW)

    for passed, failed, subject in ((40, 10, "bob"), (20, 30, "carol"), (35, 15, "dave")):
        for issuer in ("alice", "bob", "carol"):
            if issuer != subject:
                say(issuer, subject, Kind.PROBE_PASSED, passed)
                say(issuer, subject, Kind.PROBE_FAILED, failed)
    return people, scores, replica, say, told


def sums(lines: Sequence) -> tuple[int, int]:
    return sum(line.adds_right_milli for line in lines), sum(line.adds_wrong_milli for line in lines)


def test_what_the_lines_add_is_the_tally(mesh):
    people, scores, _, say, told = mesh
    say("erin", "dave", Kind.PROBE_PASSED, 9)
    say("bob", "dave", Kind.PROBE_FAILED, 3, time=NOW - 400 * HOUR)
    for name in ("bob", "carol", "dave"):
        tally = scores.tally(people[name].id, "string", NOW)
        right, wrong = sums(told(name))
        assert (right, wrong) == pytest.approx((tally.right_milli, tally.wrong_milli), abs=len(told(name)))


def test_each_line_says_who_how_far_believed_and_why(mesh):
    people, _, _, say, told = mesh
    say("erin", "dave", Kind.PROBE_PASSED, 9, "logic")
    say("bob", "dave", Kind.PROBE_PASSED, 5, time=NOW + 100 * HOUR)
    say("bob", "dave", Kind.ROUND_WON, 900, "")
    say("dave", "dave", Kind.PROBE_PASSED, 1000)
    lines = {(line.entry.claim.issuer, line.entry.claim.kind, line.entry.claim.value): line for line in told("dave", None)}
    alice, bob, erin = (people[name].id for name in ("alice", "bob", "erin"))
    own = lines[alice, Kind.PROBE_PASSED, 35]
    assert (own.own, own.weight_milli, own.note) == (True, 1000, "what we saw")
    assert lines[bob, Kind.PROBE_PASSED, 35].note.startswith("agreed with us on 40 shared trials")
    stranger = lines[erin, Kind.PROBE_PASSED, 9]
    assert (stranger.note, stranger.weight_milli) == ("a stranger", 12)
    assert stranger.adds_right_milli < own.adds_right_milli / 30
    assert lines[bob, Kind.PROBE_PASSED, 5].note == "its time has not come yet"
    assert lines[bob, Kind.ROUND_WON, 900].note == "to win a round is the swarm's opinion, and no evidence"
    assert lines[people["dave"].id, Kind.PROBE_PASSED, 1000].note == "its own word"
    assert [line.adds_right_milli for line in lines.values() if not line.skill] == [0, 0]


def test_a_liar_is_left_out_and_named(mesh):
    people, scores, _, say, told = mesh
    before = scores.score(people["dave"].id, "string", NOW)
    for _ in range(9):
        say("carol", "dave", Kind.PROBE_FAILED, 100)
    lines = [line for line in told("dave") if line.entry.claim.issuer == people["carol"].id]
    assert {line.note for line in lines} == {"left out: contradicts the others beyond chance"}
    assert sums(lines) == (0, 0)
    after = scores.score(people["dave"].id, "string", NOW)
    assert abs(after.weight_milli - before.weight_milli) <= before.weight_milli // 20


def test_a_peer_with_two_histories_is_believed_nothing_and_weighs_nothing(mesh):
    people, scores, replica, say, told = mesh
    frank, dave = people["frank"], people["dave"]
    say("alice", "frank", Kind.PROBE_PASSED, 50)
    say("frank", "dave", Kind.PROBE_PASSED, 50)
    assert scores.score(frank.id, "string", NOW).weight_milli > 900
    later = [frank.claim(0, epoch=2, value=value, subject=dave.id, kind=Kind.PROBE_PASSED) for value in (1, 2)]
    for entry in later:
        replica.insert(entry.raw)
    assert [line.note for line in told("dave") if line.entry.claim.issuer == frank.id] == ["its issuer signed two histories"]
    assert scores.score(frank.id, "string", NOW).weight_milli == 0
    assert sums([line for line in told("dave") if line.entry.claim.issuer == frank.id]) == (0, 0)


def test_a_witness_that_a_private_mesh_removed_is_believed_nothing(mesh):
    people, scores, _, say, told = mesh
    bob = people["bob"]
    assert sums([line for line in told("dave") if line.entry.claim.issuer == bob.id]) != (0, 0)
    scores.witnesses.exclude(bob.id)
    assert scores.witnesses.weight(bob.id) == 0
    assert sums([line for line in told("dave") if line.entry.claim.issuer == bob.id]) == (0, 0)
    say("bob", "dave", Kind.PROBE_PASSED, 35)  # nor what comes of it later
    assert sums([line for line in told("dave") if line.entry.claim.issuer == bob.id]) == (0, 0)
