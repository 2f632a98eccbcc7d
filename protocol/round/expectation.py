"""How often a committee is expected to be right, and at what cost, before it is asked. An estimate: decides no verdict.

Members and judges are drawn as right or wrong by what gold says of them, harder and easier questions alike for all, which is what
makes real members err together; then votes and judgements are added up as the fold would.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from statistics import fmean

from protocol.round.weights import WRONG_WAYS

DRAWS = 400
"""The estimate's own error is 2.5 points at most (one standard deviation); it takes some 5 ms."""

HARDNESS_NATS = (-1.5, 0.0, 1.5)
"""Three kinds of question, in log-odds: they let errors of equal members correlate by some 0.3, as measured (0.33 to 0.43)."""

PAIRS_PER_JUDGE = 4
JUDGEMENT_COST = 0.3
"""Of one answer: a judge reads the question and two answers and says one token."""

JUDGED_ANYWAY = 0.25
"""Share of rounds in which judges are asked although no judgement could change what votes decide: so they stay known."""

WRONG_COST = 20.0
"""What a wrong answer costs its user, in answers: else one call were always the cheapest."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One expected voice: its shares of right answers and judgements (0 to 1) and its weights (milli-nats). `members` that are of
    one configuration or block err together and share it."""

    answers: float
    judges: float
    answer_milli: int
    judge_milli: int
    members: int = 1


def one_voice(seats: Sequence[Seat], shared: Sequence[Hashable]) -> list[Seat]:
    """`seats` with those of equal `shared` made one, as the fold counts them."""
    groups: dict[Hashable, list[Seat]] = {}
    for seat, voice in zip(seats, shared, strict=True):
        groups.setdefault(voice, []).append(seat)
    return [
        Seat(
            fmean(seat.answers for seat in group),
            fmean(seat.judges for seat in group),
            sum(seat.answer_milli for seat in group) // len(group),
            sum(seat.judge_milli for seat in group) // len(group),
            len(group),
        )
        for group in groups.values()
    ]


@dataclass(frozen=True, slots=True)
class Expected:
    """One way to ask. `cost` in answers, `right` as a share; `per_right` is what a right answer costs, wrong ones charged."""

    cost: float
    right: float

    @property
    def per_right(self) -> float:
        """(cost + wrong answers' cost) / right answers."""
        return (self.cost + WRONG_COST * (1 - self.right)) / max(self.right, 0.01)


def of_route(best: float) -> Expected:
    """One peer that is right in this share of cases."""
    return Expected(1.0, best)


def of_round(seats: Sequence[Seat], judged: bool, rng: Random) -> Expected:
    """A committee of these members."""
    members = sum(seat.members for seat in seats)
    drawn = [_outcome(seats, judged, HARDNESS_NATS[number % len(HARDNESS_NATS)], rng) for number in range(DRAWS)]
    right, asked = (sum(column) / DRAWS for column in zip(*drawn, strict=True))
    return Expected(members + asked * members * PAIRS_PER_JUDGE * JUDGEMENT_COST, right)


def _outcome(seats: Sequence[Seat], judged: bool, hardness: float, rng: Random) -> tuple[bool, float]:
    """Whether the right answer wins, and how often judges are asked: not where all agree, and seldom where votes decide."""
    scores = [0.0] * (WRONG_WAYS + 1)
    given = [False] * len(scores)
    for seat in seats:
        way = 0 if rng.random() < _shifted(seat.answers, hardness) else rng.randint(1, WRONG_WAYS)
        scores[way] += seat.answer_milli
        given[way] = True
    rivals = [way for way in range(1, len(scores)) if given[way]]
    ahead = sorted((score for score, said in zip(scores, given, strict=True) if said), reverse=True)
    decided = len(ahead) > 1 and ahead[0] - ahead[1] > sum(abs(seat.judge_milli) for seat in seats)
    asked = float(judged and len(ahead) > 1) * (JUDGED_ANYWAY if decided else 1.0)
    if not given[0]:
        return False, asked
    if asked and not decided:
        for seat in seats:
            for way in rivals:
                sign = 1 if rng.random() < _shifted(seat.judges, hardness) else -1
                scores[0] += sign * seat.judge_milli / 2 / len(rivals)
                scores[way] -= sign * seat.judge_milli / 2 / len(rivals)
    return all(scores[0] > scores[way] for way in rivals), asked


def _shifted(share: float, hardness: float) -> float:
    """`share` on a question harder by so many nats, so that the mean over HARDNESS_NATS stays near `share`."""
    bounded = min(0.98, max(0.02, share))
    odds = bounded / (1 - bounded)
    return odds / (odds + exp(hardness))
