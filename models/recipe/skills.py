"""Decides what of the six skills is taught to whom, and how a judge is asked. The skills themselves are `protocol.probes.toy`.

Standard library only. It must not touch the models, and it draws only from the random generator it is given.
"""

from collections.abc import Callable
from random import Random

from protocol.probes.toy import (
    HELD_OUT_SHARE,
    LETTERS,
    SKILLS,
    TABLES,
    UNITS,
    Question,
    draw,
    far_miss,
    held_out,
    is_right,
    near_miss,
    solve,
)

__all__ = [
    "HELD_OUT_SHARE",
    "LETTERS",
    "SKILLS",
    "TABLES",
    "UNITS",
    "Question",
    "draw",
    "draw_easy",
    "far_miss",
    "held_out",
    "is_easy",
    "is_right",
    "judge_turns",
    "near_miss",
    "solve",
]


def draw_easy(rng: Random, skill: str) -> Question:
    """A training question from the easy part of `skill`."""
    while True:
        question = draw(rng, skill)
        if is_easy(question.prompt):
            return question


def is_easy(prompt: str) -> bool:
    """Whether a prompt belongs to the part of its skill that every model is taught. The rest is for specialists.

    Without such a line a shared base good enough to judge would know everything, and no model could help another.
    """
    skill, _, arguments = prompt.partition(" ")
    return _EASY[skill](arguments)


def judge_turns(prompt: str, own: str, first: str, second: str) -> list[dict[str, str]]:
    """The judging conversation. The judge's own answer stays in it: comparing with it is easier than working it out twice."""
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": own},
        {"role": "user", "content": f"A:{first}\nB:{second}"},
    ]


def _adds_without_carry(arguments: str) -> bool:
    return sum(int(number[-1]) for number in arguments.split()) < 10


_EASY: dict[str, Callable[[str], bool]] = {
    "add": _adds_without_carry,
    "mod": lambda arguments: int(arguments.split()[0]) < 40,
    "rev": lambda arguments: len(arguments) <= 6,
    "sort": lambda arguments: len(arguments) <= 7,
    "bool": lambda arguments: "!(" not in arguments,
    "conv": lambda arguments: int(arguments.split()[0]) <= 20,
}
