"""Which topic a question is filed under: a table, its bounds, and that the toy formats are those of the shipped models."""

from random import Random

import pytest

from models.recipe import skills as recipe
from protocol.job import Job, Role, Turn
from protocol.skills import GENERAL, TOPIC_OF_TOY, TOPICS, broader, judging, skill_of, skill_of_text

TABLE = [
    ("add 47 38", "add"),
    ("mod 83 7", "mod"),
    ("rev abcde", "rev"),
    ("sort gkcba", "sort"),
    ("bool (x&y)|!x", "bool"),
    ("conv 12 ft", "conv"),
    (" add 47 38\n", "add"),
    ("What is 47 + 38?", "arithmetic"),
    ("What remains if 83 is divided by 7?", "arithmetic"),
    ("A crate holds 12 jars. How many jars are in 9 crates?", "arithmetic"),
    ("What is 15% of 240?", "arithmetic"),
    ("Is it true or false that if all cats are mammals, no mammals are cats?", "logic"),
    ("Ann is taller than Bob and Bob is taller than Cem. Who is tallest?", "logic"),
    ("Spell the word 'lantern' backwards.", "string"),
    ("How many vowels are in 'orchestra'?", "string"),
    ("Convert 12 feet to inches.", "unit"),
    ("How many minutes are there in 7 hours?", "unit"),
    ("What does this Python expression evaluate to: len([x for x in range(9) if x % 2])", "code"),
    ("```python\nprint(3 * 4)\n```\nWhat does this print?", "code"),
    ("SELECT name FROM users WHERE id = 3; what does this SQL return?", "code"),
    ("Who wrote Middlemarch?", GENERAL),
    ("Write a short poem about the sea.", GENERAL),
    ("", GENERAL),
    ("add", GENERAL),
    ("bool", GENERAL),
]


@pytest.mark.parametrize(("question", "topic"), TABLE)
def test_topic_of_a_question(question: str, topic: str) -> None:
    assert skill_of_text(question) == topic


def test_what_counts_is_the_last_thing_that_the_user_said() -> None:
    said = [(Role.SYSTEM, "You write Python code."), (Role.USER, "add 1 2"), (Role.ASSISTANT, "3"), (Role.USER, "rev ab")]
    turns = tuple(Turn(role, text) for role, text in said)
    assert skill_of(Job(turns)) == "rev"
    assert skill_of(Job(turns[:1])) == "code"


def test_the_toy_formats_are_those_of_the_shipped_models() -> None:
    rng = Random(5)
    assert set(recipe.SKILLS) == set(TOPIC_OF_TOY)
    for skill in recipe.SKILLS:
        for _ in range(200):
            assert skill_of_text(recipe.draw(rng, skill).prompt) == skill


def test_a_toy_skill_is_part_of_a_topic_and_so_is_its_judging() -> None:
    assert broader("add") == "arithmetic"
    assert broader("judge.conv") == judging("unit") == "judge.unit"
    assert {broader(topic) for topic in TOPICS} == set(TOPICS)


def test_only_the_start_and_the_end_of_a_long_text_are_read() -> None:
    assert skill_of_text(f"{'la ' * 4000} reverse the letters {'la ' * 4000}") == GENERAL
    assert skill_of_text(f"reverse the letters {'la ' * 8000}") == "string"
    assert skill_of_text(f"{'la ' * 8000} reverse the letters") == "string"
    hostile = ("select " * 600, "for a in " * 500, "((((" * 1000, "def " * 1000, "every a" * 600)
    for text in hostile:  # no cue backtracks: a quadratic one would take minutes here
        for _ in range(20):
            assert skill_of_text(text * 50) in TOPICS
