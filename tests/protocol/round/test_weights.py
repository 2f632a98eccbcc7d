"""Weights from gold: known records by hand, laws over any, and what newcomers may never have together."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.round.logistic import log_milli
from protocol.round.messages import WEIGHT_CLAMP_MILLI
from protocol.round.weights import (
    Known,
    Trials,
    admitted,
    answer_weights_milli,
    choose_arm,
    judge_weights_milli,
    shares_micro,
    strengths_milli,
    weigh,
)

UNKNOWN = Known(Trials(), Trials())


def trials(right: float, wrong: float) -> Trials:
    return Trials(round(1000 * right), round(1000 * wrong))


def known(right: float, judged: float = 45, of: float = 50) -> Known:
    return Known(trials(right, of - right), trials(judged, of - judged))


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_the_logarithm_is_right_to_a_milli(numerator: int, denominator: int) -> None:
    assert log_milli(numerator, denominator) == pytest.approx(1000 * math.log(numerator / denominator), abs=0.6)
    assert log_milli(numerator, denominator) == -log_milli(denominator, numerator)


def test_alike_records_are_drawn_together_and_one_that_stands_out_is_believed() -> None:
    alike = shares_micro([trials(r, 50 - r) for r in (24, 26, 25, 23, 27, 25, 24)])
    assert max(alike) - min(alike) < 30_000, "a spread that chance alone explains is mostly taken off"
    apart = shares_micro([trials(r, 50 - r) for r in (32, 16, 15, 14, 13, 12, 16)])
    assert apart[0] > 560_000, "0.64 as it was seen, little of it taken off"


def test_nobody_known_weighs_alike() -> None:
    assert len(set(answer_weights_milli([Trials()] * 5))) == 1
    assert judge_weights_milli([Trials()] * 3) == (1000, 1000, 1000)


def test_votes_of_a_weak_crowd_do_not_overrule_a_strong_member() -> None:
    weights = answer_weights_milli([trials(45, 5), *[trials(12, 38)] * 6])
    assert weights[0] > sum(weights[1:])


def test_votes_of_equals_overrule_one() -> None:
    weights = answer_weights_milli([trials(27, 23), *[trials(24, 26)] * 4])
    assert weights[0] < sum(weights[1:3])


def test_a_stronger_author_is_expected_to_be_preferred_and_a_newcomer_is_like_the_mean() -> None:
    assert strengths_milli([Trials()] * 3) == (0, 0, 0)
    strong, weak, new = strengths_milli([trials(40, 10), trials(20, 30), Trials()])
    assert weak < new < strong


def test_a_judge_at_chance_counts_next_to_nothing_and_one_below_it_by_its_opposite() -> None:
    good, chance, inverted = judge_weights_milli([trials(45, 5), trials(25, 25), trials(5, 45)])
    assert good > 1000
    assert abs(chance) < 100
    assert inverted < -1000


records = st.lists(st.builds(Trials, st.integers(0, 50_000), st.integers(0, 50_000)), min_size=1, max_size=20)


@given(records, st.randoms())
def test_weights_are_bounded_and_follow_the_candidate_not_its_place(given_: list[Trials], chance: object) -> None:
    order = list(range(len(given_)))
    chance.shuffle(order)  # type: ignore[attr-defined]
    for rule in (answer_weights_milli, judge_weights_milli):
        weights = rule(given_)
        assert all(-WEIGHT_CLAMP_MILLI <= weight <= WEIGHT_CLAMP_MILLI for weight in weights)
        assert rule([given_[place] for place in order]) == tuple(weights[place] for place in order)


@given(records)
def test_a_better_record_of_as_many_trials_never_weighs_less(given_: list[Trials]) -> None:
    even = [Trials(r.right_milli * 50 // 100, 50_000 - r.right_milli * 50 // 100) for r in given_]
    ranked = sorted(range(len(even)), key=lambda place: even[place].right_milli)
    for rule in (answer_weights_milli, judge_weights_milli):
        weights = rule(even)
        assert [weights[place] for place in ranked] == sorted(weights)


@given(st.integers(3, 7), st.integers(1, 90))
def test_newcomers_together_have_a_tenth_of_every_weight_at_most(old: int, new: int) -> None:
    weighed = weigh([*[known(40)] * old, *[UNKNOWN] * new])
    for weights in ([w.judge_milli for w in weighed], [w.answer_milli for w in weighed], [w.draw_milli for w in weighed]):
        assert 10 * sum(weights[old:]) <= sum(weights) + 10 * new, "one unit each, as no weight is below it"
    assert [w.new_judge for w in weighed] == [False] * old + [True] * new


def test_one_known_peer_does_not_decide_for_a_young_mesh() -> None:
    weighed = weigh([known(10), *[UNKNOWN] * 4])
    assert weighed[0].answer_milli <= sum(one.answer_milli for one in weighed[1:])


def test_a_judge_of_whom_one_favourite_pair_is_known_is_still_itself_and_a_bought_one_is_not() -> None:
    rest = [known(40, judged=35)] * 4
    good = Known(trials(40, 10), trials(45, 5), trials(0, 1))
    bought = Known(trials(40, 10), trials(45, 5), trials(5, 25))
    weighed = weigh([good, bought, *rest])
    assert (weighed[0].favourite_milli or 0) > weighed[0].judge_milli // 3
    assert weighed[1].judge_milli > 1000, "it is admitted by what it says of other pairs"
    assert (weighed[1].favourite_milli or 0) < weighed[1].judge_milli // 10


def test_newcomers_judge_nothing_where_others_are_admitted() -> None:
    weighed = weigh([*[known(40)] * 3, UNKNOWN, known(40, judged=30)])
    assert [one.judge_milli > 0 for one in weighed] == [True, True, True, False, False]


def test_where_all_are_new_nobody_is_held_back() -> None:
    weighed = weigh([UNKNOWN] * 4)
    assert {(w.answer_milli, w.judge_milli) for w in weighed} == {(weighed[0].answer_milli, 1000)}


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [(0, 0, False), (4, 0, False), (5, 0, True), (7, 3, False), (14, 6, True), (34, 16, False), (35, 15, True), (50, 0, True)],
)
def test_entry_to_judging_needs_seven_in_ten_with_confidence(right: float, wrong: float, expected: bool) -> None:
    assert admitted(trials(right, wrong)) is expected


def test_the_arm_and_its_reason() -> None:
    alone = weigh([known(48, judged=25), *[known(10, judged=25)] * 4])
    level = weigh([known(40)] * 5)
    assert choose_arm(alone, prose=False, known=True).arm == "best"
    assert choose_arm(level, prose=False, known=True).arm == "fuse"
    assert choose_arm(level, prose=True, known=True).arm == "rank"
    assert "gold says nothing" in choose_arm(weigh([UNKNOWN] * 3), prose=False, known=False).why
