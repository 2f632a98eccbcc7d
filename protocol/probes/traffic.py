"""What our own user's questions look like, so that probes can look the same: shapes, kinds and solved questions, all bounded.

Decides what a probe asks and how it is dressed. Nothing of it leaves this peer but as a question like those it was learnt from.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from msgspec import structs

from protocol.job import ROUND_TOKENS, ROUTE_TOKENS, Job, Role, Sampling, Turn
from protocol.probes.answers import MAX_TRUTH_CHARS, Known, near_miss
from protocol.probes.task import Task, alike, fresh, known_answer
from protocol.skills import skill_of

MAX_SHAPES = 64
MAX_SOLVED = 256
MAX_SOLVED_CHARS = 2_000
"""Of a question that is kept with its answer."""

FRESH_SHARE = 0.5
"""Of probes that could also be a solved question of ours: a peer that saw many of those may have met one before."""


@dataclass(frozen=True, slots=True)
class Shape:
    """All of a job but its question: sampling, what the system turn says ("" for none), and whether a model is named."""

    sampling: Sampling
    system: str = ""
    names_model: bool = False


PLAIN = Shape(Sampling(ROUTE_TOKENS))
"""Of a probe before our user asked anything: what `swarmd ask` sends."""

PLAIN_ROUND = Shape(Sampling(ROUND_TOKENS))
"""Likewise of a gold round: what `swarmd ask --strategy rank` sends."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A question of our user whose answer is known by now, by what was said of it. `asked` are those who have seen it."""

    text: str
    skill: str
    known: Known
    asked: frozenset[str]


class Traffic:
    """The latest jobs of our user. Texts are kept for questions with a known answer alone; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._shapes: deque[Shape] = deque(maxlen=MAX_SHAPES)
        self._round_shapes: deque[Shape] = deque(maxlen=MAX_SHAPES)
        self._kinds: deque[str] = deque(maxlen=MAX_SHAPES)
        """Questions that are ours in kind: others are put in their words."""
        self._solved: deque[Solved] = deque(maxlen=MAX_SOLVED)

    def note(self, job: Job, rng: Random, in_round: bool = False) -> None:
        """Our user asked this, of one peer or `in_round`: the two have lengths of their own, by which a probe could be told."""
        question, earlier = job.turns[-1], job.turns[:-1]
        if job.extras is not None or question.role is not Role.USER or any(turn.role is not Role.SYSTEM for turn in earlier):
            return  # a conversation under way cannot be imitated by one question
        system = "\n".join(turn.content for turn in earlier)
        if len(system) <= MAX_SOLVED_CHARS:
            (self._round_shapes if in_round else self._shapes).append(Shape(job.sampling, system, bool(job.model)))
        if alike(question.content, rng) is not None:
            self._kinds.append(question.content)

    def solve(self, job: Job, known: Known, asked: frozenset[str]) -> None:
        """The answer to a question of our user is known by now, as by a unanimous round; `asked` are the peers that saw it."""
        text = job.turns[-1].content
        if len(job.turns) > 1 or job.extras is not None or len(text) > MAX_SOLVED_CHARS or len(known.truth) > MAX_TRUTH_CHARS:
            return
        if all(solved.text != text for solved in self._solved):
            self._solved.append(Solved(text, skill_of(job), known, asked))

    def task(self, peer: str, fallback: tuple[str, ...], rng: Random) -> Task:
        """What to ask `peer` ("" for a whole round): of the kinds that our user asks, else one of `fallback`'s skills."""
        unseen = [solved for solved in self._solved if peer not in solved.asked] if peer else []
        if unseen and rng.random() >= FRESH_SHARE:
            solved = rng.choice(unseen)
            self._solved.remove(solved)  # the peer has seen it from now on, and so may others that it talks to
            return Task(solved.skill, solved.text, solved.known, near_miss(solved.known, rng))
        if self._kinds and (task := alike(rng.choice(self._kinds), rng)) is not None:
            return task
        return fresh(rng.choice(fallback), rng)

    def shape(self, rng: Random, in_round: bool = False) -> Shape:
        """One of our user's shapes, as often as it comes; with a seed of its own where each of our user's has one."""
        shapes, plain = (self._round_shapes, PLAIN_ROUND) if in_round else (self._shapes, PLAIN)
        if not shapes:
            return plain
        shape = rng.choice(shapes)
        drawn = rng.randrange(1, 2**31)
        return replace(shape, sampling=structs.replace(shape.sampling, seed=drawn)) if _is_drawn(shape, shapes) else shape

    @property
    def solved(self) -> int:
        """Questions with a known answer that were not used yet."""
        return len(self._solved)


def _is_drawn(shape: Shape, among: Iterable[Shape]) -> bool:
    """Whether its seed will have been drawn for one job: nobody draws one for the likeliest answer, or the same one twice."""
    seed = shape.sampling.seed
    return seed > 0 and shape.sampling.temperature_milli > 0 and sum(one.sampling.seed == seed for one in among) == 1


def bind(task: Task, shape: Shape, model: str) -> Job:
    """The job that asks `task` in the given shape; `model` is what the asked peer serves."""
    system = (Turn(Role.SYSTEM, shape.system),) if shape.system else ()
    return Job((*system, Turn(Role.USER, task.text)), shape.sampling, model if shape.names_model else "")


def known_of(job: Job) -> Known | None:
    """The answer to any job's question, where it can be worked out."""
    return None if job.extras is not None else known_answer(job.turns)
