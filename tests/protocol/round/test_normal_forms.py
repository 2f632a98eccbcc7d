"""Which answers are equal by the kind of answer that a question calls for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.job import Job, Role, Turn
from protocol.round.messages import AnswerKind, FoldParameters
from protocol.round.normal_forms import MAX_SHORT_CHARS, kind_of, normal_form
from protocol.round.transcript import replay
from tests.sim.round_network import Behaviour, RoundNetwork, Weather

EQUAL: list[tuple[AnswerKind, str, str]] = [
    ("number", "1,000", "1000"),
    ("number", "The answer is 42.", "42"),
    ("number", "x = 42", "42.0"),
    ("number", "**42**", "$42$"),
    ("number", r"\boxed{42}", "= 42"),
    ("number", ".5", "0.50"),
    ("number", "-.5", "-0.5"),
    ("number", "1/2", "0.5"),
    ("number", "The answer is 2/6.", "1/3"),
    ("number", r"$\frac{1}{2}$", ".50"),
    ("number", "-10/4", "-2.5"),
    ("number", "-1/8", "-0.125"),
    ("number", "12/4", "3"),
    ("number", "\u22125", "-5"),
    ("number", "x = \u22121,000", "-1000"),
    ("number", r"The answer is \(5\).", "5"),
    ("number", "50%", "50 percent"),
    ("number", "12km", "12.0 Kilometers"),
    ("number", "1,000 metres.", "1000 m"),
    ("number", "20\u00b0C", "20 \u2103"),
    ("number", "The answer is 36 inches.", "36 in"),
    ("number", "1,000 apples", "1000 apples"),
    ("number", "1/2 cup", "0.5 cup"),
    ("choice", "(B)", "B"),
    ("choice", "b", "B."),
    ("choice", "Answer: B", "The correct answer is B) Paris"),
    ("choice", "Option B", "The answer is option (B)"),
    ("code", "```python \nx = 1\n```", "x = 1"),
    ("short", "\u201cParis\u201d", "Paris"),
    ("exact", "2\u00b3", "2^3"),
    ("exact", "10\u207b\u00b9\u00b2 m", "10^-12 m"),
    ("code", "```python\nx = 1\n```", "x = 1  \n"),
    ("code", "Here:\n```\ny\n```\nDone", "y"),
    ("short", "Paris.", "paris"),
    ("short", "The answer is Paris", '"Paris"'),
    ("exact", " a  b ", "a b"),
]
DIFFERENT: list[tuple[AnswerKind, str, str]] = [
    ("number", "50%", "50"),
    ("number", "12 km", "12 m"),
    ("number", "12 km", "12"),
    ("number", "1,00", "100"),
    ("number", "1,000,00", "100000"),
    ("number", "42 or 43", "42"),
    ("number", "1/3", "0.333"),
    ("number", "1/2/2024", "1/4048"),
    ("number", "1/0", "0"),
    ("number", "1 1/2", "11/2"),
    ("number", "2\u00bd", "21/2"),
    ("number", "5 M", "5 m"),
    ("number", "5 ms", "5 m"),
    ("number", "5 tons", "5 tonnes"),
    ("number", "5k", "5 k"),
    ("number", "2\u00b3", "23"),
    ("exact", "x\u00b2", "x2"),
    ("exact", "2\u207f", "2n"),
    ("choice", "\u0412", "B"),  # the Cyrillic letter
    ("choice", "A cat", "A"),
    ("choice", "A or B", "A"),
    ("choice", "A", "B"),
    ("code", "if x:\n  y", "if x:\n    y"),
    ("code", "X = 1", "x = 1"),
    ("short", "The Hague", "Hague"),
    ("short", "\u00c9", "\u00e9"),
    ("exact", "Paris.", "Paris"),
]


@pytest.mark.parametrize(("kind", "one", "other"), EQUAL)
def test_equal(kind: AnswerKind, one: str, other: str) -> None:
    assert normal_form(one, kind) == normal_form(other, kind)


@pytest.mark.parametrize(("kind", "one", "other"), DIFFERENT)
def test_different(kind: AnswerKind, one: str, other: str) -> None:
    assert normal_form(one, kind) != normal_form(other, kind)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("Which is largest?\nA) 1\nB) 2\nC) 3", "choice"),
        ("add 47 38", "number"),
        ("What is 6 * 7?", "number"),
        ("Write a python function that sorts a list", "code"),
        ("Tell me about Paris", "exact"),
        ("Explain in a few words which way is better, and why", "exact"),
        ("What is the capital of France?", "short"),
        ("Who wrote Emma?", "short"),
        ("All cats are grey. Tom is a cat. Is Tom grey, yes or no?", "short"),
        ("bool x&y", "short"),
        ("Reverse the word Drawer", "exact"),
        ("conv 3 km", "number"),
        ("How many inches are in 3 feet?", "number"),
    ],
)
def test_a_question_calls_for_a_kind(asked: str, kind: AnswerKind) -> None:
    assert kind_of(Job((Turn(Role.USER, asked),))) == kind


@given(st.text(min_size=1), st.sampled_from(["exact", "number", "choice", "short", "code"]))
def test_blanks_behind_never_tell_and_a_long_answer_keeps_its_exact_key(text: str, kind: AnswerKind) -> None:
    assert normal_form(f"{text} \n", kind) == normal_form(text, kind)
    if kind != "code":
        long = text + " word" * MAX_SHORT_CHARS
        assert normal_form(long, kind) == normal_form(long, "exact")


@pytest.mark.parametrize(("kind", "classes"), [("exact", 3), ("number", 1)])
def test_a_round_merges_by_the_kind_in_its_header(kind: AnswerKind, classes: int) -> None:
    said = ("42", "The answer is 42.", "42.0", "= 42", "42")
    network = RoundNetwork(1, 5, Weather(), Behaviour(answer=lambda number: said[number - 1]))
    network.run(network.header(strategy="majority", fold=FoldParameters(answers=kind)))
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    assert replayed.result is not None
    assert len(replayed.result.classes) == classes
    assert (replayed.result.basis == "unanimous") == (classes == 1)
