"""Decides whether a free answer says what is known to be right, by the kind of answer that is wanted. Knows no question."""

import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from protocol.round.classes import normalise
from protocol.round.messages import AnswerKind
from protocol.round.normal_forms import normal_form

Kind = Literal["exact", "number", "word", "choice", "letter"]
"""What is asked for: a text to the letter, a number, letters in a given order, one of a few words, or an option's letter."""

MAX_READ_CHARS = 4_000
"""Of an answer; what comes later does not count."""

MAX_TRUTH_CHARS = 200

_NUMBER = re.compile(r"-?[0-9][0-9,]{0,30}(?:\.[0-9]{1,20})?")
_BOXED = re.compile(r"\\boxed\{([^{}]{1,60})\}")
_SAID = re.compile(r"(?:answer|result|total|output|value)\s{0,3}(?:is|are|:|=)[\s*`$]{0,6}([^\n]{1,80})", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]+")
_PLAIN = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_LETTER = re.compile(r"[A-J]")
_PAIRS = (("yes", "no"), ("true", "false"))
_SENTENCE_END = re.compile(r"[.!?\n]")
_HENCE = re.compile(r"\b(?:so|hence|thus|therefore|consequently)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Known:
    """The right answer to a question. `options` are the words to choose from, where `kind` is "choice"."""

    truth: str
    kind: Kind = "exact"
    options: tuple[str, ...] = ()


def known_from(answer: str, form: AnswerKind) -> Known | None:
    """What an answer that is taken for right lets be checked of others, who may say it in more words; None where only a judge
    could tell: prose, code, names of several words, numbers with units."""
    key = normal_form(answer, form)
    if form == "number" and _PLAIN.fullmatch(key):
        return Known(key, "number")
    if form == "choice" and _LETTER.fullmatch(key):
        return Known(key, "letter")
    if form == "short" and _WORDS.fullmatch(key):
        pair = next((pair for pair in _PAIRS if key in pair), ())
        return Known(key, "choice", pair) if pair else Known(key, "word")
    return None


def is_right(known: Known, answer: str) -> bool:
    """Whether `answer` says the truth; an answer that takes two sides counts by what it says last."""
    text = answer.strip()[:MAX_READ_CHARS]
    match known.kind:
        case "exact":
            return normalise(text) == normalise(known.truth)
        case "number":
            return normalise(known.truth) in (_number_of(text), normal_form(text, "number"))
        case "choice":
            return _chosen(text, known.options) == known.truth
        case "letter":
            return known.truth in (normal_form(text, "choice"), normal_form(_pointed(text), "choice"))
        case "word":
            return _spells(text.lower(), known.truth)


def near_miss(known: Known, rng: Random) -> str:
    """A wrong answer of the kind that somebody gives who almost knows."""
    if known.kind == "choice":
        return rng.choice([option for option in known.options if option != known.truth])
    if known.kind == "letter":
        return rng.choice([letter for letter in "ABCD" if letter != known.truth])
    if re.fullmatch(r"-?[0-9]{1,15}", known.truth):
        return str(int(known.truth) + rng.choice((-10, -2, -1, 1, 2, 10)))
    return _slipped(known.truth, rng)


def _slipped(text: str, rng: Random) -> str:
    places = [place for place in range(1, len(text)) if text[place - 1] != text[place]]
    if not places:
        return text + text[-1:] if text else "?"
    place = rng.choice(places)
    return text[: place - 1] + text[place] + text[place - 1] + text[place + 1 :]


def _pointed(text: str) -> str:
    """The part of an answer that says that it is the answer, or else all of it."""
    boxed = _BOXED.findall(text)
    said = _SAID.findall(text)
    return str(boxed[-1] if boxed else said[-1] if said else text)


def _chosen(text: str, options: tuple[str, ...]) -> str:
    """The one option that the answer points at, or that the last sentence with any names; "" where that names several.

    So a reply that repeats the question, or lists all options, has chosen none.
    """
    pointed = _pointed(text)
    if pointed == text:
        pointed = _HENCE.split(text)[-1]
    for sentence in reversed(_SENTENCE_END.split(pointed.lower())):
        named = {word for word in _WORDS.findall(sentence) if word in options}
        if named:
            return named.pop() if len(named) == 1 else ""
    return ""


def _number_of(text: str) -> str:
    pointed = _pointed(text)
    found = _NUMBER.findall(pointed)
    # After "the answer is" the number comes first and a remark may follow; in free text the last one is the result.
    chosen = (found[0] if pointed != text else found[-1]) if found else ""
    return normalise(chosen.replace(",", ""))


def _spells(text: str, truth: str) -> bool:
    """The word itself among the words, or its letters one by one in the last line: "d-r-o-w"."""
    if truth in _WORDS.findall(text):
        return True
    last = text.splitlines()[-1] if text else ""
    return "".join(_WORDS.findall(last.rpartition(":")[2])) == truth
