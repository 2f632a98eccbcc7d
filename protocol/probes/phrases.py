"""Tasks in natural words: each template draws its numbers, knows the answer, and recognises a question that is put so.

A peer can read these templates here. What hides a probe is that a mesh's own questions are of the same kind, and that the daemon
draws its probes from the kinds that its own user asks (`protocol.probes.traffic`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from protocol.probes.answers import Kind, Known

Values = Mapping[str, str]

MAX_QUESTION_CHARS = 600
"""Longer questions are not looked at: no template is as long."""

_NAMES = ("Ann", "Bob", "Cem", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jill", "Kofi", "Lena", "Milo", "Nora", "Otto", "Pia")
_GROUPS = ("cats", "poets", "bakers", "sailors", "otters", "pilots", "robots", "judges", "singers", "farmers", "wolves", "clerks")
_WORDS = (
    "anchor", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle", "ladder",
    "marble", "needle", "orange", "pepper", "quarry", "rocket", "saddle", "timber", "umbrella", "violin", "window", "yellow",
    "zipper", "bridge", "copper", "desert", "falcon", "guitar", "harbor", "lantern", "meadow", "orchard", "planet", "ribbon",
    "silver", "thunder", "velvet", "whistle", "compass", "feather", "glacier", "journey", "mosaic", "nectar", "puzzle",
    "sparrow", "tunnel", "voyage",
)  # fmt: skip
_UNITS = (
    ("feet", "inches", 12), ("hours", "minutes", 60), ("minutes", "seconds", 60), ("weeks", "days", 7), ("days", "hours", 24),
    ("kilometers", "meters", 1000), ("meters", "centimeters", 100), ("pounds", "ounces", 16), ("gallons", "pints", 8),
    ("kilograms", "grams", 1000), ("yards", "feet", 3), ("dozens", "single pieces", 12),
)  # fmt: skip
_PER = {(one, other): factor for one, other, factor in _UNITS}
_SHAPES = {"w": r"[a-z]{3,20}", "c": r"[a-z]", "x": r"[A-Z][a-z]{1,15}", "g": r"[a-z]{3,20}", "u": r"[a-z ]{4,20}"}
"""What a field may hold, by the first letter of its name; any other is a whole number."""


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of task. `solve` raises ValueError, KeyError or ZeroDivisionError for values that make no sense."""

    topic: str
    phrasings: tuple[str, ...]
    draw: Callable[[Random], Values]
    solve: Callable[[Values], str]
    kind: Kind = "number"
    options: Callable[[Values], tuple[str, ...]] = lambda values: ()

    def known(self, values: Values) -> Known:
        """The answer for these values."""
        return Known(self.solve(values), self.kind, self.options(values))


@dataclass(frozen=True, slots=True)
class Recognised:
    """A question that is one of ours in kind: its template and which of its phrasings."""

    template: Template
    phrasing: int
    known: Known


def phrase(template: Template, phrasing: int, rng: Random) -> tuple[str, Known]:
    """A fresh question in the given words, and its answer."""
    values = template.draw(rng)
    return template.phrasings[phrasing].format(**values), template.known(values)


def recognise(question: str) -> Recognised | None:
    """The template, phrasing and answer of a question that is put as one of ours is; None for any other."""
    if len(question) > MAX_QUESTION_CHARS:
        return None
    for template, phrasing, pattern in _PATTERNS:
        if found := pattern.fullmatch(question.strip()):
            try:
                return Recognised(template, phrasing, template.known(found.groupdict()))
            except (ValueError, KeyError, ZeroDivisionError):
                continue
    return None


def _two(low: int, high: int, second: tuple[int, int]) -> Callable[[Random], Values]:
    return lambda rng: {"a": str(rng.randint(low, high)), "b": str(rng.randint(*second))}


def _whole(work: Callable[[int, int], int]) -> Callable[[Values], str]:
    return lambda values: str(work(int(values["a"]), int(values["b"])))


def _word(rng: Random) -> Values:
    return {"w": rng.choice(_WORDS)}


def _letter(rng: Random) -> Values:
    word = rng.choice(_WORDS)
    return {"w": word, "c": rng.choice(word)}


def _three(names: Sequence[str]) -> Callable[[Random], Values]:
    def draw(rng: Random) -> Values:
        one, two, three = rng.sample(names, 3)
        key = "x" if names is _NAMES else "g"
        return {f"{key}1": one, f"{key}2": two, f"{key}3": three}

    return draw


def _lower(values: Values) -> tuple[str, ...]:
    return tuple(value.lower() for value in values.values())


def _truth(values: Values) -> tuple[str, ...]:
    return ("true", "false")


def _units(rng: Random) -> Values:
    one, other, _ = rng.choice(_UNITS)
    return {"a": str(rng.randint(2, 60)), "u1": one, "u2": other}


def _snippet(rng: Random) -> Values:
    start = rng.randint(1, 20)
    return {"a": str(start), "b": str(start + rng.randint(2, 9))}


