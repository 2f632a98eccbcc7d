"""Whose turn it is: slots and the queue as callers share them, and what is said to those who are sent away."""

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.admission import MAX_TURNS, FairSlots, Ticket
from protocol.wire.errors import Code, RemoteError


def served_order(slots: FairSlots, tickets: list[Ticket]) -> list[Hashable]:
    """Callers in the order in which one slot is given to them, each keeping it for a second."""
    order, now = list[Hashable](), 0.0
    left = list(tickets)
    while running := [ticket for ticket in left if ticket.since is not None]:
        (ticket,) = running
        order.append(ticket.caller)
        now += 1.0
        left.remove(ticket)
        slots.leave(ticket, now)
    assert left == []
    return order


def test_callers_take_turns_however_many_requests_each_has() -> None:
    slots = FairSlots(1, 100, {})
    tickets = [slots.enter("busy", 0.0) for _ in range(8)] + [slots.enter("late", 0.0), slots.enter("late", 0.0)]
    assert served_order(slots, tickets) == ["busy", "late", "busy", "late", *["busy"] * 6]


def test_of_strangers_that_come_and_go_while_the_box_is_never_idle_few_are_remembered() -> None:
    slots = FairSlots(1, 4, {})
    busy = slots.enter("busy", 0.0)
    waiting = slots.enter("waiting", 0.0)
    for number in range(5 * MAX_TURNS):
        slots.leave(slots.enter(f"name {number}", 0.0), 0.0)
    assert len(slots._turn) <= 2 * MAX_TURNS + 2
    slots.leave(busy, 1.0)
    assert waiting.since == 1.0


def test_a_heavier_caller_has_more_turns_and_not_all() -> None:
    slots = FairSlots(1, 100, {"owner": 4.0})
    tickets = [slots.enter(caller, 0.0) for caller in ["peer"] * 10 + ["owner"] * 10]
    order = served_order(slots, tickets)
    assert order[:11].count("owner") == 8
    assert order[:11].count("peer") == 3


def test_who_was_away_saved_up_no_turns() -> None:
    slots = FairSlots(1, 100, {})
    assert served_order(slots, [slots.enter("a", 0.0) for _ in range(5)]) == ["a"] * 5
    running = slots.enter("a", 9.0)
    waiting = [slots.enter(caller, 9.0) for caller in ("a", "b", "b", "b", "a")]
    assert served_order(slots, [running, *waiting]) == ["a", "b", "a", "b", "a", "b"]


def test_a_full_queue_gives_the_newest_place_of_the_caller_with_the_most() -> None:
    slots = FairSlots(1, 3, {})
    flood = [slots.enter("flood", 0.0) for _ in range(4)]
    with pytest.raises(RemoteError) as caught:
        slots.enter("flood", 0.0)
    assert caught.value.code is Code.OVERLOADED
    guest = slots.enter("guest", 0.0)
    assert [ticket.refusal is not None for ticket in flood] == [False, False, False, True]
    assert flood[3].decided.is_set()
    with pytest.raises(RemoteError):  # a second one would give the guest as many as the other keeps
        slots.enter("guest", 0.0)
    slots.leave(flood[3], 0.0)
    assert served_order(slots, [*flood[:3], guest]) == ["flood", "guest", "flood", "flood"]


def test_retry_after_follows_the_queue_and_the_measured_service_time() -> None:
    slots = FairSlots(2, 4, {})
    assert slots.retry_after() == 1.0, "nothing is known yet"
    for _ in range(3):
        slots.leave(slots.enter("a", 10.0), 20.0)
    assert slots.retry_after() == 1.0, "a slot is free"
    tickets = [slots.enter(place, 20.0) for place in range(6)]
    assert slots.retry_after() == pytest.approx(5 * 10.0 / 2)
    with pytest.raises(RemoteError) as caught:
        slots.enter("x", 20.0)
    assert caught.value.retry_after == pytest.approx(25.0)
    slots.leave(tickets[5], 20.0)
    assert slots.retry_after() == pytest.approx(20.0)
    slots.leave(tickets[0], 10_000.0)
    assert slots.retry_after() == 120.0


def test_another_number_of_slots_holds_at_once() -> None:
    slots = FairSlots(1, 10, {})
    tickets = [slots.enter("a", 0.0) for _ in range(5)]
    slots.resize(3, 0.0)
    assert (slots.running, slots.waiting) == (3, 2)
    slots.resize(1, 0.0)
    slots.leave(tickets[0], 0.0)
    assert (slots.running, slots.waiting) == (2, 2)


@given(st.integers(1, 3), st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_slots_and_room_hold_and_no_slot_idles_while_somebody_waits(count: int, room: int, steps: list[tuple[bool, int]]) -> None:
    slots, inside = FairSlots(count, room, {0: 4.0}), list[Ticket]()
    for now, (enters, who) in enumerate(steps):
        if enters:
            try:
                inside.append(slots.enter(who, float(now)))
            except RemoteError:
                assert slots.waiting == room
        elif inside:
            slots.leave(inside.pop(who % len(inside)), float(now))
        inside = [ticket for ticket in inside if ticket.refusal is None]
        assert slots.running <= count
        assert slots.waiting <= room
        assert slots.waiting == 0 or slots.running == count
        assert slots.running + slots.waiting == len(inside)
        assert all((ticket.since is not None) == ticket.decided.is_set() for ticket in inside)
    for ticket in inside:
        slots.leave(ticket, 0.0)
    assert (slots.running, slots.waiting) == (0, 0)
