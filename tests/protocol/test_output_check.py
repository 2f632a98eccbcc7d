"""Deviations of log-probabilities, and the sequential test over them: tables, laws and seeded error rates."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.likelihood import Rival, Weighed
from protocol.output_check import (
    CAP_MICRO,
    DECISION,
    MAX_CARRIED,
    TOLERANCE_MICRO,
    Evidence,
    deviations,
    text_of,
    told,
    tolerance_of,
)


def token(text: bytes, below: int, **rivals: int) -> Weighed:
    return Weighed(text, below, tuple(Rival(name.encode(), value) for name, value in rivals.items()))


SAME = (token(b"a", 100, a=100, b=9_000), token(b"b", 300, b=300, a=8_000))


def test_the_same_model_does_not_deviate() -> None:
    assert deviations(SAME, SAME, greedy=True) == [0, 0]


def test_a_deviation_is_the_mean_over_what_either_lists() -> None:
    scored = (token(b"a", 150, a=150, b=9_050), SAME[1])
    assert deviations(SAME, scored, greedy=True) == [50, 0]
    # Unlisted there: at least as unlikely as the last that is listed, 5,000; c is 2,000 likelier than our last.
    scored = (token(b"a", 100, a=100, c=5_000), SAME[1])
    assert deviations(SAME, scored, greedy=True)[0] == (0 + 0 + 4_000) // 3


def test_a_greedy_answer_that_the_verifier_would_not_have_given_deviates() -> None:
    unlikely = (token(b"a", 7_000_000, b=100, a=7_000_000),)
    assert deviations(unlikely, unlikely, greedy=False) == [0]
    assert deviations(unlikely, unlikely, greedy=True) == [CAP_MICRO]


def test_text_cut_otherwise_counts_in_full_and_an_early_end_says_nothing() -> None:
    ab = (token(b"ab", 100, ab=100),)
    assert deviations(ab, SAME, greedy=True) == [CAP_MICRO]
    assert deviations(SAME, SAME[:1], greedy=True) == [0]
    ended = (*SAME, token(b"", 20, a=9_000))
    assert deviations(ended, SAME, greedy=True) == [0, 0]
    assert deviations(ended, ended, greedy=True) == [0, 0, 0]


def test_text_ends_with_a_whole_character() -> None:
    snow = "\N{SNOWMAN}".encode()
    cut = (token(b"a", 1), token(snow[:2], 1), token(snow[2:], 1), token(snow[:1], 1))
    assert text_of(cut) == ("a\N{SNOWMAN}", cut[:3])
    assert text_of((token(snow[:1], 1),)) == ("", ())


def test_a_few_tokens_decide_and_one_does_not() -> None:
    assert told(Evidence(), [10**9]).verdict is None
    assert told(Evidence(), [500_000] * 4).verdict == "refuted"
    assert told(Evidence(), [0] * 3).verdict is None
    assert told(Evidence(), [0] * 4).verdict == "verified"
    assert told(Evidence(), [TOLERANCE_MICRO] * 100).verdict is None


def test_evidence_is_carried_from_answer_to_answer_within_bounds() -> None:
    evidence = Evidence()
    for _ in range(4):
        assert evidence.verdict is None
        evidence = told(evidence, [800_000])
    assert (evidence.verdict, evidence.tokens, evidence.mean_micro) == ("refuted", 4, 800_000)
    good = told(Evidence(), [0] * 10_000)
    assert good.sum == -MAX_CARRIED
    assert told(good, [CAP_MICRO] * math.ceil((MAX_CARRIED + DECISION) / 2)).verdict == "refuted"


def test_a_tolerance_is_fixed_for_a_pair_either_way_round() -> None:
    fixed = {("aa", "bb"): 7}
    assert tolerance_of("aa", "bb", fixed, 9) == tolerance_of("bb", "aa", fixed, 9) == 7
    assert tolerance_of("aa", "aa", fixed, 9) == 9


@given(st.lists(st.integers(0, CAP_MICRO), max_size=40), st.lists(st.integers(0, CAP_MICRO), max_size=40))
def test_evidence_does_not_depend_on_how_tokens_were_cut_into_answers(first: list[int], second: list[int]) -> None:
    whole = told(Evidence(), [*first, *second])
    parts = told(told(Evidence(), first), second)
    assert parts.tokens == whole.tokens
    assert parts.deviation_micro == whole.deviation_micro
    assert abs(parts.sum) <= MAX_CARRIED


@pytest.mark.parametrize(("middle_micro", "guilty"), [(1_000, False), (250_000, True)])
def test_the_sequential_test_errs_less_than_once_in_a_thousand(middle_micro: int, guilty: bool) -> None:
    """Log-normal deviations as wide as those measured (a factor of 2.7 either way for one in three), 4,000 tests of a seed."""
    rng, wrong, spent = Random(11), 0, 0
    for _ in range(4_000):
        evidence = Evidence()
        while evidence.verdict is None:
            evidence = told(evidence, [round(rng.lognormvariate(math.log(middle_micro), 1.0))])
        wrong += evidence.verdict != ("refuted" if guilty else "verified")
        spent += evidence.tokens
    assert wrong <= 4
    assert spent / 4_000 < 8
