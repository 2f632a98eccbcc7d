"""Claims about calls: gathered, few, within a budget, and none lost at the end."""

from random import Random

import trio

from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from daemon.attempt import Served
from daemon.call_notes import ASIDE_SECONDS, CLAIMS_AT_ONCE, MAX_KEPT, SPACING_SECONDS, CallNotebook, CallNotes
from protocol.wire.ids import PeerId

ALICE, BOB = PeerId("alice"), PeerId("bob")


def served(peer: PeerId, milliseconds: int = 0, more: int = 0, skill: str = "") -> list[Statement]:
    first = [Statement(peer, Kind.CALL_SERVED, skill, milliseconds)]
    return first + ([Statement(peer, Kind.CALLS_SERVED, skill, more)] if more else [])


def test_a_first_call_is_written_soon_and_many_after_it_as_one_with_their_number() -> None:
    notes = CallNotes()
    notes.note(Served(ALICE, True, 0.2), 100.0)
    assert notes.take(100.0) == []
    assert notes.due == 100.0 + ASIDE_SECONDS
    assert notes.take(notes.due) == served(ALICE, 200)
    for number in range(50):
        notes.note(Served(ALICE, True, 0.1 + 0.2 * (number % 2)), 101.0 + number / 100)
    assert notes.due == 100.0 + ASIDE_SECONDS + SPACING_SECONDS
    assert notes.take(notes.due) == served(ALICE, 200, 49)
    assert notes.due == float("inf")


def test_skills_and_outcomes_are_said_apart() -> None:
    notes = CallNotes()
    for skill, ok in (("arithmetic", True), ("code", True), ("code", False), ("code", False)):
        notes.note(Served(ALICE, ok, 0.05 if ok else None, skill=skill), 0.0)
    failed = [Statement(ALICE, Kind.CALL_FAILED, "code"), Statement(ALICE, Kind.CALLS_FAILED, "code", 1)]
    assert notes.take(ASIDE_SECONDS) == [*served(ALICE, 50, skill="arithmetic"), *served(ALICE, 50, skill="code"), *failed]


def test_a_peer_that_was_away_is_written_soon_again() -> None:
    notes = CallNotes()
    for at in (0.0, 60.0):
        notes.note(Served(ALICE, True, None), at)
        assert notes.take(at + ASIDE_SECONDS) == served(ALICE)


def test_no_failure_waits_for_a_success() -> None:
    notes = CallNotes()
    notes.note(Served(BOB, True, 0.1), 0.0)
    notes.take(ASIDE_SECONDS)
    notes.note(Served(BOB, True, 0.1), 1.0)
    notes.note(Served(BOB, False, None), 2.0)
    assert notes.take(2.0 + ASIDE_SECONDS) == [Statement(BOB, Kind.CALL_FAILED)]
    assert notes.take(100.0) == served(BOB, 100)


def test_more_than_a_claim_can_count_takes_more_claims() -> None:
    notes = CallNotes()
    for _ in range(2_501):
        notes.note(Served(BOB, False, None), 0.0)
    assert [said.value for said in notes.take(1.0)] == [0, 1000, 1000, 500]


def test_busy_hours_stay_in_the_budget_and_every_call_is_counted() -> None:
    """40 peers called as fast as can be: the claims of two hours are their budget and what may be had at once."""
    notes, rng, said = CallNotes(), Random(1), list[Statement]()
    calls = 0
    now = 0.0
    while now < 7_200:
        now += 1.0
        for _ in range(5):
            notes.note(Served(PeerId(f"peer-{rng.randrange(40)}"), rng.random() < 0.9, 0.1), now)
            calls += 1
        if notes.due <= now:
            said += notes.take(now)
    assert len(said) <= 7_200 * 6 / 60 + CLAIMS_AT_ONCE + 2
    said += notes.take(now, everything=True)
    more = (Kind.CALLS_SERVED, Kind.CALLS_FAILED)
    assert sum(one.value if one.kind in more else 1 for one in said) == calls


def test_what_is_kept_is_bounded() -> None:
    notes = CallNotes()
    for number in range(2 * MAX_KEPT):
        notes.note(Served(PeerId(f"peer-{number}"), True, 0.1), 0.0)
    assert len(notes.take(1.0, everything=True)) == MAX_KEPT


async def test_the_rest_is_written_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    written: list[Statement] = []
    notebook = CallNotebook(written.extend)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notebook.run)
        notebook.note(Served(ALICE, True, 0.5))
        await trio.sleep(1)
        assert written == served(ALICE, 500)
        notebook.note(Served(ALICE, True, 0.7))
        await trio.sleep(1)
        assert len(written) == 1
        nursery.cancel_scope.cancel()
    assert written == served(ALICE, 500) + served(ALICE, 700)
