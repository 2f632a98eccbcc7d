"""Decides which questions the study asks: gold and test, disjoint, none of which any training run was shown. Asks nobody.

`add` and `bool` have finite held-out parts, and all of both is used; `rev` and `sort` fill up evenly. `mod` and `conv` are tables
that training shows in full, so they are left out.
"""

from dataclasses import dataclass
from itertools import product
from random import Random

from models.recipe import skills

FINITE = ("add", "bool")
ENDLESS = ("rev", "sort")
SKILLS = (*FINITE, *ENDLESS)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question. `rival` is a wrong answer of the kind a model gives that almost knows, for colluders where nobody erred."""

    prompt: str
    skill: str
    right: str
    rival: str
    gold: bool


def questions(seed: int, gold_per_skill: int, test: int) -> list[Asked]:
    """The gold questions and then `test` others; the same ones for the same arguments. ValueError where `test` is too small."""
    rng = Random(seed)
    prompts = {skill: _shuffled(rng, _finite(skill)) for skill in FINITE}
    wanted = test - sum(len(found) - gold_per_skill for found in prompts.values())
    if wanted < len(ENDLESS):
        raise ValueError(f"{test} test questions are fewer than the held-out ones of {' and '.join(FINITE)}")
    for place, skill in enumerate(ENDLESS):
        prompts[skill] = _drawn(rng, skill, gold_per_skill + (wanted + place) // len(ENDLESS))
    gold = [_asked(rng, prompt, gold=True) for skill in SKILLS for prompt in prompts[skill][:gold_per_skill]]
    return gold + [_asked(rng, prompt, gold=False) for skill in SKILLS for prompt in prompts[skill][gold_per_skill:]]


def _finite(skill: str) -> list[str]:
    """Every held-out prompt of a finite skill."""
    every = [f"add {left} {right}" for left, right in product(range(10, 100), repeat=2)] if skill == "add" else _expressions()
    return sorted(prompt for prompt in every if skills.held_out(prompt))


def _expressions() -> list[str]:
    literals = ["x", "y", "!x", "!y"]
    inner = [f"{sign}({a}{op}{b})" for sign, a, op, b in product(("", "!"), literals, "&|^", literals)]
    return [f"bool {a}{op}{b}" for i, literal, op in product(inner, literals, "&|^") for a, b in ((i, literal), (literal, i))]


def _shuffled(rng: Random, prompts: list[str]) -> list[str]:
    rng.shuffle(prompts)
    return prompts


def _drawn(rng: Random, skill: str, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[skills.draw(rng, skill, test=True).prompt] = None
    return list(found)


def _asked(rng: Random, prompt: str, *, gold: bool) -> Asked:
    question = skills.Question(prompt.partition(" ")[0], prompt, skills.solve(prompt))
    return Asked(prompt, question.skill, question.answer, skills.near_miss(rng, question), gold)
