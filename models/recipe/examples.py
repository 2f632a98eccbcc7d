"""Decides what training shows: generation alone, and whole judging conversations with several targets at once.

Judging is supervised at every token and not only at the letter: a letter alone is one bit per conversation, and with it
the loss rests for long on the plateau of a coin.
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from . import skills
from .chat import ASSISTANT, EOS, LETTER, NEWLINE, PAD, USER, encode
from .skills import Question

IGNORE = -100
GENERATE, CHOOSE, CONTINUE = 1, 2, 3
"""What a target teaches: its own answer, the letter, or how a candidate should go on as long as it is right."""
UNTAUGHT_RIGHT = 0.3
"""How often a judge's own answer to a question it was not taught is taken to be right."""
OWN_IS_RIVAL = 0.4
"""How often a wrong answer of its own is the very one that the judge has to compare."""
_POOLED_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Mix:
    """What a stage is made of: the share of judging batches, and the weight of each skill in both kinds."""

    judging: float
    generate: dict[str, float]
    judge: dict[str, float]
    own_right: dict[str, float]
    """How often the judge's own answer is right, by skill: it should be as often as it will be in use."""
    taught: frozenset[str]
    """The skills taught in full; of the others only the easy part is."""
    judge_untaught: bool
    """Whether judging also shows questions that are not taught, so that a judge learns how little its own answer says there."""


@dataclass(slots=True)
class Row:
    """One example: tokens, then per token what should come next, why, whether a candidate's token is right (-1: no say)."""

    ids: list[int]
    targets: list[int]
    kinds: list[int]
    sound: list[int]

    @classmethod
    def of(cls, ids: list[int]) -> "Row":
        size = len(ids)
        return cls(ids, [IGNORE] * size, [0] * size, [-1] * size)

    def expect(self, start: int, text: str, right: str, end: int, kind: int) -> None:
        """`text` begins after token `start`; while it agrees with `right`, the next token of `right` is the target."""
        goal = [*encode(right), end]
        for length in range(len(text) + 1):
            if text[:length] == right[:length] and length < len(goal):
                self.targets[start + length], self.kinds[start + length] = goal[length], kind

    def letter_only(self) -> "Row":
        """The same row for a question that is not taught: it must not give the answer away."""
        kinds = [kind if kind == CHOOSE else 0 for kind in self.kinds]
        return Row(self.ids, self.targets, kinds, [-1] * len(self.sound))

    def mark_sound(self, start: int, text: str, right: str) -> None:
        """Per token of `text` up to its first slip, and at the token that ends it, whether the token is right.

        What follows a slip is left open: a judge has to find one slip, not to keep a tally.
        """
        ended, goal = f"{text}\n", f"{right}\n"
        for place, character in enumerate(ended, start=1):
            sound = goal[place - 1 : place] == character
            self.sound[start + place] = int(sound)
            if not sound:
                return


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded to one length."""

    ids: Tensor
    targets: Tensor
    kinds: Tensor
    sound: Tensor


class Examples:
    """An endless, seeded stream of batches."""

    def __init__(self, seed: int, mix: Mix, batch_size: int) -> None:
        self.rng, self.mix, self.batch_size = Random(seed), mix, batch_size
        self._pools: dict[bool, list[list[Row]]] = {False: [], True: []}

    def next_batch(self, closeness: float) -> Batch:
        """`closeness` is the share of near misses among the rivals."""
        judging = self.rng.random() < self.mix.judging
        pool = self._pools[judging]
        if not pool:
            pool.extend(self._draw_pool(judging, closeness))
        return _pad(pool.pop())

    def _draw_pool(self, judging: bool, closeness: float) -> list[list[Row]]:
        """Several batches at a time, cut by length, so that little of a batch is padding."""
        weights = self.mix.judge if judging else self.mix.generate
        size = self.batch_size
        chosen = self.rng.choices(list(weights), list(weights.values()), k=size * _POOLED_BATCHES)
        questions = [self._draw(skill, judging) for skill in chosen]
        rows = [self._judge(q, closeness) if judging else generate_row(q) for q in questions]
        rows.sort(key=lambda row: len(row.ids))
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        self.rng.shuffle(batches)
        return batches

    def _draw(self, skill: str, judging: bool) -> Question:
        everything = skill in self.mix.taught or (judging and self.mix.judge_untaught)
        return skills.draw(self.rng, skill) if everything else skills.draw_easy(self.rng, skill)

    def _judge(self, question: Question, closeness: float) -> Row:
        rival = self._rival(question, closeness)
        roll = self.rng.random()
        taught = question.skill in self.mix.taught or skills.is_easy(question.prompt)
        own_right = self.mix.own_right[question.skill] if taught else UNTAUGHT_RIGHT
        if roll < own_right:
            own = question.answer
        elif roll < own_right + (1 - own_right) * OWN_IS_RIVAL:
            own = rival
        else:
            own = self._rival(question, closeness)
        row = judge_row(question, own, rival, right_first=self.rng.random() < 0.5)
        return row if taught else row.letter_only()

    def _rival(self, question: Question, closeness: float) -> str:
        miss = skills.near_miss if self.rng.random() < closeness else skills.far_miss
        return miss(self.rng, question)


def generate_row(question: Question) -> Row:
    prompt = [USER, *encode(question.prompt), ASSISTANT]
    row = Row.of(prompt + encode(question.answer))
    row.expect(len(prompt) - 1, question.answer, question.answer, EOS, GENERATE)
    return row


def judge_row(question: Question, own: str, rival: str, *, right_first: bool) -> Row:
    right = question.answer
    first, second = (right, rival) if right_first else (rival, right)
    asked = [USER, *encode(question.prompt), ASSISTANT]
    answered = [*asked, *encode(own), USER, *encode("A:")]
    compared = [*answered, *encode(first), NEWLINE, *encode("B:")]
    letter = LETTER["A" if right_first else "B"]
    row = Row.of([*compared, *encode(second), ASSISTANT, letter])
    row.expect(len(asked) - 1, own, right, EOS, GENERATE)
    for start, text, end in ((len(answered) - 1, first, NEWLINE), (len(compared) - 1, second, ASSISTANT)):
        row.expect(start, text, right, end, CONTINUE)
        row.mark_sound(start, text, right)
    row.targets[-2:], row.kinds[-2:] = [letter, EOS], [CHOOSE, CONTINUE]
    return row


def _pad(rows: list[Row]) -> Batch:
    longest = max(len(row.ids) for row in rows)

    def stack(columns: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([column + [filler] * (longest - len(column)) for column in columns])

    return Batch(
        stack([row.ids for row in rows], PAD),
        stack([row.targets for row in rows], IGNORE),
        stack([row.kinds for row in rows], 0),
        stack([row.sound for row in rows], -1),
    )
