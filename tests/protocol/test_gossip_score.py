"""What neighbours in gossip are worth: no way of not forwarding, and none of forging, keeps a score that is not negative."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.gossip.score import Scores, Weights

W = Weights()
TOPIC = "t"
MINUTES = 600
HONEST = [f"h{number}" for number in range(6)]
WRITER = "w"


@st.composite
def freeloading(draw: st.DrawFn) -> dict[str, Any]:
    """How a peer avoids forwarding: when it leaves the mesh and comes back, what it writes itself, how little it hands on, and
    how much credit it gathered by half an hour of honest work before, in the mesh or outside."""
    return {
        "earned": draw(st.integers(0, 2000)),
        "worked inside": draw(st.booleans()),
        "rate": draw(st.sampled_from([0.3, 1.0, 3.0])),
        "hands_on": draw(st.floats(0, 0.9 * W.need)),
        "repeats": draw(st.integers(1, 5)),
        "own": draw(st.integers(0, 20)),
        "away": draw(st.lists(st.tuples(st.integers(0, MINUTES - 60), st.integers(1, 40)), max_size=5)),
        "late": draw(st.booleans()),
    }


@settings(max_examples=150, deadline=None)
@given(freeloading(), st.integers(0, 1 << 30))
def test_whoever_does_not_forward_ends_negative_within_ten_minutes(how: dict[str, Any], seed: int) -> None:
    scores, now, rng = Scores(), 0.0, Random(seed)
    if how["worked inside"]:
        scores.grafted("x", TOPIC, now)
    for number in range(how["earned"]):
        scores.arrived(b"e%d" % number, TOPIC, WRITER, "x", ["x"] if how["worked inside"] else (), now)
        now += 1800 / max(1, how["earned"])
    start, number, owed_alike = now, 0, 0
    while now < start + MINUTES:
        now += rng.expovariate(how["rate"])
        at = now - start
        present = not any(begin <= at < begin + length for begin, length in how["away"])
        (scores.grafted if present else scores.pruned)("x", TOPIC, now)
        number += 1
        message = b"m%d" % number
        mesh = [*HONEST, "x"] if present else HONEST
        scores.arrived(message, TOPIC, WRITER, rng.choice(HONEST), mesh, now)
        owed_alike += present
        if present and rng.random() < how["hands_on"]:
            for _ in range(how["repeats"]):  # saying it again is not handing on more
                scores.again(message, "x", now + (W.window + 0.1 if how["late"] else 0.1))
        for own in range(how["own"] if number % 50 == 0 else 0):
            scores.arrived(b"o%d-%d" % (number, own), TOPIC, "x", "x", mesh, now)  # its own messages oblige and pay nobody
    # By chance a share just below the limit may look like one above it; what is well below is found out, whatever else it did.
    if owed_alike > 2 * W.activation and how["hands_on"] < W.need / 2:
        assert scores.score("x", now) < 0
    assert all(scores.score(peer, now) >= -1e9 for peer in HONEST)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_whoever_forwards_a_fair_share_is_never_negative(share: float) -> None:
    scores, now = Scores(), 0.0
    scores.grafted("x", TOPIC, now)
    for number in range(3000):
        now += 0.5
        message = b"%d" % number
        scores.arrived(message, TOPIC, WRITER, "h0", ["h0", "x"], now)
        if number % round(1 / share) == 0:
            scores.again(message, "x", now + 0.05)
        assert scores.score("x", now) >= 0
    assert scores.share("x", TOPIC, now) == pytest.approx(share, rel=0.1)


def test_in_a_small_mesh_that_hears_the_author_itself_nobody_owes() -> None:
    scores, now = Scores(), 0.0
    scores.grafted("far", TOPIC, now)
    for number in range(1000):
        now += 1.0
        scores.arrived(b"%d" % number, TOPIC, WRITER, WRITER, ["far", WRITER], now)
    assert scores.score("far", now) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 60), st.floats(0, 3600))
def test_no_credit_outweighs_forgeries(earned: int, forged: int, apart: float) -> None:
    scores = Scores()
    for number in range(earned):
        scores.arrived(b"%d" % number, TOPIC, WRITER, "x", (), 0.0)
    now = 0.0
    for _ in range(forged):
        scores.fault("x", now)
        assert scores.score("x", now) < 0
        now += apart / forged
    assert scores.score("x", now) < 0 or apart / forged > 2000


def test_eight_faults_at_once_are_not_read_any_more() -> None:
    scores = Scores()
    for _ in range(8):
        scores.fault("x", 0.0)
    assert scores.graylisted("x", 0.0)
    assert not scores.graylisted("y", 0.0)


def test_a_score_outlives_reconnections_and_an_hour_of_strangers() -> None:
    scores = Scores(Weights(peers=64))
    for _ in range(3):
        scores.fault("x", 0.0)
    for number in range(10_000):
        scores.arrived(number.to_bytes(4, "big"), TOPIC, WRITER, f"s{number}", (), number * 0.36)
        scores.pruned("x", TOPIC, number * 0.36)
    assert scores.score("x", 3600.0) < 0
    assert len(scores._records) <= 65


def test_what_is_remembered_is_bounded_and_a_late_copy_is_no_forwarding() -> None:
    scores = Scores(Weights(messages=100))
    for number in range(1000):
        scores.arrived(number.to_bytes(4, "big"), TOPIC, WRITER, "h0", ["x"], float(number))
    assert len(scores._arrivals) == 100
    scores.again((999).to_bytes(4, "big"), "x", 999.0 + W.window + 0.1)
    scores.again(b"never seen", "x", 999.0)
    assert scores.share("x", TOPIC, 999.0) is None or scores.share("x", TOPIC, 999.0) == 0


def test_a_table_full_of_peers_at_fault_takes_a_newcomer() -> None:
    scores = Scores(Weights(peers=4))
    for number in range(4):
        scores.fault(number, 10.0)
    scores.grafted("new", TOPIC, 20.0)
    scores.fault("new", 20.0)
    assert scores.score("new", 20.0) < 0
    assert [scores.score(number, 20.0) < 0 for number in range(4)].count(False) == 1  # one of them made room
