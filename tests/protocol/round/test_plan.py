"""Which pairs a judge sees: bounded, repeatable, fair between positions, and together covering all pairs."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.round.classes import AnswerClass
from protocol.round.messages import MAX_JUDGEMENTS, FoldParameters
from protocol.round.plan import contenders, judge_plan
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
