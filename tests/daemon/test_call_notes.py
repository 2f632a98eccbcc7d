"""Claims about calls: gathered, few, and none lost at the end."""

import pytest
import trio

from daemon.attempt import Served
from daemon.call_notes import ASIDE_SECONDS, MAX_FAILURES, SERVED_SECONDS, CallNotebook, CallNotes
from protocol.wire.ids import PeerId

ALICE, BOB = PeerId("alice"), PeerId("bob")


def test_a_first_call_is_written_soon_and_many_after_it_as_one() -> None:
    notes = CallNotes()
    notes.note(Served(ALICE, True, 0.2), 100.0)
    assert notes.take(100.0) == []
    assert notes.due == 100.0 + ASIDE_SECONDS
    assert notes.take(notes.due) == [Served(ALICE, True, 0.2)]
    for number in range(50):
        notes.note(Served(ALICE, True, 0.1 + 0.2 * (number % 2)), 101.0 + number / 100)
    assert notes.due == 100.0 + ASIDE_SECONDS + SERVED_SECONDS
    (written,) = notes.take(notes.due)
    assert (written.peer, written.ok, written.first_token_s) == (ALICE, True, pytest.approx(0.2))
    assert notes.due == float("inf")


def test_a_peer_that_was_away_is_written_soon_again() -> None:
    notes = CallNotes()
    for at in (0.0, 60.0):
        notes.note(Served(ALICE, True, None), at)
        assert notes.take(at + ASIDE_SECONDS) == [Served(ALICE, True, None)]


def test_every_failure_is_written_and_none_waits_for_a_success() -> None:
    notes = CallNotes()
    notes.note(Served(BOB, True, 0.1), 0.0)
    notes.take(ASIDE_SECONDS)
    notes.note(Served(BOB, True, 0.1), 1.0)
    failures = [Served(BOB, False, None), Served(ALICE, False, 3.0)]
    for failure in failures:
        notes.note(failure, 2.0)
    assert notes.take(2.0 + ASIDE_SECONDS) == failures
    assert notes.take(100.0) == [Served(BOB, True, 0.1)]
    for _ in range(2 * MAX_FAILURES):
        notes.note(failures[0], 200.0)
    assert len(notes.take(201.0)) == MAX_FAILURES


async def test_the_rest_is_written_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    written: list[tuple[float, Served]] = []
    notebook = CallNotebook(lambda calls: written.extend((trio.current_time(), call) for call in calls))
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notebook.run)
        notebook.note(Served(ALICE, True, 0.5))
        await trio.sleep(1)
        assert written == [(pytest.approx(start + ASIDE_SECONDS), Served(ALICE, True, 0.5))]
        notebook.note(Served(ALICE, True, 0.7))
        await trio.sleep(1)
        assert len(written) == 1
        nursery.cancel_scope.cancel()
    assert [call for _, call in written] == [Served(ALICE, True, 0.5), Served(ALICE, True, 0.7)]
