"""The six skills that the shipped models speak: how a question is drawn, its right answer, and what a wrong one looks like.

Standard library only, so that the recipe that trains the models can use it without the daemon's dependencies. It draws from the
random generator that it is given, and from nothing else.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

LETTERS = "abcdefghijklmnop"
UNITS = {"ft": 12, "hr": 60, "lb": 16, "wk": 7, "gal": 8, "day": 24}
SKILLS = ("add", "mod", "rev", "sort", "bool", "conv")
TABLES = ("mod", "conv")
"""Finite tables are knowledge: there is nothing to generalise, so nothing of them is held out."""
HELD_OUT_SHARE = 10
"""One question in so many is never trained on."""

_ASSIGNMENTS = ((0, 0), (0, 1), (1, 0), (1, 1))
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with exactly one right answer."""

    skill: str
    prompt: str
    answer: str


def held_out(prompt: str) -> bool:
    """Whether training must never see `prompt`. A hash and not a list, so that every program agrees without sharing one."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0


def draw(rng: Random, skill: str, *, test: bool = False) -> Question:
    """A question of `skill`; from the held-out part when `test`, from the rest otherwise (tables have only one part)."""
    while True:
        prompt = f"{skill} {_ARGUMENTS[skill](rng)}"
        if skill in TABLES or held_out(prompt) == test:
            return Question(skill, prompt, solve(prompt))


def solve(prompt: str) -> str:
    """The right answer, worked out from the text of the prompt alone; ValueError if it is not one of our prompts."""
    skill, _, arguments = prompt.partition(" ")
    if skill not in _SOLVERS:
        raise ValueError(f"unknown skill in prompt {prompt!r}")
    return _SOLVERS[skill](arguments)


def is_right(prompt: str, answer: str) -> bool:
    """Whether `answer` is the right answer to `prompt`, to the letter."""
    return answer == solve(prompt)


def near_miss(rng: Random, question: Question) -> str:
    """A wrong answer of the kind a model gives that almost knows."""
    while True:
        wrong = _SLIPS[question.skill](rng, question)
        if wrong and wrong != question.answer:
            return wrong


def far_miss(rng: Random, question: Question) -> str:
    """The right answer to some other question of the skill: recognisable at a glance, which is where judging is learnt first."""
    while True:
        wrong = draw(rng, question.skill).answer
        if wrong != question.answer:
            return wrong


def _add_arguments(rng: Random) -> str:
    return f"{rng.randint(10, 99)} {rng.randint(10, 99)}"


def _mod_arguments(rng: Random) -> str:
    return f"{rng.randint(10, 99)} {rng.randint(3, 9)}"


def _rev_arguments(rng: Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(5, 8)))


def _sort_arguments(rng: Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(6, 9)))


def _conv_arguments(rng: Random) -> str:
    return f"{rng.randint(2, 40)} {rng.choice(list(UNITS))}"


def _bool_arguments(rng: Random) -> str:
    inner = f"{'!' * (rng.random() < 0.25)}({_literal(rng)}{rng.choice('&|^')}{_literal(rng)})"
    outer = [inner, _literal(rng)]
    rng.shuffle(outer)
    return rng.choice("&|^").join(outer)


def _literal(rng: Random) -> str:
    return "!" * (rng.random() < 0.35) + rng.choice("xy")


_ARGUMENTS: dict[str, Callable[[Random], str]] = {
    "add": _add_arguments,
    "mod": _mod_arguments,
    "rev": _rev_arguments,
    "sort": _sort_arguments,
    "bool": _bool_arguments,
    "conv": _conv_arguments,
}


def _solve_add(arguments: str) -> str:
    left, right = arguments.split()
    return str(int(left) + int(right))


def _solve_mod(arguments: str) -> str:
    number, modulus = arguments.split()
    return str(int(number) % int(modulus))


def _solve_conv(arguments: str) -> str:
    number, unit = arguments.split()
    if unit not in UNITS:
        raise ValueError(f"unknown unit {unit!r}")
    return str(int(number) * UNITS[unit])


def _solve_bool(expression: str) -> str:
    """The truth table as four digits, for (x, y) = 00, 01, 10, 11."""
    values, rest = _expression(expression)
    if rest:
        raise ValueError(f"left over in expression: {rest!r}")
    return "".join(map(str, values))


def _expression(text: str) -> tuple[list[int], str]:
    """One term, or two joined by an operator; no precedence, since our expressions bracket everything deeper."""
    left, rest = _term(text)
    if not rest or rest[0] not in _OPERATORS:
        return left, rest
    right, tail = _term(rest[1:])
    return [_OPERATORS[rest[0]](a, b) for a, b in zip(left, right, strict=True)], tail


def _term(text: str) -> tuple[list[int], str]:
    if text.startswith("!"):
        values, rest = _term(text[1:])
        return [1 - value for value in values], rest
    if text.startswith("("):
        values, rest = _expression(text[1:])
        if not rest.startswith(")"):
            raise ValueError(f"bracket not closed before {rest!r}")
        return values, rest[1:]
    if text[:1] not in ("x", "y"):
        raise ValueError(f"expected x, y or a bracket at {text!r}")
    return [assignment["xy".index(text[0])] for assignment in _ASSIGNMENTS], text[1:]


_SOLVERS: dict[str, Callable[[str], str]] = {
    "add": _solve_add,
    "mod": _solve_mod,
    "rev": lambda arguments: arguments[::-1],
    "sort": lambda arguments: "".join(sorted(arguments)),
    "bool": _solve_bool,
    "conv": _solve_conv,
}


def _slip_letters(rng: Random, question: Question) -> str:
    letters, roll = list(question.answer), rng.random()
    place = rng.randrange(len(letters))
    if roll < 0.4 and place:
        letters[place - 1], letters[place] = letters[place], letters[place - 1]
    elif roll < 0.65:
        letters[place] = rng.choice(LETTERS)
    elif roll < 0.8:
        del letters[place]
    elif roll < 0.95:
        letters.insert(place, letters[place])
    else:
        rng.shuffle(letters)
    return "".join(letters)


def _slip_bits(rng: Random, question: Question) -> str:
    bits = list(question.answer)
    for place in rng.sample(range(4), 1 if rng.random() < 0.6 else 2):
        bits[place] = "1" if bits[place] == "0" else "0"
    return "".join(bits)


def _slip_remainder(rng: Random, question: Question) -> str:
    return str(rng.randrange(int(question.prompt.split()[2])))


def _slip_digits(rng: Random, question: Question) -> str:
    roll = rng.random()
    if roll < 0.5:
        digits = list(question.answer)
        place = rng.randrange(len(digits))
        digits[place] = str((int(digits[place]) + rng.choice((1, 2, 8, 9))) % 10)
        return "".join(digits)
    if roll < 0.8:
        return str(max(0, int(question.answer) + rng.choice((-100, -10, -1, 1, 10, 100))))
    return far_miss(rng, question)


_SLIPS: dict[str, Callable[[Random, Question], str]] = {
    "add": _slip_digits,
    "mod": _slip_remainder,
    "rev": _slip_letters,
    "sort": _slip_letters,
    "bool": _slip_bits,
    "conv": _slip_digits,
}
