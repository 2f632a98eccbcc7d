"""Which answers are one class, and the order of classes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.round.classes import MAX_COMPOSED_CHARS, MAX_MARKS, AnswerClass, classes_of, normalise, settled, voices
from protocol.wire.ids import Hash

ROUND = Hash(b"r" * 32)
EQUAL = dict.fromkeys(range(50), 1_000_000)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("42", " 42\n"),
        ("12.0", "12"),
        ("12.", "12"),
        ("+7", "007"),
        ("-0", "0"),
        ("0.50", "0.5"),
        ("the  answer\tis\r\nyes", "the answer is yes"),
        ("\uff14\uff12", "42"),  # full-width digits
        ("\u212b", "\u00c5"),  # Angstrom sign and A with a ring
        ("e\u0301", "\u00e9"),
    ],
)
def test_equal_answers(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes", "yes"),
        ("12.0 km", "12 km"),
        ("1,000", "1000"),
        ("1e3", "1000"),
        ("-5", "5"),
        ("0.5", ".5"),
        ("a b", "ab"),
        ("1.2.0", "1.2"),
    ],
)
def test_answers_that_only_a_judge_may_call_equal(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    "slow",
    [
        "e" + "\u0315" * (MAX_MARKS + 1) + "\u0301",  # sorted by their classes, in a time that grows with the square
        "e" + "\uff9e\u0334" * MAX_MARKS,  # the first is no mark, but becomes one
        "\ufdfa" * (MAX_COMPOSED_CHARS + 1),  # 18 characters each
    ],
)
def test_what_takes_long_to_compose_is_left_as_it_is(slow: str) -> None:
    assert normalise(slow) == slow
    assert normalise(f" {slow}\t\n") == slow


def test_as_many_marks_as_any_language_has_are_put_in_order() -> None:
    assert normalise("e" + "\u0315" * (MAX_MARKS - 1) + "\u0301") == "\u00e9" + "\u0315" * (MAX_MARKS - 1)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.permutations(list(enumerate(["a", "b", "b ", "c", "c", "c"]))))
def test_classes_do_not_depend_on_the_order_of_arrival(answers: list[tuple[int, str]]) -> None:
    classes = classes_of(ROUND, dict(answers), EQUAL)
    assert [(found.key, found.seats) for found in classes] == [("c", (3, 4, 5)), ("b", (1, 2)), ("a", (0,))]
    assert classes[1].text == "b", "the text of the lowest seat"


def test_the_heaviest_class_is_first_and_ties_depend_on_the_round() -> None:
    assert classes_of(ROUND, {0: "a", 1: "b", 2: "b"}, {0: 3_000_000, 1: 1_000_000, 2: 1_000_000})[0].key == "a"
    firsts = {classes_of(Hash(bytes([n]) * 32), {0: "a", 1: "b"}, EQUAL)[0].key for n in range(20)}
    assert firsts == {"a", "b"}


@pytest.mark.parametrize(
    ("one_voice", "expected"),
    [
        (True, {0: 500_000, 1: 500_000, 2: 1_000_000, 3: -250_000}),
        (False, {0: 1_000_000, 1: 1_000_000, 2: 1_000_000, 3: -250_000}),
    ],
)
def test_one_configuration_is_one_voice(one_voice: bool, expected: dict[int, int]) -> None:
    digests = {0: b"x", 1: b"x", 2: b"y", 3: b"z"}
    assert voices({0: 1000, 1: 1000, 2: 1000, 3: -250}, digests, one_voice) == expected


@pytest.mark.parametrize(
    ("weights", "margin", "expected"),
    [([5], 0, True), ([5, 4], 0, False), ([7, 0], 0, False), ([5, 2], 3, True), ([5, 3], 3, False), ([5, 5], 1, False)],
)
def test_votes_settle_a_round_when_unanimous_or_far_ahead(weights: list[int], margin: int, expected: bool) -> None:
    classes = [AnswerClass(str(index), "", (index,), weight * 1_000_000) for index, weight in enumerate(weights)]
    assert settled(classes, margin) is expected
