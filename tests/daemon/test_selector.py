"""Which peer is asked first."""

from random import Random

import pytest

from daemon.selector import Candidate, Prediction, rank_candidates
from dht.standing import Load
from protocol.wire.ids import PeerId


def order(*candidates: Candidate) -> list[str]:
    return [choice.candidate.peer for choice in rank_candidates(candidates, Random(1))]


def at(
    name: str,
    path: str = "direct",
    rtt: float | None = 0.05,
    busy: int = 0,
    slots: int = 2,
    seen: float | None = None,
    **told: int,
) -> Candidate:
    return Candidate(PeerId(name), "m", slots, path, rtt, load=Load(busy, **told), first_token_s=seen)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (at("a", "local", None), at("b")),
        (at("a", rtt=0.01), at("b", rtt=0.2)),
        (at("a", "direct"), at("b", "relayed")),
        (at("a", "relayed"), at("b", "unknown", None)),
        (at("a", rtt=None), at("b", rtt=0.2)),
        (at("a", busy=1), at("b", busy=2)),
        (at("a", rtt=0.3, busy=0), at("b", "local", None, busy=2)),
        (at("a", busy=4, slots=8), at("b", busy=2, slots=2)),
        (at("a", busy=3, slots=4), at("b", busy=5, slots=4)),
        (at("a", busy=0), at("b", busy=1)),
        (at("a", seen=0.1), at("b", seen=0.4)),
        (at("a"), at("b", seen=0.4)),
        (at("a", rtt=0.2, seen=0.25), at("b", rtt=0.01, seen=0.3)),
        (at("a", seen=0.06), at("b", rtt=0.3, seen=0.06)),
        (at("a", seen=0.5), at("b", seen=0.1, busy=3)),
        (at("a", first_token_ms=40), at("b", first_token_ms=300)),
        (at("a", first_token_ms=40), at("b", seen=0.4)),
        (at("a", seen=0.1, first_token_ms=2000), at("b", first_token_ms=300)),
        (at("a", busy=3, slot_ms=200), at("b", busy=3, slot_ms=900)),
        (at("a", busy=3, slot_ms=200), at("b", busy=3)),
        (at("a", "relayed", busy=0), at("b", busy=2, slot_ms=600)),
    ],
)
def test_the_peer_that_answers_sooner_comes_first(better: Candidate, worse: Candidate) -> None:
    assert order(better, worse) == order(worse, better) == ["a", "b"]


def test_equals_share_the_load_and_one_seed_gives_one_order() -> None:
    equals = [at(name) for name in "abcd"]
    firsts = {rank_candidates(equals, Random(seed))[0].candidate.peer for seed in range(40)}
    assert firsts == set("abcd")
    assert rank_candidates(equals, Random(7)) == rank_candidates(equals, Random(7))


def test_every_choice_is_explained() -> None:
    (choice,) = rank_candidates([at("x" * 12, "relayed", 0.12, busy=3)], Random(1))
    assert choice.why == "xxxxxxxx: relayed path, 120 ms, 3 of 2 slots busy, 1.00 s of queue, first token expected after 1.22 s"
    assert choice.wait == pytest.approx(0.12 + 0.05 + 1.0 + 0.05)
    assert choice.parts == Prediction(pytest.approx(0.17), 1.0, 0.05, 0.0, "unknown")


@pytest.mark.parametrize("candidate", [at("a", seen=0.4, busy=3), at("a", "local", None, first_token_ms=90), at("a", rtt=None)])
def test_the_parts_add_up(candidate: Candidate) -> None:
    (choice,) = rank_candidates([candidate], Random(1))
    parts = choice.parts
    assert choice.wait == pytest.approx(parts.reach + parts.queue + parts.share + parts.engine)


def test_a_measurement_is_named() -> None:
    (choice,) = rank_candidates([at("x" * 12, seen=0.4)], Random(1))
    assert choice.why == (
        "xxxxxxxx: direct path, 50 ms, 0 of 2 slots busy, 0.40 s measured lately, first token expected after 0.40 s"
    )


def test_nobody_is_no_choice() -> None:
    assert rank_candidates([], Random(1)) == []