TEMPLATES: tuple[Template, ...] = (
    Template(
        "arithmetic",
        ("What is {a} + {b}?", "How much is {a} plus {b}?", "Calculate {a} + {b}.", "What do you get if you add {a} and {b}?",
         "Compute the sum of {a} and {b}."),
        _two(11, 989, (11, 989)), _whole(lambda a, b: a + b),
    ),
    Template(
        "arithmetic",
        ("What is {a} - {b}?", "Subtract {b} from {a}.", "How much is {a} minus {b}?", "What is the difference {a} - {b}?"),
        _two(300, 999, (11, 299)), _whole(lambda a, b: a - b),
    ),
    Template(
        "arithmetic",
        ("What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.", "Calculate the product of {a} and {b}."),
        _two(11, 99, (3, 19)), _whole(lambda a, b: a * b),
    ),
    Template(
        "arithmetic",
        ("What is the remainder when {a} is divided by {b}?", "What remains if {a} is divided by {b}?",
         "What is {a} modulo {b}?"),
        _two(20, 999, (3, 13)), _whole(lambda a, b: a % b),
    ),
    Template(
        "arithmetic",
        ("A box holds {a} pens. How many pens are in {b} boxes?", "One ticket costs {a} dollars. How much do {b} tickets cost?",
         "A train has {b} cars with {a} seats each. How many seats does it have in total?"),
        _two(6, 48, (3, 15)), _whole(lambda a, b: a * b),
    ),
    Template(
        "logic",
        ("{x1} is taller than {x2}, and {x2} is taller than {x3}. Who is the shortest? Answer with the name only.",
         "{x1} is older than {x2}. {x2} is older than {x3}. Which of the three is the youngest? Give just the name."),
        _three(_NAMES), lambda values: values["x3"].lower(), "choice", _lower,
    ),
    Template(
        "logic",
        ("{x1} is taller than {x2}, and {x2} is taller than {x3}. Who is the tallest? Answer with the name only.",
         "{x1} is older than {x2}. {x2} is older than {x3}. Which of the three is the oldest? Give just the name."),
        _three(_NAMES), lambda values: values["x1"].lower(), "choice", _lower,
    ),
    Template(
        "logic",
        ("All {g1} are {g2}, and all {g2} are {g3}. True or false: all {g1} are {g3}?",
         "Every one of the {g1} is among the {g2}, and no {g3} are missing from the {g2}. True or false: all {g1} are {g2}?"),
        _three(_GROUPS), lambda values: "true", "choice", _truth,
    ),
    Template(
        "logic",
        ("All {g1} are {g2}, and no {g2} are {g3}. True or false: some {g1} are {g3}?",
         "No {g1} are {g2}, and all {g3} are {g2}. True or false: some {g3} are {g1}?"),
        _three(_GROUPS), lambda values: "false", "choice", _truth,
    ),
    Template(
        "string",
        ('Spell the word "{w}" backwards.', 'Reverse the letters of "{w}".', 'What is "{w}" written backwards?'),
        _word, lambda values: values["w"][::-1], "word",
    ),
    Template(
        "string",
        ('Put the letters of "{w}" in alphabetical order.', 'Sort the letters of the word "{w}" alphabetically.'),
        _word, lambda values: "".join(sorted(values["w"])), "word",
    ),
    Template(
        "string",
        ('How many times does the letter "{c}" occur in "{w}"?', 'How often does the letter {c} appear in the word "{w}"?'),
        _letter, lambda values: str(values["w"].count(values["c"])),
    ),
    Template(
        "unit",
        ("Convert {a} {u1} to {u2}.", "How many {u2} are there in {a} {u1}?", "How many {u2} are {a} {u1}?"),
        _units, lambda values: str(int(values["a"]) * _PER[values["u1"], values["u2"]]),
    ),
    Template(
        "code",
        ("What does this Python code print?\n\nprint(sum(range({a}, {b})))",
         "What is the output of this Python program?\n```python\ntotal = 0\nfor i in range({a}, {b}):\n    total += i\n"
         "print(total)\n```"),
        _snippet, lambda values: str(sum(range(int(values["a"]), _bounded(values["b"])))),
    ),
    Template(
        "code",
        ('What is the value of the Python expression len("{w}") * {a}?', 'What does print(len("{w}") * {a}) print in Python?'),
        lambda rng: {**_word(rng), "a": str(rng.randint(2, 19))}, lambda values: str(len(values["w"]) * int(values["a"])),
    ),
)  # fmt: skip
"""Every kind of task. Answers are worked out, never looked up."""


def _bounded(number: str) -> int:
    """A range's end that is cheap to sum; raises ValueError for any other."""
    if int(number) > 10_000:
        raise ValueError("too long a range")
    return int(number)


def _pattern(phrasing: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", phrasing)
    seen: set[str] = set()
    built = []
    for place, part in enumerate(parts):
        if place % 2 == 0:
            built.append(re.escape(part))
        elif part in seen:
            built.append(f"(?P={part})")
        else:
            seen.add(part)
            built.append(f"(?P<{part}>{_SHAPES.get(part[0], '[0-9]{1,6}')})")
    return re.compile("".join(built))


_PATTERNS = tuple((template, place, _pattern(words)) for template in TEMPLATES for place, words in enumerate(template.phrasings))
