"""Ridge Bradley-Terry in whole numbers: how strong each contender is, from who was preferred to whom. Decides no winner.

Maximises sum of w (y log s(D) + (1-y) log s(-D)) - ridge/2 |theta - mean|^2, D = theta_a - theta_b, by Newton steps along one
coordinate after the other. `mean` is what is expected of a contender before anybody judged.
The sums that enter are exact, and the sweeps go through contenders by number, so no order of input shows. They are kept in
doubles, in half the time of integers: whole numbers below 2**53 add up exactly there, in any order and on any machine.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from protocol.round.logistic import TABLE_REACH_MILLI, logistic_table

RIDGE_MILLI = 2_000
"""One answer lies some 0.7 nats from what is expected of its author. It keeps the undefeated finite, and says how firmly a
judged answer is drawn to that. Of 0.3, 0.6, 1, 2 and 3, picked on halves of bench/data's judgements by chance, 2 and 3 did best
on the other halves."""

MAX_SWEEPS = 60
"""A complete design settles in 3 to 5; a chain of 500 contenders is still within a few hundredths of a nat after these."""

SETTLED_MILLI = 4
"""A sweep that moves nothing by more is the last: the next one would move by an eighth of it in a complete design."""

_BOUND = TABLE_REACH_MILLI // 2
_RIDGE = RIDGE_MILLI * 1000

_Met = list[tuple[int, float]]
"""Whom a contender met, and the weight of that."""


class Matches(NamedTuple):
    """Pairs of contenders, each unordered pair once: the weight for the first one, and the weight of the pair, in thousandths of
    one judgement, the second positive and not less than the first. Weights of one contender together are below 2**32."""

    first: Sequence[int]
    second: Sequence[int]
    for_first: Sequence[int]
    weight: Sequence[int]


_Place = tuple[int, _Met, float, int]
"""A contender as the sweeps see it: its number, whom it met, and of its likelihood the slope without them and the bend, which
hardly changes after the first sweep."""


def strengths_milli(means: Sequence[int], matches: Matches) -> tuple[int, ...]:
    """Milli-nats, by contender; `means` are what is expected of each, within 8192."""
    count, middle = len(means), sum(means)
    met, won, fought = _by_contender(count, matches)
    strength = _start(means, won, fought)
    slopes = [-1_000_000.0 * value - _RIDGE * mean for value, mean in zip(won, means, strict=True)]
    places, furthest = _first_sweep(strength, met, slopes)
    sweeps = 1
    while furthest > SETTLED_MILLI:
        # At the optimum strengths add up to what the means do; single steps come to that last of all.
        shift = (2 * (middle - sum(strength)) + count) // (2 * count)
        strength = [_within(value + shift) for value in strength]
        if sweeps == MAX_SWEEPS:
            break
        furthest = _sweep(strength, places)
        sweeps += 1
    return tuple(strength)


def _first_sweep(strength: list[int], met: Sequence[_Met], slopes: Sequence[float]) -> tuple[list[_Place], int]:
    """One Newton step of each contender after the other: what later sweeps need, and how far the furthest went."""
    chance, spread = _tables()
    places, furthest = [], 0
    for number, (others, start) in enumerate(zip(met, slopes, strict=True)):
        here, slope, curve = strength[number], start, 1000.0 * _RIDGE
        origin = here + TABLE_REACH_MILLI
        for other, weight in others:
            gap = origin - strength[other]
            slope += weight * chance[gap]
            curve += weight * spread[gap]
        bend = int(curve)
        places.append((number, others, start, bend))
        if step := ((bend >> 1) - 1000 * (int(slope) + _RIDGE * here)) // bend:
            strength[number] = _within(here + step)
            furthest = max(furthest, abs(step))
    return places, furthest


def _sweep(strength: list[int], places: Sequence[_Place]) -> int:
    """The same with the bends of the first one."""
    chance, _ = _tables()
    furthest = 0
    for number, others, slope, bend in places:
        here = strength[number]
        origin = here + TABLE_REACH_MILLI
        for other, weight in others:
            slope += weight * chance[origin - strength[other]]
        if step := ((bend >> 1) - 1000 * (int(slope) + _RIDGE * here)) // bend:
            strength[number] = _within(here + step)
            furthest = max(furthest, abs(step))
    return furthest


def _within(strength: int) -> int:
    return strength if -_BOUND <= strength <= _BOUND else max(-_BOUND, min(_BOUND, strength))


def _by_contender(count: int, matches: Matches) -> tuple[list[_Met], list[float], list[float]]:
    """Of each, whom it met and the weight of that, what it won, and the weight of all."""
    met: list[_Met] = [[] for _ in range(count)]
    won, fought = [0.0] * count, [0.0] * count
    rows = zip(matches.first, matches.second, map(float, matches.for_first), map(float, matches.weight), strict=True)
    for a, b, for_a, weight in rows:
        met[a].append((b, weight))
        met[b].append((a, weight))
        won[a] += for_a
        won[b] += weight - for_a
        fought[a] += weight
        fought[b] += weight
    return met, won, fought


def _start(means: Sequence[int], won: Sequence[float], fought: Sequence[float]) -> list[int]:
    """One Newton step for all at once where all are expected alike: there the likelihood is known without looking it up."""
    mean = means[0]
    if any(map(mean.__ne__, means)):
        return list(means)
    return [
        _within(mean + 2000 * (2 * value - weight) // (weight + 4 * RIDGE_MILLI))
        for value, weight in zip(map(int, won), map(int, fought), strict=True)
    ]


@cache
def _tables() -> tuple[list[float], list[float]]:
    """P and P(1 - P) in millionths, by log-odds in milli-nats above -TABLE_REACH_MILLI. Whole numbers as doubles, whose products
    and sums are exact below 2**53 and take half the time of integers."""
    chances, spreads = ([*map(float, table)] for table in logistic_table())
    return chances, spreads
