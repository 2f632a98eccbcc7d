"""A probe: a question, its known answer and a near miss; and how any question is recognised as one whose answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from protocol.job import Job, Role, Turn
from protocol.probes import toy
from protocol.probes.answers import Known, near_miss
from protocol.probes.phrases import TEMPLATES, phrase, recognise
from protocol.skills import TOPIC_OF_TOY, skill_of_text

SKILLS = (*toy.SKILLS, *dict.fromkeys(template.topic for template in TEMPLATES))
"""Every skill that fresh tasks exist for."""

_NEVER_TRAINED = 0.1
"""Share of toy tasks from the part that training left out, as large as that part is: else a probe would be known by its lack."""


@dataclass(frozen=True, slots=True)
class Task:
    """A question whose answer is known. `miss` is a wrong answer that somebody might give who almost knows."""

    skill: str
    text: str
    known: Known
    miss: str


def fresh(skill: str, rng: Random) -> Task:
    """A new task of `skill`; raises ValueError for a skill that no tasks exist for."""
    if skill in TOPIC_OF_TOY:
        return _toy(skill, rng)
    found = [template for template in TEMPLATES if template.topic == skill]
    if not found:
        raise ValueError(f"there are no tasks of skill {skill!r}; there are {', '.join(SKILLS)}")
    template = rng.choice(found)
    text, known = phrase(template, rng.randrange(len(template.phrasings)), rng)
    return Task(skill_of_text(text), text, known, near_miss(known, rng))


def alike(question: str, rng: Random) -> Task | None:
    """A new task in the very words of `question`, with other numbers and names; None where it is not one of ours in kind."""
    skill = skill_of_text(question)
    if skill in TOPIC_OF_TOY:
        return _toy(skill, rng)
    found = recognise(question)
    if found is None:
        return None
    text, known = phrase(found.template, found.phrasing, rng)
    return Task(skill_of_text(text), text, known, near_miss(known, rng))


def known_answer(turns: Sequence[Turn]) -> Known | None:
    """The right answer to a question that can be worked out; None for any other, and for one that earlier turns may bear on."""
    if any(turn.role is not Role.SYSTEM for turn in turns[:-1]) or turns[-1].role is not Role.USER:
        return None
    question = turns[-1].content
    if skill_of_text(question) in TOPIC_OF_TOY:
        try:
            return Known(toy.solve(question.strip()))
        except (ValueError, ZeroDivisionError):
            return None
    found = recognise(question)
    return None if found is None else found.known


def known_answer_of(job: Job) -> Known | None:
    """As `known_answer`; None where tools or a form are asked for, which change what an answer looks like."""
    return known_answer(job.turns) if job.extras is None or (job.extras.top_logprobs >= 0 and not job.extras.tools) else None


def _toy(skill: str, rng: Random) -> Task:
    question = toy.draw(rng, skill, test=rng.random() < _NEVER_TRAINED)
    return Task(skill, question.prompt, Known(question.answer), toy.near_miss(rng, question))
