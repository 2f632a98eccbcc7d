"""Ridge Bradley-Terry: how strong each contender is, from who was preferred to whom. Decides no winner.

Maximises sum of w (y log s(D) + (1-y) log s(-D)) - ridge/2 |theta - mean|^2, D = theta_a - theta_b, by steps along one coordinate
after the other. `mean` is what is expected of a contender before anybody judged.
Strengths are whole milli-nats, reckoned in doubles: sums, products and quotients in a given order, of powers of e made of whole
numbers, are the same bits on every machine of 64 bits. `math.exp` leaves its last bit to the C library, and since Python 3.12
`sum` keeps what is rounded off: the one is not used here, the other for whole numbers only.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import floor
from operator import itemgetter
from typing import NamedTuple

from protocol.round.logistic import exp_fixed
from protocol.wire.limits import MAX_COMMITTEE

RIDGE_JUDGEMENTS = 2.0
"""One answer lies some 0.7 nats from what is expected of its author. It keeps the undefeated finite, and says how firmly a
judged answer is drawn to that. Of 0.3, 0.6, 1, 2 and 3, picked on halves of bench/data's judgements by chance, 2 and 3 did best
on the other halves."""

MAX_SWEEPS = 60
"""A round as it is drawn settles in 2 to 5, one of far-apart means in 14; a chain of 500 contenders is still within a few
hundredths of a nat after these."""

SETTLED_MILLI = 5
"""The last sweep is the one after which, as moves shrink from sweep to sweep, the next would move nothing by more. Moves longer
than _SHRINKING_MILLI say nothing of that: they go to another part of the curve."""

_SHRINKING_MILLI = 250

_BOUND_MILLI = 16_384
"""Nobody whose mean is within 8192 gets so far: with all that ballots can say, an eighth beyond that is the most found."""

_LONGEST_STEP_MILLI = 1_000
"""Where one side is sure to win, the likelihood is straight, and a step by its bend could go anywhere."""

_FINE_BITS = 7
_FINE = (1 << _FINE_BITS) - 1


class Matches(NamedTuple):
    """Pairs of contenders, each unordered pair once, in an order that does not hang on that of the matches; their weights, not
    negative; and of each contender, by how much it won more than half of its matches, in millionths of a weight."""

    first: Sequence[int]
    second: Sequence[int]
    weight: Sequence[float]
    lead_micro: Sequence[float]


_Pick = Callable[[Sequence[float]], Sequence[float]]
_Met = tuple[_Pick | None, Sequence[float]]
"""What takes the opponents out of all contenders (None: all are), and the weight of the match with each."""

_Place = tuple[int, _Pick | None, Sequence[float], float, float, int]
"""A contender as the sweeps see it: its number, whom it met, the weight it won, one by the weight of all, and its mean."""


def strengths_milli(means: Sequence[int], matches: Matches, judgement: float) -> tuple[int, ...]:
    """Milli-nats, by contender; `means` are what is expected of each, within 8192, and `judgement` is the weight of one."""
    count, middle, ridge, lead = len(means), sum(means), RIDGE_JUDGEMENTS * judgement, matches.lead_micro
    met = _among_all(count, matches) if count <= MAX_COMMITTEE else _among_few(count, matches)
    fought = [sum(weights) for _, weights in met]
    strength = _start(means, lead, fought, ridge)
    powers = _powers(strength)
    rows = enumerate(zip(met, lead, fought, means, strict=True))
    places = [(i, *known, more / 1e6 + all_ / 2, 1 / (all_ or 1), mean) for i, (known, more, all_, mean) in rows]
    furthest = before = _sweep(strength, powers, places, ridge)
    for _ in range(MAX_SWEEPS - 1):
        if furthest * furthest <= SETTLED_MILLI * min(before, _SHRINKING_MILLI):
            break
        # At the optimum strengths add up to what the means do; single steps come to that last of all.
        if shift := floor((middle - sum(strength)) / count + 0.5):
            strength = [_within(value + shift) for value in strength]
            powers = _powers(strength)
        before, furthest = furthest, _sweep(strength, powers, places, ridge)
    return tuple(strength)


def _sweep(strength: list[int], powers: list[float], places: Sequence[_Place], ridge: float) -> int:
    """A step of each contender after the other, by the slope of its likelihood and the bend that this would have if it had won as
    much of every match, which is never less than the real one; how far the furthest went."""
    coarse, fine = _exponentials()
    pull, furthest = ridge / 1000, 0
    for number, pick, weights, start, inverse, mean in places:
        power, expected = powers[number], 0.0
        for weight, other in zip(weights, pick(powers) if pick else powers):  # noqa: B905 - an argument more costs time
            expected += weight / (power + other)
        expected *= power
        here = strength[number]
        slope, bend = start - expected - pull * (here - mean), ridge + expected - expected * expected * inverse
        if step := floor(1000.0 * slope / bend + 0.5):
            length = step if step > 0 else -step
            if length > _LONGEST_STEP_MILLI:
                step, length = _LONGEST_STEP_MILLI if step > 0 else -_LONGEST_STEP_MILLI, _LONGEST_STEP_MILLI
            here += step
            if not -_BOUND_MILLI <= here <= _BOUND_MILLI:
                here = _within(here)
            strength[number] = here
            powers[number] = coarse[here + _BOUND_MILLI >> _FINE_BITS] * fine[here + _BOUND_MILLI & _FINE]
            if length > furthest:
                furthest = length
    return furthest


def _within(strength: int) -> int:
    return max(-_BOUND_MILLI, min(_BOUND_MILLI, strength))


def _among_all(count: int, matches: Matches) -> list[_Met]:
    """For some contenders, of whom most have met: a row for each, with 0 for whom it did not meet."""
    rows = [[0.0] * count for _ in range(count)]
    for a, b, weight in zip(matches.first, matches.second, matches.weight, strict=True):
        rows[a][b] = rows[b][a] = weight
    return [(None, row) for row in rows]


def _among_few(count: int, matches: Matches) -> list[_Met]:
    """For many contenders, who met a few others each."""
    others: list[list[int]] = [[] for _ in range(count)]
    weights: list[list[float]] = [[] for _ in range(count)]
    for a, b, weight in zip(matches.first, matches.second, matches.weight, strict=True):
        others[a].append(b)
        others[b].append(a)
        weights[a].append(weight)
        weights[b].append(weight)
    return [(itemgetter(0, 0, *who), [0.0, 0.0, *known]) for who, known in zip(others, weights, strict=True)]


def _start(means: Sequence[int], lead: Sequence[float], fought: Sequence[float], ridge: float) -> list[int]:
    """One Newton step for all at once where all are expected alike: there the bend is a quarter of the weight, and nobody goes
    further than 2 nats."""
    mean = means[0]
    if means.count(mean) < len(means):
        return list(means)
    pull = 1000 * ridge
    return [mean + floor(more / (250.0 * all_ + pull) + 0.5) for more, all_ in zip(lead, fought, strict=True)]


def _powers(strength: Sequence[int]) -> list[float]:
    """e to the strength, times one number for all: only their ratios count."""
    coarse, fine = _exponentials()
    return [coarse[(value + _BOUND_MILLI) >> _FINE_BITS] * fine[(value + _BOUND_MILLI) & _FINE] for value in strength]


@cache
def _exponentials() -> tuple[list[float], list[float]]:
    """e to the power of each 128 thousandths up to twice the bound, and of each thousandth below 128."""
    one, last = exp_fixed(0), 2 * _BOUND_MILLI >> _FINE_BITS
    return [exp_fixed(step << _FINE_BITS) / one for step in range(last + 1)], [exp_fixed(step) / one for step in range(_FINE + 1)]
