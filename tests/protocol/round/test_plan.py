"""Which pairs a judge sees: bounded, repeatable, fair between positions, and together covering all pairs."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.round.classes import AnswerClass
from protocol.round.fold import Voice
from protocol.round.messages import MAX_JUDGEMENTS, FoldParameters, Judgement
from protocol.round.plan import CLOSING_PAIRS, closing_plan, contenders, judge_plan
from protocol.wire.ids import Hash, PeerId

ROUND = Hash(b"r" * 32)


def judge(number: int) -> PeerId:
    return PeerId(f"judge {number}")


def classes_with(*votes: int) -> list[AnswerClass]:
    """Classes of these many votes, in seats counted from 0."""
    seats = iter(range(1000))
    return [AnswerClass(str(i), str(i), tuple(next(seats) for _ in range(n)), n * 1_000_000) for i, n in enumerate(votes)]


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((3, 2), 2),
        ((5, 4, 3, 2), 4),
        ((5, 4, 3, 2, 1), 4),
        ((5, 4, 3, 1, 1), 5),
        ((1,) * 7, 7),
        ((1,) * 9, 9),
        ((1,) * 30, 9),
        ((9, 1, 1, 1, 1, 1), 6),
    ],
)
def test_the_heaviest_classes_are_judged_and_equals_of_the_last_one(votes: tuple[int, ...], expected: int) -> None:
    assert contenders(classes_with(*votes), FoldParameters()) == expected


def test_a_judge_skips_only_the_answer_that_nobody_else_gave() -> None:
    classes = classes_with(2, 1)
    assert judge_plan(ROUND, (judge(2), 2), classes, FoldParameters()) == ()
    assert len(judge_plan(ROUND, (judge(2), 2), classes, FoldParameters(own_pairs=True))) == 2
    assert len(judge_plan(ROUND, (judge(0), 0), classes, FoldParameters())) == 2, "its class holds another's answer too"


@given(st.lists(st.integers(1, 5), min_size=2, max_size=50), st.integers(0, 49), st.integers(1, 36), st.integers(2, 9))
def test_every_plan_is_bounded_distinct_and_swaps_a_quarter(votes: list[int], seat: int, most: int, judged: int) -> None:
    fold = FoldParameters(pairs_per_judge=most, judged_classes=judged)
    plan = judge_plan(ROUND, (judge(seat), seat), classes_with(*sorted(votes, reverse=True)), fold)
    assert len(plan) == len(set(plan)) <= MAX_JUDGEMENTS
    pairs = {tuple(sorted(pair)) for pair in plan}
    assert len(pairs) <= most
    assert len(plan) - len(pairs) == -(-len(pairs) // 4)


def test_neither_place_is_favoured_and_judges_see_different_orders() -> None:
    plans = [judge_plan(ROUND, (judge(n), 100), classes_with(3, 3), FoldParameters())[0] for n in range(400)]
    assert 140 < Counter(plans)[(0, 1)] < 260


def test_seven_judges_of_seven_answers_cover_every_pair() -> None:
    seen = Counter(
        tuple(sorted(pair))
        for n in range(7)
        for pair in judge_plan(ROUND, (judge(n), n), classes_with(*[1] * 7), FoldParameters())
    )
    assert set(seen) == set(combinations(range(7), 2))


ACTIVE = FoldParameters(active=True, own_pairs=True)
ALIKE = {seat: Voice(1000, 1000, bytes([seat])) for seat in range(20)}


def said(plan: tuple[tuple[int, int], ...], order: list[int]) -> list[Judgement]:
    """What a judge says that holds the classes to be as good as `order` has them, the best first."""
    return [Judgement(a, b, 4000 if order.index(a) < order.index(b) else -4000) for a, b in plan]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=9), st.integers(0, 8), st.permutations(range(9)), st.integers(1, 36))
def test_an_active_plan_goes_on_with_pairs_that_it_has_not_asked(
    votes: list[int], seat: int, order: list[int], most: int
) -> None:
    fold = FoldParameters(active=True, pairs_per_judge=most)
    classes = classes_with(*sorted(votes, reverse=True))
    voices = {number: Voice(1000, 1000, bytes([number])) for number in range(sum(votes))}
    whole = judge_plan(ROUND, (judge(seat), seat), classes, FoldParameters(pairs_per_judge=most))
    opening = judge_plan(ROUND, (judge(seat), seat), classes, fold)
    closing = closing_plan(ROUND, (judge(seat), seat), said(opening, order), classes, fold, voices)
    asked = [tuple(sorted(pair)) for pair in opening]
    assert not set(asked) & {tuple(sorted(pair)) for pair in closing}
    assert len(closing) <= CLOSING_PAIRS
    assert len(opening) + len(closing) <= len(whole), "it never costs more than the whole plan"


def test_what_a_judge_said_first_decides_what_it_is_asked_next() -> None:
    classes = classes_with(1, 1, 1, 1, 1)
    asked = set()
    for number in range(40):
        who = (judge(number), 100)
        opening = judge_plan(ROUND, who, classes, ACTIVE)
        for order in ([4, 3, 2, 1, 0], [0, 1, 2, 3, 4]):
            known = {tuple(sorted(pair)) for pair in opening}
            closing = {tuple(sorted(pair)) for pair in closing_plan(ROUND, who, said(opening, order), classes, ACTIVE, ALIKE)}
            met = {index for pair in opening for index in pair}
            best = next(index for index in order if index in met)
            won = [pair for pair in known if best in pair]
            assert not closing or any(best in pair for pair in closing | set(won))
            asked.add((number, tuple(sorted(closing))))
    assert len({number for number, _ in asked}) < len(asked), "another opening, another closing"


def test_votes_say_which_classes_are_in_front_where_a_judge_is_undecided() -> None:
    classes = classes_with(6, 6, 2, 1)
    for number in range(20):
        who = (judge(number), 100)
        opening = judge_plan(ROUND, who, classes, ACTIVE)
        closing = closing_plan(ROUND, who, [Judgement(a, b, 0) for a, b in opening], classes, ACTIVE, ALIKE)
        pairs = {tuple(sorted(pair)) for pair in opening + closing}
        assert (0, 1) in pairs


def test_a_plan_that_is_not_active_has_no_second_part() -> None:
    classes = classes_with(1, 1, 1, 1, 1)
    opening = judge_plan(ROUND, (judge(1), 100), classes, FoldParameters())
    assert closing_plan(ROUND, (judge(1), 100), said(opening, list(range(5))), classes, FoldParameters(), ALIKE) == ()
